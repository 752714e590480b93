from pathlib import Path

import pytest

from clipkit.catalogue import Need
from clipkit.errors import RecipeError
from clipkit.recipe import Recipe, Term, parse_overrides
from clipkit.recipe.terms import OBJECTIVES, ObjectiveRow

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
    for key in ("weight_decay: 0.1", "every_epochs: 1", "seed: 0", "captions: auto"):
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
def test_an_unknown_key_suggests_the_nearest_valid_one(key: str, nearest: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(MINIMAL).override({key: 1})
    assert f"{key} is not a valid key" in str(caught.value)
    assert nearest in str(caught.value)


def test_an_invalid_value_is_refused_in_one_line_with_its_key() -> None:
    assert "train.batch_size is 1" in problem(MINIMAL | {"train": {"batch_size": 1}})
    assert "train.precision is 'fp8'" in problem(MINIMAL | {"train": {"precision": "fp8"}})
    assert "data.train is missing" in problem(MINIMAL | {"data": {}})
    assert "last:N" in problem(MINIMAL | {"model": {"name": "a/b", "image": {"tune": "some"}}})
    assert "model.text.name" in problem(MINIMAL | {"model": {"image": {"name": "timm:resnet10t"}}})
    assert "embed_dim" in problem(MINIMAL | {"model": {"name": "a/b", "embed_dim": 3}})


def test_an_unreadable_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="none.yaml"):
        Recipe.from_yaml(tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("model: [unclosed")
    with pytest.raises(RecipeError, match="bad.yaml.*valid YAML"):
        Recipe.from_yaml(bad)
    bad.write_text("- a list")
    with pytest.raises(RecipeError, match="bad.yaml.*sections"):
        Recipe.from_yaml(bad)
    with pytest.raises(RecipeError, match="'optim.lr'"):
        parse_overrides(["optim.lr"])


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml")), ids=lambda f: f.stem)
def test_the_shipped_recipes_are_valid(file: Path) -> None:
    Recipe.from_yaml(file)


ONE_TOWER = {"image": {"name": "timm:resnet10t", "pretrained": False}}
VIEWS = MINIMAL | {"model": ONE_TOWER, "objective": "views", "views": {"image": {}}}


def test_a_recipe_with_views_reads_back_the_same() -> None:
    steps = ["crop", {"name": "rotate", "degrees": 15}]
    recipe = Recipe.from_dict(VIEWS).override({"views.image.policies": ["simclr", steps], "data.validation": "v.csv"})
    assert Recipe.from_dict(recipe.model_dump(mode="json")) == recipe
    assert recipe.views is not None
    assert recipe.views.image is not None
    assert [step.name for step in recipe.views.image.policies[1]] == ["crop", "rotate"]
    assert recipe.metric == "image_view_recall@1"
    both = Recipe.from_dict(MINIMAL | {"objective": {"captions": 1, "views": 0.5}, "views": {"image": {}, "text": {}}} |
                            {"model": {"name": "a/b", "text": {"dropout": 0.1}}})  # fmt: skip
    assert both.override({"objective.views": 2}).objective == {"captions": 1.0, "views": 2.0}
    assert both.metric is None
    assert both.override({"data.validation": "v.csv"}).metric == "mean_recall"
    assert both.override({"data.labelled": "l.csv"}).metric == "knn_acc1"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"objective": "view"}, ("objective", "'view'", "captions, translations or views")),
        ({"objective": {"views": 0}}, ("objective.views",)),
        ({"views": None}, ("views", "add views: {image:")),
        ({"views": {}}, ("views", "image: {policies:")),
        ({"views": None, "objective": "captions"}, ("captions", "text tower", "model.text.name")),
        ({"model": {"name": "a/b"}, "objective": "captions"}, ("views", "{captions: 1, views: 1}")),
        ({"views.image.policies": ["simcl", "simclr"]}, ("did you mean simclr?",)),
        ({"views.image.policies": ["slip"]}, ("views.image.policies", "2 or more")),
        ({"views.image.policies": [[{"name": "rotate", "degrees": 400}], "slip"]}, ("degrees is 400",)),
        ({"views.image.policies": [[{"name": "crop", "scale": [0.5, 0.2]}], "slip"]}, ("scale", "[0.5, 0.2]")),
        ({"views.image.policies": [["kropp"], "slip"]}, ("'kropp'",)),
        ({"views.image.policies": ["none", []]}, ("views.image.policies", "two views are equal")),
        ({"views.image.loss.name": "sigmoid"}, ("views.image.loss", "sigmoid", "logit bias")),
        ({"views.text": {"policies": ["same", "crop"]}}, ("text_views", "model.text.name")),
        ({"model.embed_dim": 64}, ("model.embed_dim", "views.image.head")),
        ({"model.text.name": "hf:bert"}, ("model.text", "objective")),
        ({"loss.name": "triplet"}, ("loss.name", "captions")),
        ({"loss.duplicates": "ignore"}, ("loss.duplicates", "captions")),
        ({"data.safe": True}, ("data.safe", "captions")),
        ({"data.labelled_test": "t"}, ("data.labelled_test", "data.labelled")),
        ({"eval.metric": "mean_recal"}, ("did you mean mean_recall?",)),
        ({"eval.metric": "mean_recall", "data.validation": "v"}, ("eval.metric mean_recall", "image_view_recall@1")),
        ({"eval.patience": 2}, ("eval.patience", "data.validation")),
    ],
)
def test_invalid_views_are_refused_in_one_line(changes: dict[str, object], parts: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(VIEWS).override(changes)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert "\n" not in str(caught.value)


def test_equal_views_of_captions_need_dropout() -> None:
    text = MINIMAL | {"model": {"text": {"name": "hf:bert"}}, "objective": "views", "views": {"text": {}}}
    assert "model.text.dropout" in problem(text)
    Recipe.from_dict(text | {"model": {"text": {"name": "hf:bert", "dropout": 0.1}}})
    paraphrases = {"text": {"policies": ["paraphrase", "paraphrase"]}}
    assert "model.text.dropout" in problem(text | {"views": paraphrases})
    assert "data.labelled" in problem(
        text | {"views": {"text": {"policies": ["same", "crop"]}}, "data": {"train": "t", "labelled": "l"}}
    )


def test_terms_say_what_an_objective_reads_and_offers() -> None:
    (captions,) = Recipe.from_dict(MINIMAL).terms
    assert captions.towers == ("image", "text")
    assert captions.reads == {"images", "captions"}
    assert captions.needs == {Need.IDS, Need.SCALE}
    both = {"objective": {"views": 0.5, "captions": 2}, "views": {"image": {"head": {"keep": True}}}}
    recipe = Recipe.from_dict(MINIMAL | both)
    captions, views = recipe.terms  # in alphabetical order
    assert (captions.weight, views.weight) == (2.0, 0.5)
    assert (captions.name, views.name) == ("captions", "image_views")
    assert views.reads == {"images"}
    assert recipe.override({"views.image.safe": True}).terms[1].reads == {"images", "captions"}
    assert views.kept_heads == ["image"]
    assert Need.SCALE not in views.needs
    assert recipe.is_cross_modal
    assert not Recipe.from_dict(VIEWS).is_cross_modal


def _toy(closed_form: bool, keys: tuple[str, ...]) -> ObjectiveRow:
    """Return an objective of both towers that multiplies by the model's scale."""
    return ObjectiveRow(
        lambda sections, weight: [
            Term(
                name="toy",
                weight=weight,
                towers=("image", "text"),
                reads=frozenset({"images", "captions"}),
                needs=frozenset({Need.SCALE}),
                closed_form=closed_form,
            )
        ],
        keys,
    )


def test_an_objective_can_use_one_key_of_a_section(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = {**MINIMAL, "objective": "toy"}
    monkeypatch.setitem(OBJECTIVES, "toy", _toy(False, ("loss.logit_scale",)))
    assert Recipe.from_dict({**toy, "loss": {"logit_scale": 50.0}}).loss.logit_scale == 50
    with pytest.raises(RecipeError, match=r"loss\.label_smoothing"):
        Recipe.from_dict({**toy, "loss": {"logit_scale": 50.0, "label_smoothing": 0.1}})
    monkeypatch.setitem(OBJECTIVES, "toy", _toy(False, ()))
    with pytest.raises(RecipeError, match=r"loss\.logit_scale"):
        Recipe.from_dict({**toy, "loss": {"logit_scale": 50.0}})


@pytest.mark.parametrize("closed_form", [True, False])
def test_an_objective_says_whether_projections_can_start_in_closed_form(
    monkeypatch: pytest.MonkeyPatch, closed_form: bool
) -> None:
    monkeypatch.setitem(OBJECTIVES, "toy", _toy(closed_form, ()))
    towers = {side: {"name": f"hf:me/{side}", "tune": "frozen"} for side in ("image", "text")}
    both = {**MINIMAL, "model": towers, "objective": {"captions": 1, "toy": 1}}
    assert Recipe.from_dict(both).start == ("cca" if closed_form else "random")
    requested = {**both, "model": {**towers, "start": "cca"}}
    if closed_form:
        assert Recipe.from_dict(requested).start == "cca"
    else:
        with pytest.raises(RecipeError, match="toy"):
            Recipe.from_dict(requested)


def test_augmentation_of_captions() -> None:
    recipe = Recipe.from_dict(MINIMAL)
    assert recipe.override({"data.crop_scale": [0.5, 0.9]}).data.augmentation(recipe.model)[0].scale == (0.5, 0.9)
    assert recipe.override({"data.augment": "none"}).data.augmentation(recipe.model) == ()
    assert [
        step.name for step in recipe.override({"data.augment": ["crop", "flip"]}).data.augmentation(recipe.model)
    ] == [
        "crop",
        "flip",
    ]
    american = recipe.override({"data.augment": ["grayscale", {"name": "solarize", "p": 0.5}], "data.labeled": "l.csv"})
    assert [step.name for step in american.data.augmentation(recipe.model)] == ["grayscale", "solarize"]
    assert american.data.labelled == "l.csv"
    with pytest.raises(RecipeError, match="crop_scale.*augment: crop"):
        recipe.override({"data.augment": "simclr", "data.crop_scale": [0.5, 0.9]})


@pytest.mark.parametrize(
    "key", ["output", "model.name", "model.image.name", "data.train", "loss.teacher", "eval.metric"]
)
@pytest.mark.parametrize(
    "typed", ["007", "1_000", "1e5", "2024", "yes", "true", "{x}", "{a: 1}", "12:30", "x #2", ".5"]
)
def test_values_of_keys_that_are_texts_are_taken_as_typed(key: str, typed: str) -> None:
    assert parse_overrides([f"{key}={typed}"], Recipe) == {key: typed}


def test_values_of_other_keys_are_read_as_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for typed, value in {
        "data.validation=0.1": 0.1, "data.validation=null": None, "data.train=[a.csv, b.csv]": ["a.csv", "b.csv"],
        "train.batch_size=16": 16, "data.safe=true": True, "data.augment=[crop]": ["crop"],
        "model.image.config={depth: 3}": {"depth": 3}, "output='007'": "007", "model.name=null": None, "output=": None,
        "unknown.key=3": 3,
    }.items():  # fmt: skip
        assert parse_overrides([typed], Recipe) == {typed.partition("=")[0]: value}
    Path("[a].csv").touch()
    assert parse_overrides(["data.train=[a].csv"], Recipe) == {"data.train": "[a].csv"}
    Path("[a]").mkdir()
    assert parse_overrides(["data.train=[a]"], Recipe) == {"data.train": "[a]"}
    (tmp_path / "r.yaml").write_text("model: {name: a/b}\ndata: {train: t.csv}\noutput: runs/x\n")
    assert Recipe.from_yaml("r.yaml", ["output=007", "data.train=2024"]).output == "007"


def test_the_former_default_of_augment_may_stand_in_any_recipe() -> None:
    """It is in the recipe.yaml of every run of an earlier version."""
    recipe = {"model": {"name": "m"}, "objective": "views", "views": {"image": {}}, "output": "o"}
    Recipe.from_dict(recipe | {"data": {"train": "t", "augment": "crop"}})
    with pytest.raises(RecipeError, match=r"data\.augment"):
        Recipe.from_dict(recipe | {"data": {"train": "t", "augment": "moco"}})
