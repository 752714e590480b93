"""Commands `clipkit doctor` and `clipkit runs`."""

from pathlib import Path
from typing import Annotated

import typer

from clipkit.cli.inputs import check_run
from clipkit.errors import DataError, UserError


def doctor(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished or unfinished run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Report problems in the recipe and logs of a run, with advice."""
    import json

    check_run(run)
    from clipkit.training.guards.doctor import examine

    state, findings = examine(run)
    if as_json:
        shown = {"run": str(run), "state": state, "findings": [finding.to_dict() for finding in findings]}
        print(json.dumps(shown, indent=2))
        return
    print(state)
    for finding in findings:
        print(f"\n{finding.line().removesuffix(f'; {finding.advice}')}\n  {finding.advice}")
    if not findings:
        print("no problems found")


def runs(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR | compare A B",
            help="Folder that contains runs; or the word compare, followed by two run folders.",
        ),
    ],
) -> None:
    """List the runs in a folder, or compare two runs.

    clipkit runs DIR lists the runs; clipkit runs compare A B compares the runs A and B.
    """
    if names[0] == "compare" and len(names) == 3:
        _compare(Path(names[1]), Path(names[2]))
    elif len(names) == 1:
        _list(Path(names[0]))
    else:
        raise UserError(f"runs got the arguments {' '.join(names)}; use clipkit runs DIR, or clipkit runs compare A B")


def _list(folder: Path) -> None:
    from clipkit.cli.tables import print_table
    from clipkit.report.runs import runs_in
    from clipkit.tasks import number, readable

    rows = []
    for run in runs_in(folder):
        metric = "–"
        if run.metric is not None and run.value is not None:
            metric = f"{readable(run.metric)} {number(run.metric, run.value)}"
            if run.low is not None and run.high is not None:
                metric += f" ({number(run.metric, run.low).removesuffix(' %')} – {number(run.metric, run.high)})"
        loss = "–" if run.loss is None else f"{run.loss:.3f}"
        duration = "–" if run.seconds is None else f"{run.seconds:.0f} s"
        images = "–" if run.images is None else f"{run.images:,}"
        described = [run.name, run.state, run.model, Path(run.data).name]
        rows.append([*described, metric, images, loss, duration, str(run.warnings or "")])
    header = ["run", "state", "model", "data", "metric", "on images", "last loss", "duration", "warnings"]
    print_table(header, rows, str(folder))


def _compare(first: Path, second: Path) -> None:
    for run in (first, second):
        check_run(run)
    from clipkit.cli.tables import print_columns, print_comparison, print_table
    from clipkit.evaluation import compare
    from clipkit.report.runs import differences
    from clipkit.run_files import results_of
    from clipkit.tasks import named_data

    changed = differences(first, second)
    if changed:
        print_table(["", "A", "B"], [list(row) for row in changed], "Differences between the recipes")
    else:
        print("the recipes are equal")
    one, two = results_of(first), results_of(second)
    if one is None or two is None:
        print(f"{first if one is None else second}: has no results yet")
        return
    try:
        print_comparison(compare(one, two), str(first), str(second))
    except DataError as error:  # different data or tasks: show the metrics side by side, without paired differences
        columns = {
            f"{name} {run}: {named_data(result.get('data', {}))}": result["metrics"]
            for name, run, result in (("A", first, one), ("B", second, two))
        }
        print_columns(columns, f"Metrics side by side, because the runs cannot be compared query by query: {error}")
