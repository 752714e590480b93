"""Options and steps shared by all evaluation commands."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clipkit.cli.inputs import check_models
from clipkit.cli.launch import is_main_process, joined_processes, run_again_on_processes
from clipkit.cli.output import check_writable, write_output
from clipkit.cli.terminal import print_error

if TYPE_CHECKING:
    from clipkit.embedding.features import Cache
    from clipkit.evaluation import Result

CacheFolder = Annotated[
    str | None,
    typer.Option(
        "--cache",
        metavar="DIR|none",
        help="Folder that stores computed features for reuse; none: do not store them. Default: $CLIPKIT_CACHE, or the "
        "folder clipkit in the user's cache folder, e.g. ~/.cache/clipkit.",
    ),
]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="F.json", help="Write the result to this JSON file.")]
ReportFile = Annotated[
    Path | None, typer.Option("--report", metavar="F.html", help="Write a report to this HTML file.")
]
ProcessCount = Annotated[
    int, typer.Option("--processes", metavar="N", help="Number of processes on this machine, e.g. one per GPU.", min=1)
]

Dtype = Literal["fp32", "auto", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """Values of the options shared by all evaluation commands."""

    model: Annotated[
        str,
        typer.Option(metavar="M", help="Model: a Hub repository (ORG/NAME), a folder, a run, or open_clip:ARCH/TAG."),
    ]
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Number of images per forward pass. It does not affect the metrics. Default: chosen for the device.",
            min=1,
        ),
    ] = None
    dtype: Annotated[
        Dtype,
        typer.Option(
            help="Precision of the forward pass. auto: bf16 autocast with fp32 weights on a CUDA GPU, otherwise fp32."
        ),
    ] = "fp32"
    cache: CacheFolder = None
    json_file: JsonFile = None
    report: ReportFile = None
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="F.parquet",
            help="Write the result for each image, caption or query, such as its scores, to this Parquet file.",
        ),
    ] = None
    processes: ProcessCount = 1

    def measure(self, evaluate: Callable[..., "Result"], *inputs: str | None) -> None:
        """Evaluate the model on the requested number of processes, print the result and write the files.

        Args:
            evaluate: evaluation function, which accepts the options that all evaluation functions share.
            inputs: data sources that the output files must not overwrite.
        """
        check_writable(self.json_file, self.report, self.predictions, inputs=(self.model, *inputs))
        if self.processes > 1:
            run_again_on_processes(self.processes)
        from clipkit.cli.process import keep_freed_memory, without_collection

        with without_collection():
            from clipkit.models import load

            model = load(self.model, dtype=self.dtype)
        keep_freed_memory()
        result = evaluate(
            model,
            batch_size=self.batch_size,
            cache=cache_of(self.cache),
            predictions=self.predictions,
            processes=joined_processes(),
            progress=True,
        )
        if self.dtype != "fp32":
            result["settings"]["dtype"] = self.dtype
        if is_main_process():
            self._show(result)

    def _show(self, result: "Result") -> None:
        from clipkit.cli.tables import print_metrics, print_prompt_choices
        from clipkit.evaluation import to_json

        for line in result["data"].get("findings", ()):
            print_error(line)
        print_metrics(result)
        print_prompt_choices(result.get("prompt_choices") or [])
        write_output(self.json_file, to_json(result), "result")
        if self.report is not None:
            from clipkit.report.evaluation import evaluation_report

            write_output(self.report, evaluation_report(result), "report")


def cache_of(folder: str | None) -> "Cache":
    """Convert the value of --cache to the argument `cache` of the evaluation functions."""
    return False if folder == "none" else folder


def measuring_command(app: typer.Typer) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds an evaluation command to `app`.

    The command has the options of `Measuring`, whose values are passed as the first argument of the decorated function.
    The other parameters of the function become additional options.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        specific = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in list(inspect.signature(function).parameters.values())[1:]
        ]
        model, *others = inspect.signature(Measuring).parameters.values()

        @functools.wraps(function)
        def command(**given: Any) -> None:
            shared = Measuring(**{parameter.name: given.pop(parameter.name) for parameter in (model, *others)})
            check_models(shared.model)
            function(shared, **given)

        parameters = [model, *specific, *others]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        registered: Callable[..., None] = app.command()(command)
        return registered

    return decorate
