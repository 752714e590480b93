"""Command line: parse the arguments, call the library, print the result.

Heavy modules are imported only when a command runs, so that `--help` is instant.
"""

import atexit
import gc
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from clipkit import __version__
from clipkit.cli.browse import browse
from clipkit.cli.cache import app as cache_app
from clipkit.cli.data import app as data_app
from clipkit.cli.doubtful import doubtful
from clipkit.cli.embed import embed
from clipkit.cli.epilog import ending_with
from clipkit.cli.evaluate import app as eval_app
from clipkit.cli.explain import explain
from clipkit.cli.export import export
from clipkit.cli.inputs import check_recipe_inputs
from clipkit.cli.launch import end_with_launcher, is_main_process, process_rank, run_again_on_processes
from clipkit.cli.merge import merge
from clipkit.cli.models import models
from clipkit.cli.push import push as push_command
from clipkit.cli.running import running
from clipkit.cli.runs import doctor, runs
from clipkit.cli.search import search
from clipkit.cli.suggest import suggest
from clipkit.cli.terminal import print_error, whole_output
from clipkit.errors import TrainingError, UserError

_ORDER = (
    "train", "suggest", "eval", "explain", "data", "embed", "search", "browse", "models", "export", "merge", "push",
    "doctor", "runs", "cache", "demo",
)  # fmt: skip


class _InOrder(TyperGroup):
    """Command group whose help page lists the commands in the order of `_ORDER`."""

    def list_commands(self, ctx: Any) -> list[str]:
        position = {name: number for number, name in enumerate(_ORDER)}
        return sorted(super().list_commands(ctx), key=lambda name: position.get(name, len(_ORDER)))


app = typer.Typer(
    cls=_InOrder,
    name="clipkit",
    help="CLIP-style contrastive learning: train, evaluate and use paired image and text encoders.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(eval_app, name="eval")
app.add_typer(data_app, name="data")
data_app.command()(doubtful)
app.add_typer(cache_app, name="cache")
app.command()(suggest)
app.command()(embed)
app.command()(search)
app.command()(browse)
app.command()(explain)
app.command()(export)
app.command()(merge)
app.command(name="push")(push_command)
app.command()(models)
app.command()(doctor)
app.command()(runs)


def main() -> None:
    """Run the command line.

    Exit codes: 0 success, 1 failure during the run, 2 invalid input, 130 or 143 interrupted.
    """
    # Progress bars and warnings of the model libraries would clutter the output; their errors become clipkit errors.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    end_with_launcher()
    atexit.register(_end_without_collection)
    try:
        with whole_output():
            app()
    except (UserError, TrainingError) as error:
        rank = process_rank()
        if not error.everywhere or not rank:  # if all processes raise the error, only the main process prints it
            names_process = isinstance(error, TrainingError) and not error.everywhere and rank is not None
            print_error(f"{f'process {rank}: ' if names_process else ''}{error}")
        sys.exit(2 if isinstance(error, UserError) else 1)
    except MemoryError:
        print_error("out of memory; use smaller images or batches, or fewer workers")
        sys.exit(1)


def _end_without_collection() -> None:
    """Skip Python's garbage collection at exit, because it takes half a second if torch is loaded."""
    gc.unfreeze()  # some libraries report objects that Python does not delete at exit
    gc.disable()


@app.callback(invoke_without_command=True)
def _clipkit(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the data, the runs and the report.")] = Path(
        "demo"
    ),
) -> None:
    """Train a small model on the names of emoji, in about five minutes.

    A report shows what the model has learned.
    """
    with running():
        from clipkit.cli.demo import run_demo

        run_demo(out)


def _losses() -> str:
    from clipkit.catalogue import table

    return "Losses (loss.name):\n\n" + table()


@app.command(cls=ending_with(_losses))
def train(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE.yaml",
            help="Recipe file (YAML). Example recipes are in recipes/ of the source code and in "
            "clipkit/recipes/ of the installed package.",
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY.SUB=VALUE", help="Recipe values to override, e.g. optim.lr=1e-5.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Resume the run in the recipe's output folder from its newest checkpoint. If the folder contains no "
            "run, start a new run.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run in the recipe's output folder, and start a new run.")
    ] = False,
    processes: Annotated[
        int, typer.Option(metavar="N", help="Number of processes on this machine, e.g. one per GPU.", min=1)
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the complete recipe, including all defaults, and exit.")
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(metavar="REPO", help="After training, upload the model to this Hub repository (ORG/NAME)."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: create a private repository.")] = False,
) -> None:
    """Train a model from a recipe. The result does not depend on the number of processes."""
    from clipkit.recipe import Recipe

    complete = Recipe.from_yaml(recipe, overrides or [])
    if dry_run:
        print(complete.to_yaml(), end="")
        if complete.data.augment == "auto":
            print(f"# data.augment: auto means {complete.data.policy(complete.model)} for this model")
        if complete.data.captions == "auto":
            print(f"# data.captions: auto means {complete.captions()} for this model")
        return
    if resume and overwrite:
        raise UserError("--resume and --overwrite were both given; give only one of them")
    if private and push is None:
        raise UserError("--private was given without --push; add --push ORG/NAME, or remove --private")
    check_recipe_inputs(complete, resume, overwrite)
    if processes > 1:
        run_again_on_processes(processes)
    from clipkit.cli.tables import print_metrics

    with running():
        from clipkit.cli.process import without_collection

        with without_collection():
            from clipkit.training import train as run
        if push is not None and is_main_process():  # check this before the run, which may take long
            from clipkit.models.publish.push import check_pushable

            check_pushable(push, private)
        result = run(complete, resume=resume, overwrite=overwrite)
    if not is_main_process():
        return
    if result["metrics"]:
        print_metrics(result)
    if push is not None:
        from clipkit.cli.push import push_run

        push_run(complete.output, push, private)
