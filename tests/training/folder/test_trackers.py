"""TensorBoard has the figures, the recipe, the result and the sample images of a run."""

from collections.abc import Callable
from pathlib import Path

import pytest

import clipkit
from clipkit.recipe import Recipe
from clipkit.training.folder.tracked_results import markdown_table
from clipkit.training.folder.trackers import _name_for
from tests.conftest import read_lines


@pytest.mark.slow
def test_tensorboard_has_figures_recipe_result_and_images(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = clipkit.train(recipe({"train.log_with": ["tensorboard"]}))
    files = list((tmp_path / "run" / "tracking").rglob("*tfevents*"))
    scalars, texts, images = {}, {}, {}
    for folder in {file.parent for file in files}:
        events = EventAccumulator(str(folder)).Reload()
        scalars |= {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        texts |= {
            tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
            for tag in events.Tags()["tensors"]
            if tag.startswith("results")
        }
        images |= {tag: events.Images(tag)[0] for tag in events.Tags()["images"]}
    losses = [row["loss"] for row in read_lines(tmp_path / "run" / "metrics.jsonl")]
    assert [round(value, 4) for value in scalars["train/loss"]] == [round(loss, 4) for loss in losses]
    assert {"eval/mean_recall", "speed/pairs_per_second"} <= set(scalars)
    assert markdown_table(result) in texts["results/text_summary"]
    assert (images["augmented_images"].width, images["augmented_images"].height) > (96, 96)
    assert "optim.lr" in next((tmp_path / "run" / "tracking").rglob("hparams.yml")).read_text()


def test_mlflow_gets_names_that_it_accepts() -> None:
    assert _name_for("mlflow", "eval/image_retrieval_recall@5") == "eval/image_retrieval_recall_at_5"
    assert _name_for("mlflow", "train/loss[0] ü") == "train/loss_0_ _"
    assert _name_for("tensorboard", "eval/image_retrieval_recall@5") == "eval/image_retrieval_recall@5"
