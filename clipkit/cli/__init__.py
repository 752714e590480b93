"""The command line: parse, call, print. Heavy modules are imported when a command runs, so that `--help` is instant."""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from clipkit import __version__
from clipkit.cli.data import app as data_app
from clipkit.cli.epilog import ending_with
from clipkit.cli.evaluate import app as eval_app
from clipkit.cli.export import export, merge
from clipkit.cli.launch import is_main_process, process_rank, run_on_processes
from clipkit.cli.push import push as push_command
from clipkit.cli.runs import doctor, runs
from clipkit.cli.terminal import print_error, whole_output
from clipkit.errors import Interrupted, TrainingError, UserError

app = typer.Typer(
    name="clipkit",
    help="CLIP-style contrastive learning: train, evaluate and use paired image and text encoders.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(eval_app, name="eval")
app.add_typer(data_app, name="data")
app.command()(export)
app.command()(merge)
app.command(name="push")(push_command)
app.command()(doctor)
app.command()(runs)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 it ran and failed, 2 invalid input, 130 or 143 interrupted."""
    # Loading bars and advice of the model libraries would clutter the output; their errors are reported as ours.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        with whole_output():
            app()
    except UserError as error:
        # An error that all processes raise is printed by the main process alone.
        if not error.everywhere or is_main_process():
            print_error(str(error))
        sys.exit(2)
    except TrainingError as error:
        rank = process_rank()
        if not error.everywhere and rank is not None:
            print_error(f"process {rank}: {error}")
        elif is_main_process():
            print_error(str(error))
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _clipkit(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the data, the runs and the report.")] = Path("demo"),
) -> None:
    """Train a small model on emoji and their names, and report what it learned (about five minutes)."""
    from clipkit.cli.demo import run_demo

    _start_process()
    with _interruptible():
        run_demo(out)


def _losses() -> str:
    from clipkit.catalogue import table

    return "Losses (loss.name):\n\n" + table()


@app.command(cls=ending_with(_losses))
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="A recipe; see recipes/ for examples.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY.SUB=VALUE", help="Values to change, e.g. optim.lr=1e-5.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in the output folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the output folder.")] = False,
    processes: Annotated[int, typer.Option(help="Number of processes on this machine.", min=1)] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the recipe with every default and exit.")] = False,
    push: Annotated[
        str | None, typer.Option(metavar="REPO", help="Upload the trained model to this Hub repository (ORG/NAME).")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: create a private repository.")] = False,
) -> None:
    """Train a model as a recipe describes. The result does not depend on the number of processes."""
    from clipkit.recipe import Recipe

    complete = Recipe.from_yaml(recipe, overrides or [])
    if dry_run:
        print(complete.to_yaml(), end="")
        return
    if resume and overwrite:
        raise UserError("--resume and --overwrite were both given; give one of them")
    if private and push is None:
        raise UserError("--private applies to --push, which was not given; add --push ORG/NAME, or remove --private")
    if processes > 1:
        flags = ["--resume"] * resume + ["--overwrite"] * overwrite + ["--private"] * private
        flags += ["--push", push] if push is not None else []
        run_on_processes(processes, ["train", str(recipe), *(overrides or []), *flags])
        return
    _start_process()
    from clipkit.cli.tables import print_metrics
    from clipkit.training import train as run

    if push is not None:
        from clipkit.cli.push import check_first

        check_first(push, private)
    with _interruptible():
        result = run(complete, resume=resume, overwrite=overwrite)
    if not is_main_process():
        return
    if result["metrics"]:
        print_metrics(result["metrics"], f"{result['model']} on {result['data']['name']}")
    if push is not None:
        from clipkit.cli.push import push_run

        push_run(complete.output, push, private)


@app.command()
def models(
    name: Annotated[
        str | None, typer.Argument(metavar="M", help="Model to describe. Default: list models that can be loaded.")
    ] = None,
    search: Annotated[str, typer.Option(metavar="TEXT", help="List only names that contain this text.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the description as JSON.")] = False,
) -> None:
    """List models that can be loaded, or describe one: towers, sizes, preprocessing, loss, memory."""
    from clipkit.cli.models import print_description, print_loadable

    if name is None:
        print_loadable(search)
    else:
        print_description(name, as_json)


def _start_process() -> None:
    """Configure this process before it computes."""
    from clipkit.cli.process import keep_freed_memory, log_to_terminal

    log_to_terminal(logging.getLogger("clipkit"))
    keep_freed_memory()


@contextmanager
def _interruptible() -> Iterator[None]:
    """End the process with one line and the right exit code if the run inside was asked to stop."""
    try:
        yield
    except Interrupted as error:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)  # launchers repeat signals; a second one must not change the code
        if is_main_process():
            print_error(str(error))
        sys.exit(error.code)
