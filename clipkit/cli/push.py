"""Command `clipkit push`: upload a model to the Hugging Face Hub."""

import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipkit.cli.inputs import check_models
from clipkit.errors import ModelError, TrainingError
from clipkit.run_files import RunFiles, recipe_of, results_of

if TYPE_CHECKING:
    from clipkit.models.publish.push import Pushed


def push(
    model: Annotated[
        str,
        typer.Argument(metavar="M", help="Model to upload: a run, a folder, a Hub repository, or open_clip:ARCH/TAG."),
    ],
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="Hub repository (ORG/NAME); created if it does not exist.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    message: Annotated[str, typer.Option(metavar="TEXT", help="Commit message.")] = "Upload with clipkit",
    results: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="F.json",
            help="Result to add to the model card: a file that clipkit eval … --json wrote; may be given several "
            "times.",
        ),
    ] = None,
) -> None:
    """Upload a model and its card to the Hugging Face Hub.

    Run the same command again to resume an interrupted upload.
    """
    check_models(model)
    from clipkit.evaluation import read_result
    from clipkit.models.publish.push import push as upload

    measured = [read_result(file) for file in results or []]
    run = RunFiles(model)
    with tempfile.TemporaryDirectory() as temporary:
        names = None if measured else (run.is_run and run.model.is_dir() and run.model_files) or None
        folder = run.model
        if names is None:
            folder = Path(temporary) / "model"
            _save(model, folder, measured)
        done = upload(folder, repository, private=private, message=message, names=names)
    _print(done)


def push_run(run: str, repository: str, private: bool) -> None:
    """Upload the model of a finished run.

    Raises:
        TrainingError: the upload failed; the model remains in the run.
    """
    from clipkit.models.publish.push import push as upload

    try:
        _print(upload(RunFiles(run).model, repository, private=private, names=RunFiles(run).model_files or None))
    except ModelError as error:
        command = shlex.join(["clipkit", "push", run, repository, *(["--private"] if private else [])])
        raise TrainingError(
            f"the model is saved in {RunFiles(run).model} but was not uploaded to the Hub ({error}); upload "
            f"it with: {command}"
        ) from None


def _print(done: "Pushed") -> None:
    print(f"{done.url}: {done.files} files, {done.size / 1e6:,.1f} MB")
    for note in done.notes:
        print(f"  note: {note}")


def _save(model: str, folder: Path, measured: Sequence[dict[str, Any]]) -> None:
    """Save a model in the file format of its original library, with a model card.

    An existing card is kept if `measured` contains no results to add.
    """
    from clipkit.models import load
    from clipkit.models.publish.card import is_of_export
    from clipkit.models.publish.push import signed
    from clipkit.report.model_card import model_card

    opened = load(model, device="cpu")
    opened.save(folder)
    card = Path(model) / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() and not measured else None
    if text is not None and not is_of_export(text):
        (folder / "README.md").write_text(text, encoding="utf-8")
        return
    recipe = None
    if RunFiles(model).is_run:
        recipe = recipe_of(model)
        results = results_of(model)
        measured = [*([results] if results is not None else []), *measured]
    (folder / "README.md").write_text(signed(model_card(opened.layout(), measured, recipe)), encoding="utf-8")
