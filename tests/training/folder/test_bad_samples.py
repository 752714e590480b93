"""Images that cannot be had: the run goes on without them, says which, and stops where they are too many."""

from collections.abc import Callable
from pathlib import Path

import pytest

import clipkit
from clipkit.errors import DataError, TrainingError
from clipkit.recipe import Recipe
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
def test_a_run_goes_on_without_them(recipe: Build, broken: Path, tmp_path: Path, tune: str) -> None:
    changes = {"data.train": str(broken), "data.max_bad": 4, "data.augment": "crop" if tune == "full" else "none"}
    own = recipe({**changes, "model.image.tune": tune, "train.epochs": 3, "data.workers": 1})
    clipkit.train(own)
    listed = read_lines(tmp_path / "run" / "bad_samples.jsonl")
    assert sorted(Path(row["file"]).name for row in listed) == ["11.png", "14.png", "3.png", "7.png"]
    assert {row["step"] for row in listed if Path(row["file"]).name == "14.png"} == {0}
    assert next(row for row in listed if row["image"] == 3)["reason"].endswith("replace it or drop its rows")
    assert (
        "1 images are missing or unreadable (first: " in (tmp_path / "run" / "log.txt").read_text() or tune == "frozen"
    )


def test_processes_and_workers_find_the_same(recipe: Build, broken: Path, tmp_path: Path) -> None:
    changes = {"data.train": str(broken), "data.max_bad": 4, "train.epochs": 2}
    files = []
    for name, more in {"one": {}, "two": {"data.workers": 2}}.items():
        own = recipe({**changes, **more, "output": str(tmp_path / name)})
        (tmp_path / f"{name}.yaml").write_text(own.to_yaml())
        files.append(tmp_path / f"{name}.yaml")
    clipkit.train(files[0])
    together(2, several_runs.__file__, str(files[1]))
    one, two = (tmp_path / name for name in ("one", "two"))
    assert (tmp_path / "two-1-of-2.txt").exists()
    assert read_lines(one / "bad_samples.jsonl") == read_lines(two / "bad_samples.jsonl")
    losses = [[row["loss"] for row in read_lines(run / "metrics.jsonl")] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_too_many_stop_it_and_it_can_go_on(recipe: Build, broken: Path, tmp_path: Path) -> None:
    changes = {"data.train": str(broken), "train.epochs": 4}
    with pytest.raises(TrainingError, match=r"step \d: of the 16 images of .* 3 could not be had, more than .*\(2\)"):
        clipkit.train(recipe({**changes, "data.max_bad": 0.13}))
    stopped = read_lines(tmp_path / "run" / "metrics.jsonl")
    clipkit.train(recipe({**changes, "data.max_bad": 0.3}), resume=True)
    resumed = (tmp_path / "run" / "metrics.jsonl").read_text()
    listed = (tmp_path / "run" / "bad_samples.jsonl").read_text()
    assert len(stopped) < len(resumed.splitlines()) == 8
    clipkit.train(recipe({**changes, "data.max_bad": 0.3}), overwrite=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == resumed
    assert (tmp_path / "run" / "bad_samples.jsonl").read_text() == listed


def test_what_is_known_before_the_first_step(recipe: Build, broken: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of its 16 images are missing, the first is .*14.png; mend the paths"):
        clipkit.train(recipe({"data.train": str(broken), "data.max_bad": 0}))
    with pytest.raises(DataError, match="1 of its 16 images are missing"):
        clipkit.train(recipe({"data.validation": str(broken)}))
    draw("red", "circle").save(broken.parent / "14.png")
    with pytest.raises(DataError, match="3 images cannot be validated on, the first: .*3.png"):
        clipkit.train(recipe({"data.validation": str(broken)}))
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_limit_for_pixels(recipe: Build, broken: Path, tmp_path: Path) -> None:
    draw("red", "circle", 64).save(broken.parent / "2.png")
    clipkit.train(recipe({"data.train": str(broken), "data.max_bad": 5, "data.max_pixels": 2000, "train.epochs": 3}))
    listed = read_lines(tmp_path / "run" / "bad_samples.jsonl")
    assert "2.png: is over the limit of 2000 pixels" in next(row["reason"] for row in listed if row["image"] == 2)
