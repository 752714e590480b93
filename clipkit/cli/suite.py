"""Command `clipkit eval suite`: evaluate several models on many datasets."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipkit.cli.inputs import check_file, check_models
from clipkit.cli.launch import joined_processes, run_again_on_processes
from clipkit.cli.measuring import CacheFolder, ProcessCount, cache_of
from clipkit.cli.output import check_writable, write_file, write_output
from clipkit.errors import OutputError, TrainingError
from clipkit.suite_files import suite_names

if TYPE_CHECKING:
    from clipkit.evaluation.suites import SuiteResult


def suite(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE",
            help="Built-in suite or dataset, e.g. retrieval or imagenet1k (docs/suites.md lists them), or a YAML file "
            "with a suite.",
            autocompletion=suite_names,
        ),
    ],
    models: Annotated[
        list[str], typer.Option("--model", metavar="M", help="Model to evaluate; may be given several times.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Folder for the results. If it contains an unfinished suite, the suite is resumed."
        ),
    ] = Path("suite"),
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the numbers of images and captions to encode, and the estimated time and disk space, "
            "without evaluating. The speed of each model is measured for a few seconds.",
        ),
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="F.json", help="Write one row per model and dataset to this JSON file, for leaderboards."
        ),
    ] = None,
    cache: CacheFolder = None,
    processes: ProcessCount = 1,
) -> None:
    """Evaluate models on many datasets.

    Each image and each caption is encoded once for all datasets. Writes one table and one report for all models and
    datasets. Run the same command again to resume an unfinished suite.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        check_file(Path(name), "give a YAML file, or the name of a built-in suite or dataset")
    if len(models) == 1:  # with several models, report the missing ones at the end and evaluate the others
        check_models(*models)
    from clipkit.evaluation.suites import leaderboard, read_suite, run_suite

    chosen = read_suite(name)
    if out.exists():
        check_writable(out / "results.json", out / "table.md", out / "report.html")
    check_writable(json_file)
    if processes > 1:
        run_again_on_processes(processes)
    from clipkit.cli.process import keep_freed_memory

    keep_freed_memory()
    group = joined_processes()

    def log(line: str) -> None:
        if group.is_main:
            print(line, flush=True)

    def note(line: str) -> None:
        if group.is_main:
            print(line, flush=True, file=sys.stdout if dry_run else sys.stderr)

    try:
        result = run_suite(
            chosen, models, out, cache=cache_of(cache), processes=group, log=log, note=note, progress=True,
            dry_run=dry_run,
        )  # fmt: skip
    except OSError as error:
        raise OutputError(f"{out}: cannot be written to ({error.strerror or error}); give another folder") from None
    if dry_run:
        return
    if not result.rows:
        counts = {"not available": len(result.unreached), "failed": len(result.failed)}
        reasons = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        raise TrainingError(
            f"{name}: no dataset could be evaluated ({reasons}); the lines above contain the errors: fix them and "
            "run the command again"
        )
    if group.is_main:
        _show(result, out)
        write_output(json_file, json.dumps(leaderboard(result), indent=2, ensure_ascii=False) + "\n", "rows")
    if result.failed:
        raise typer.Exit(1)


def _show(result: "SuiteResult", out: Path) -> None:
    from clipkit.cli.tables import print_table
    from clipkit.report.suite import suite_markdown, suite_report, suite_tables

    content = result.to_dict()
    for table in suite_tables(content):
        print_table(table.header, table.rows, f"\n{table.title}")
        if table.note:
            print(table.note)
    write_file(out / "table.md", suite_markdown(content))
    write_file(out / "report.html", suite_report(content))
    print(f"{out}: results.json, table.md, report.html, and one result file per dataset and model")
