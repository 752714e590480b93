"""Missing and unreadable images: a run replaces them, lists them, and stops if there are too many."""

from collections.abc import Callable
from pathlib import Path

import pytest

import clipkit
from clipkit.errors import DataError, TrainingError
from clipkit.recipe import Recipe
from clipkit.training.plan import make_plan
from tests.conftest import draw, read_lines, write_csv
from tests.forked import together
from tests.training import several_runs

Build = Callable[..., Recipe]
BAD = {"3.png": b"<html>not found</html>", "7.png": b"", "11.png": b"\x89PNG\r\n\x1a\n cut"}


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """16 images, of which three cannot be decoded and one is missing."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(16):
        draw(["red", "blue"][number % 2], ["circle", "cross"][number // 8], shift=number % 4).save(
            folder / f"{number}.png"
        )
    for name, content in BAD.items():
        (folder / name).write_bytes(content)
    (folder / "14.png").unlink()
    return write_csv(folder / "p.csv", ["image", "caption"], [[f"{n}.png", f"words of {n}"] for n in range(16)])


@pytest.mark.parametrize("tune", ["full", "frozen"])
def test_run_replaces_and_lists_bad_images(recipe: Build, broken: Path, tmp_path: Path, tune: str) -> None:
    changes = {"data.train": str(broken), "data.max_bad": 4, "data.augment": "crop" if tune == "full" else "none"}
    clipkit.train(recipe({**changes, "model.image.tune": tune, "train.epochs": 3, "data.workers": 1}))
    listed = read_lines(tmp_path / "run" / "bad_samples.jsonl")
    assert sorted(Path(row["file"]).name for row in listed) == ["11.png", "14.png", "3.png", "7.png"]
    assert {row["step"] for row in listed if Path(row["file"]).name == "14.png"} == {0}
    assert next(row for row in listed if row["image"] == 3)["reason"].endswith("from the data")
    known = "1 image is" if tune == "full" else "4 images are"  # a frozen trunk runs over all before the first step
    assert f"{known} missing or unreadable" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_bad_images_do_not_depend_on_processes_and_workers(
    recipe: Build, broken: Path, tmp_path: Path, processes: int
) -> None:
    changes = {"data.train": str(broken), "data.max_bad": 4, "train.epochs": 2}
    files = []
    for name, more in {"one": {}, "several": {"data.workers": 2}}.items():
        text = recipe({**changes, **more, "output": str(tmp_path / name)}).to_yaml()
        (tmp_path / f"{name}.yaml").write_text(text)
        files.append(tmp_path / f"{name}.yaml")
    clipkit.train(files[0])
    together(processes, several_runs.__file__, str(files[1]))
    one, several = (tmp_path / name for name in ("one", "several"))
    calls = {(tmp_path / f"several-{index}-of-{processes}.calls").read_text() for index in range(processes)}
    assert len(calls) == 1  # the same collective operations on each process, though one has a bad image
    assert "all_reduce" in calls.pop()
    assert read_lines(one / "bad_samples.jsonl") == read_lines(several / "bad_samples.jsonl")
    losses = [[row["loss"] for row in read_lines(run / "metrics.jsonl")] for run in (one, several)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_too_many_bad_images_stop_the_run_and_it_can_resume(recipe: Build, broken: Path, tmp_path: Path) -> None:
    changes = {"data.train": str(broken), "train.epochs": 4}
    with pytest.raises(TrainingError, match=r"step \d: 3 of 16 images .*data.max_bad allows 2;.*--resume"):
        clipkit.train(recipe({**changes, "data.max_bad": 0.13}))
    stopped = read_lines(tmp_path / "run" / "metrics.jsonl")
    clipkit.train(recipe({**changes, "data.max_bad": 0.3}), resume=True)
    resumed = (tmp_path / "run" / "metrics.jsonl").read_text()
    listed = (tmp_path / "run" / "bad_samples.jsonl").read_text()
    assert len(stopped) < len(resumed.splitlines()) == 8
    clipkit.train(recipe({**changes, "data.max_bad": 0.3}), overwrite=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == resumed
    assert (tmp_path / "run" / "bad_samples.jsonl").read_text() == listed


def test_plan_refuses_missing_and_unreadable_images(recipe: Build, broken: Path) -> None:
    with pytest.raises(DataError, match=r"\b1 .*14.png.*data.max_bad"):
        make_plan(recipe({"data.train": str(broken), "data.max_bad": 0}))
    with pytest.raises(DataError, match=r"\b1 .*14.png"):
        make_plan(recipe({"data.validation": str(broken)}))
    draw("red", "circle").save(broken.parent / "14.png")
    with pytest.raises(DataError, match=r"\b3 images .*3.png"):
        make_plan(recipe({"data.validation": str(broken)}))


def test_images_over_the_pixel_limit_are_bad(recipe: Build, broken: Path, tmp_path: Path) -> None:
    draw("red", "circle", 64).save(broken.parent / "2.png")
    clipkit.train(recipe({"data.train": str(broken), "data.max_bad": 5, "data.max_pixels": 2000, "train.epochs": 3}))
    listed = read_lines(tmp_path / "run" / "bad_samples.jsonl")
    reason = next(row["reason"] for row in listed if row["image"] == 2)
    assert "2.png" in reason
    assert "2000 pixels" in reason
