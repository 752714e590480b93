"""`clipkit push`."""

import json
import os
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipkit.errors import DataError, ModelError, TrainingError
from clipkit.run_files import RunFiles, recipe_of, results_of

if TYPE_CHECKING:
    from clipkit.models.publish.push import Pushed


def push(
    model: Annotated[str, typer.Argument(metavar="M", help="A run, or any model that `clipkit models` lists.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="On the Hub, as org/name; made if need be.")],
    private: Annotated[bool, typer.Option("--private", help="Only you see it, where it is made.")] = False,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Upload with clipkit",
    results: Annotated[
        list[Path] | None, typer.Option(help="A results JSON for the model card; may be given several times.")
    ] = None,
) -> None:
    """Put a model with its card on the Hugging Face Hub; a broken transfer goes on where it was."""
    from clipkit.models.publish.push import push as upload

    measured = [_read(file) for file in results or []]
    run = RunFiles(model)
    with tempfile.TemporaryDirectory() as aside:
        if run.is_run and run.model.is_dir() and not measured:
            folder = run.model
        else:
            folder = Path(aside) / "model"
            _save(model, folder, measured)
        done = upload(folder, repository, private=private, message=message)
    _say(done)


def push_run(run: str, repository: str, private: bool) -> None:
    """After a long run: put its model on the Hub.

    Raises:
        TrainingError: it did not arrive; the model is in the run all the same.
    """
    from clipkit.models.publish.push import push as upload

    try:
        _say(upload(RunFiles(run).model, repository, private=private))
    except ModelError as error:
        command = shlex.join(["clipkit", "push", run, repository, *(["--private"] if private else [])])
        raise TrainingError(
            f"the model is whole in {RunFiles(run).model} but not on the Hub ({error}); push it with: {command}"
        ) from None


def check_first(repository: str, private: bool) -> None:
    """Before a long run, on the first process: see that its model can be pushed afterwards.

    Raises:
        ModelError: it cannot.
    """
    if int(os.environ.get("RANK", "0")) == 0:
        from clipkit.models.publish.push import check_pushable

        check_pushable(repository, private)


def _say(done: "Pushed") -> None:
    print(f"{done.url}: {done.files} files, {done.size / 1e6:,.1f} MB")
    for note in done.notes:
        print(f"  note: {note}")


def _save(model: str, folder: Path, measured: list[dict[str, Any]]) -> None:
    """The model in its own layout, with a card: the user's own, where the folder has one and nothing is to be added."""
    from clipkit.models import load
    from clipkit.models.publish.push import signed
    from clipkit.report import model_card

    opened = load(model, device="cpu")
    opened.save(folder)
    own = Path(model) / "README.md"
    if own.is_file() and not measured:
        (folder / "README.md").write_text(own.read_text(encoding="utf-8"), encoding="utf-8")
        return
    recipe = None
    if RunFiles(model).is_run:
        recipe = recipe_of(model)
        results = results_of(model)
        measured = [*([results] if results is not None else []), *measured]
    (folder / "README.md").write_text(signed(model_card(opened.layout(), measured, recipe)), encoding="utf-8")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: is no results JSON ({error}); write one with clipkit eval … --json {file}") from None
    whole = isinstance(content, dict) and {"task", "metrics", "data"} <= content.keys()
    if not whole or not all(isinstance(own, dict) and "value" in own for own in content["metrics"].values()):
        raise DataError(f"{file}: is no results JSON; write one with clipkit eval … --json {file}")
    return content
