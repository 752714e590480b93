from pathlib import Path

import pytest

from clipkit.errors import RecipeError
from clipkit.recipe import Recipe, parse_overrides

MINIMAL = {"model": {"name": "a/b"}, "data": {"train": "t.csv"}, "output": "runs/x"}


def problem(values: dict[str, object]) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_printed_recipe_is_complete_and_reads_back_the_same(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(MINIMAL).override({"optim.lr": 3e-4, "data.crop_scale": [0.5, 1.0]})
    file = tmp_path / "r.yaml"
    file.write_text(recipe.to_yaml())
    assert Recipe.from_yaml(file) == recipe
    for key in ("weight_decay: 0.1", "every_epochs: 1", "seed: 0", "captions: one"):
        assert key in recipe.to_yaml()


def test_overrides_are_read_as_yaml() -> None:
    assert parse_overrides(["optim.lr=1e-5", "data.validation=null", "train.epochs=3", "data.crop_scale=[0.5, 1]"]) == {
        "optim.lr": "1e-5",  # as YAML 1.1 has it; the recipe makes a number of it
        "data.validation": None,
        "train.epochs": 3,
        "data.crop_scale": [0.5, 1],
    }
    assert Recipe.from_dict(MINIMAL).override(parse_overrides(["optim.lr=1e-5"])).optim.lr == 1e-5


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("optim.warmup_steps", "optim.warmup"),
        ("optim.learning_rate", "optim.lr"),
        ("train.batchsize", "train.batch_size"),
        ("batch_size", "train.batch_size"),
        ("data.val", "data.validation"),
        ("model.image.tun", "model.image.tune"),
    ],
)
def test_an_unknown_key_names_the_nearest_real_one(key: str, nearest: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(MINIMAL).override({key: 1})
    assert f"{key} is not an option" in str(caught.value)
    assert nearest in str(caught.value)


def test_what_is_wrong_is_one_line_with_the_key_and_the_value() -> None:
    assert "train.batch_size is 1" in problem(MINIMAL | {"train": {"batch_size": 1}})
    assert "train.precision is 'fp8'" in problem(MINIMAL | {"train": {"precision": "fp8"}})
    assert "data.train is missing" in problem(MINIMAL | {"data": {}})
    assert "last:N" in problem(MINIMAL | {"model": {"name": "a/b", "image": {"tune": "some"}}})
    assert "either name" in problem(MINIMAL | {"model": {"image": {"name": "timm:resnet10t"}}})
    assert "embed_dim is for two towers" in problem(MINIMAL | {"model": {"name": "a/b", "embed_dim": 3}})


def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no such recipe"):
        Recipe.from_yaml(tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("model: [unclosed")
    with pytest.raises(RecipeError, match="not valid YAML"):
        Recipe.from_yaml(bad)
    bad.write_text("- a list")
    with pytest.raises(RecipeError, match="a mapping of sections"):
        Recipe.from_yaml(bad)
    with pytest.raises(RecipeError, match="not an override"):
        parse_overrides(["optim.lr"])


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml")), ids=lambda f: f.stem)
def test_the_shipped_recipes_are_valid(file: Path) -> None:
    Recipe.from_yaml(file)


ONE_TOWER = {"image": {"name": "timm:resnet10t", "pretrained": False}}
VIEWS = MINIMAL | {"model": ONE_TOWER, "objective": "views", "views": {"image": {}}}


def test_views_read_back_the_same() -> None:
    steps = ["crop", {"name": "rotate", "degrees": 15}]
    recipe = Recipe.from_dict(VIEWS).override({"views.image.policies": ["simclr", steps], "data.validation": "v.csv"})
    assert Recipe.from_dict(recipe.model_dump(mode="json")) == recipe
    assert recipe.image_views is not None
    assert [step.name for step in recipe.image_views.policies[1]] == ["crop", "rotate"]
    assert recipe.metric == "image_view_recall@1"
    both = Recipe.from_dict(MINIMAL | {"objective": {"captions": 1, "views": 0.5}, "views": {"image": {}, "text": {}}} |
                            {"model": {"name": "a/b", "text": {"dropout": 0.1}}})  # fmt: skip
    assert both.override({"objective.views": 2}).objective == {"captions": 1.0, "views": 2.0}
    assert both.metric is None
    assert both.override({"data.validation": "v.csv"}).metric == "mean_recall"
    assert both.override({"data.labelled": "l.csv"}).metric == "knn_acc1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "view"}, "objective is 'view'; take captions or views"),
        ({"objective": {"views": 0}}, "objective.views"),
        ({"views": None}, "add views: {image:"),
        ({"views": {}}, "names no tower"),
        ({"objective": "captions"}, "either name (a whole model) or both"),
        ({"model": {"name": "a/b"}, "objective": "captions"}, "views stands beside an objective without it"),
        ({"views.image.policies": ["simcl", "simclr"]}, "did you mean simclr?"),
        ({"views.image.policies": ["slip"]}, "at least 2 items"),
        ({"views.image.policies": [[{"name": "rotate", "degrees": 400}], "slip"]}, "degrees is 400"),
        ({"views.image.policies": [[{"name": "crop", "scale": [0.5, 0.2]}], "slip"]}, "the first must be at most"),
        ({"views.image.policies": [["kropp"], "slip"]}, "'kropp'"),
        ({"views.image.policies": ["none", []]}, "two views are equal"),
        ({"views.image.loss.name": "sigmoid"}, "sigmoid needs a logit bias"),
        ({"views.text": {}}, "views.text needs a text tower"),
        ({"model.embed_dim": 64}, "a projection, which nothing would teach"),
        ({"model.text.name": "hf:bert"}, "model.text is a new tower that no objective sees"),
        ({"loss.name": "triplet"}, "loss.name is of captions, which are no objective here"),
        ({"data.safe": True}, "data.safe is of captions"),
        ({"data.labelled_test": "t"}, "data.labelled_test stands alone"),
        ({"eval.metric": "mean_recal"}, "did you mean mean_recall?"),
        (
            {"eval.metric": "mean_recall", "data.validation": "v"},
            "mean_recall is not measured here; there are image_view",
        ),
    ],
)
def test_what_is_wrong_with_views(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(VIEWS).override(changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_views_of_captions_have_to_differ() -> None:
    text = MINIMAL | {"model": {"text": {"name": "hf:bert"}}, "objective": "views", "views": {"text": {}}}
    assert "without dropout its views are equal" in problem(text)
    assert Recipe.from_dict(text | {"model": {"text": {"name": "hf:bert", "dropout": 0.1}}}).text_views is not None
    paraphrases = {"text": {"policies": ["paraphrase", "paraphrase"]}}
    assert "without dropout its views are equal" in problem(text | {"views": paraphrases})
    assert "data.labelled are images" in problem(
        text | {"views": {"text": {"policies": ["same", "crop"]}}, "data": {"train": "t", "labelled": "l"}}
    )


def test_the_crop_of_captions() -> None:
    recipe = Recipe.from_dict(MINIMAL)
    assert recipe.override({"data.crop_scale": [0.5, 0.9]}).data.augmentation[0].scale == (0.5, 0.9)
    assert recipe.override({"data.augment": "none"}).data.augmentation == ()
    assert [step.name for step in recipe.override({"data.augment": ["crop", "flip"]}).data.augmentation] == [
        "crop",
        "flip",
    ]
    with pytest.raises(RecipeError, match="crop_scale is for augment: crop"):
        recipe.override({"data.augment": "simclr", "data.crop_scale": [0.5, 0.9]})
