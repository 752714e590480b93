"""The command line: thin. Nothing heavy is imported before a command runs, so that `--help` is instant."""

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
from clipkit.cli.push import push as push_command
from clipkit.cli.runs import doctor, runs
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
    """Run the command line. Exit codes: 0 done, 1 it ran and failed, 2 the input is wrong, 130 interrupted."""
    # Weights' loading bars and advice of the libraries below are noise here; their errors come through as ours.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app()
    except UserError as error:
        # What all processes find wrong, the first one says.
        if not error.everywhere or int(os.environ.get("RANK", "0")) == 0:
            sys.stderr.write(f"clipkit: {error}\n")
        sys.exit(2)
    except TrainingError as error:
        rank = int(os.environ.get("RANK", "0"))
        if not error.everywhere and "RANK" in os.environ:
            sys.stderr.write(f"clipkit: process {rank}: {error}\n")
        elif rank == 0:
            sys.stderr.write(f"clipkit: {error}\n")
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _clipkit(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the data, the runs and the report.")] = Path("demo"),
) -> None:
    """Train a small dual encoder on emoji and their names, and show what it learned (about five minutes)."""
    from clipkit.cli.demo import run_demo

    _start_process()
    with _interruptible():
        run_demo(out)


def _losses() -> str:
    from clipkit.catalogue import table

    return "Losses (loss.name):\n\n" + table()


@app.command(cls=ending_with(_losses))
def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file; see recipes/ for examples.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY.SUB=VALUE", help="Changes, as optim.lr=1e-5.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the output folder.")] = False,
    processes: Annotated[int, typer.Option(help="Processes to run on, on this machine.", min=1)] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the complete recipe and stop.")] = False,
    push: Annotated[str | None, typer.Option(metavar="REPO", help="Put the model on the Hub afterwards.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Of --push: only you see the repository.")] = False,
) -> None:
    """Train what a recipe says. The result does not depend on the number of processes."""
    from clipkit.recipe import Recipe

    complete = Recipe.from_yaml(recipe, overrides or [])
    if dry_run:
        print(complete.to_yaml(), end="")
        return
    if resume and overwrite:
        raise UserError("--resume and --overwrite were both given; give one of them")
    if private and push is None:
        raise UserError("--private is for --push, which was not given; add --push ORG/NAME, or leave it out")
    if processes > 1:
        from clipkit.cli.launch import run_on_processes

        chosen = ["--resume"] * resume + ["--overwrite"] * overwrite + ["--private"] * private
        chosen += ["--push", push] if push is not None else []
        run_on_processes(processes, ["train", str(recipe), *(overrides or []), *chosen])
        return
    _start_process()
    from clipkit.cli.tables import print_metrics
    from clipkit.training import train as run

    if push is not None:
        from clipkit.cli.push import check_first

        check_first(push, private)
    with _interruptible():
        result = run(complete, resume=resume, overwrite=overwrite)
    if result["metrics"] and int(os.environ.get("RANK", "0")) == 0:
        print_metrics(result["metrics"], f"{result['model']} on {result['data']['name']}")
    if push is not None and int(os.environ.get("RANK", "0")) == 0:
        from clipkit.cli.push import push_run

        push_run(complete.output, push, private)


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="A model to describe; without it, what can be loaded.")] = None,
    search: Annotated[str, typer.Option(help="List only names with this in them.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the description as JSON.")] = False,
) -> None:
    """What can be loaded; what one model is: towers, sizes, preprocessing, loss, memory."""
    from clipkit.cli.models import print_description, print_loadable

    if name is None:
        print_loadable(search)
    else:
        print_description(name, as_json)


def _start_process() -> None:
    """What a process of ours needs before it computes."""
    from clipkit.cli.process import keep_freed_memory, log_to_terminal

    log_to_terminal(logging.getLogger("clipkit"))
    keep_freed_memory()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Within, a run that was asked to stop ends the process with its code and one line."""
    try:
        yield
    except Interrupted as error:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)  # launchers repeat them; the code on the way out is ours
        if int(os.environ.get("RANK", "0")) == 0:
            sys.stderr.write(f"clipkit: {error}\n")
        sys.exit(error.code)
