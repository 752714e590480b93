"""Training on labels: the prompts of one class are positives of each other, in whole runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

import clipkit
from clipkit.data import EpochSampler, join, read_pairs, split
from clipkit.losses import distillation
from clipkit.recipe import Recipe
from tests.conftest import read_lines
from tests.losses.oracles import infonce_by_loops


@pytest.fixture
def labeled(shapes: Path, tmp_path: Path) -> str:
    (tmp_path / "prompts.txt").write_text("a photo of a {c}\nthe color {c}\n{c}\n")
    return f"{shapes / 'classes.csv'}?templates={tmp_path / 'prompts.txt'}"


def test_prompts_of_a_class_have_one_id_also_in_parts_and_joined_with_captions(labeled: str, shapes: Path) -> None:
    pairs = read_pairs(labeled)
    assert (len(pairs.captions), len(set(pairs.positive_ids)), len(set(pairs.caption_ids))) == (48, 4, 12)
    for part in (*split(pairs, 0.25), join([pairs, read_pairs(str(shapes / "captions.csv"))], [1, 1])):
        of_color = {
            color: {part.positive_ids[row] for row, text in enumerate(part.captions) if text.endswith(f"color {color}")}
            for color in ("red", "blue")
        }
        assert [len(ids) for ids in of_color.values()] == [1, 1]
        assert of_color["red"] != of_color["blue"]
    # Captions of the other source are positives only of equal captions.
    joined = join([pairs, read_pairs(str(shapes / "captions.csv"))], [1, 1])
    assert len(set(joined.positive_ids)) == 4 + 32


@pytest.mark.parametrize("text", ["full", "frozen"])
@pytest.mark.parametrize("loss", ["infonce", "distillation"])
def test_first_loss_counts_them_as_positives(
    recipe: Callable[..., Recipe], labeled: str, tiny_clip: Path, tmp_path: Path, text: str, loss: str
) -> None:
    """The loss is that of the captions that the sampler chooses; a frozen text tower reads the same captions."""
    own = {
        "data.train": labeled, "data.validation": None, "data.augment": "none", "train.batch_size": 16,
        "train.epochs": 1, "model.text.tune": text, "loss.name": loss,
    }  # fmt: skip
    clipkit.train(recipe(own | ({"loss.teacher": str(tiny_clip)} if loss == "distillation" else {})))
    pairs, model = read_pairs(labeled), clipkit.load(tiny_clip)
    samples = next(iter(EpochSampler(pairs, "one", 16, 0).slices(0, 1, slice(0, 16))))
    image = model.encode_image([pairs.images[sample.image] for sample in samples])
    texts = model.encode_text([pairs.captions[sample.caption] for sample in samples])
    assert len({pairs.captions[sample.caption] for sample in samples}) > 4  # different prompts of a class
    scale = model.logit_scale.exp().detach()
    if loss == "infonce":
        classes = pairs.positive_ids[[sample.caption for sample in samples]].tolist()
        ids = {"image_ids": list(range(16)), "caption_ids": classes}
        expected = infonce_by_loops(image, texts, scale=scale, duplicates="positive", **ids)
    else:
        expected = distillation(image, texts, scale, image, texts, scale)
    assert read_lines(tmp_path / "run" / "metrics.jsonl")[0]["loss"] == pytest.approx(float(expected), rel=1e-5)
