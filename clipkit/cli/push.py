"""`clipkit push`, and `clipkit train --push`."""

import json
import os
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipkit.errors import DataError, ModelError, TrainingError

if TYPE_CHECKING:
    from clipkit.models.publish.push import Pushed


def push(
    model: Annotated[str, typer.Argument(metavar="M", help="A run, or a model that `clipkit models` lists.")],
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="Hub repository as org/name; created if it does not exist.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    message: Annotated[str, typer.Option(help="Commit message.")] = "Upload with clipkit",
    results: Annotated[
        list[Path] | None, typer.Option(help="A results JSON for the model card; can be repeated.")
    ] = None,
) -> None:
    """Upload a model and its card to the Hugging Face Hub; an interrupted upload is resumed."""
    from clipkit.models.publish.push import push as upload

    measured = [_read(file) for file in results or []]
    run = Path(model)
    with tempfile.TemporaryDirectory() as temporary:
        if (run / "recipe.yaml").is_file() and (run / "model").is_dir() and not measured:
            folder = run / "model"
        else:
            folder = Path(temporary) / "model"
            _save(model, folder, measured)
        done = upload(folder, repository, private=private, message=message)
    _print_pushed(done)


def push_run(run: str, repository: str, private: bool) -> None:
    """Upload the model of a finished run.

    Raises:
        TrainingError: the upload failed; the model is kept in the run.
    """
    from clipkit.models.publish.push import push as upload

    try:
        _print_pushed(upload(Path(run) / "model", repository, private=private))
    except ModelError as error:
        command = shlex.join(["clipkit", "push", run, repository, *(["--private"] if private else [])])
        raise TrainingError(
            f"the model was saved in {run}/model, but not uploaded ({error}); push it with: {command}"
        ) from None


def check_first(repository: str, private: bool) -> None:
    """Check before a run, on the main process, that its model can be pushed later.

    Raises:
        ModelError: the repository cannot be written to.
    """
    if int(os.environ.get("RANK", "0")) == 0:
        from clipkit.models.publish.push import check_pushable

        check_pushable(repository, private)


def _print_pushed(done: "Pushed") -> None:
    print(f"{done.url}: {done.files} files, {done.size / 1e6:,.1f} MB")
    for note in done.notes:
        print(f"  note: {note}")


def _save(model: str, folder: Path, measured: list[dict[str, Any]]) -> None:
    """Save the model with a card: the folder's card, or a new one if it has none or if there are results to add."""
    from clipkit.models import load
    from clipkit.models.publish.push import signed
    from clipkit.report import model_card
    from clipkit.report.runs import recipe_of, results_of

    opened = load(model, device="cpu")
    opened.save(folder)
    card = Path(model) / "README.md"
    if card.is_file() and not measured:
        (folder / "README.md").write_text(card.read_text(encoding="utf-8"), encoding="utf-8")
        return
    recipe = None
    if (Path(model) / "recipe.yaml").is_file():
        recipe = recipe_of(Path(model))
        results = results_of(Path(model))
        measured = [*([results] if results is not None else []), *measured]
    (folder / "README.md").write_text(signed(model_card(opened.layout(), measured, recipe)), encoding="utf-8")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: is not a results JSON ({error}); write one with clipkit eval … --json {file}"
        ) from None
    is_result = isinstance(content, dict) and {"task", "metrics", "data"} <= content.keys()
    if not is_result or not all(
        isinstance(figure, dict) and "value" in figure for figure in content["metrics"].values()
    ):
        raise DataError(f"{file}: is not a results JSON; write one with clipkit eval … --json {file}")
    return content
