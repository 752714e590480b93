"""Command `clipkit eval`: evaluate models and compare results."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack

import typer

from clipkit.cli.inputs import check_file
from clipkit.cli.measuring import JsonFile, Measuring, ReportFile, measuring_command
from clipkit.cli.output import check_writable, write_output
from clipkit.cli.suite import suite
from clipkit.errors import UserError
from clipkit.tasks import TASKS, TaskRow

if TYPE_CHECKING:
    from clipkit.evaluation import Result
    from clipkit.evaluation.tasks.task import Options
    from clipkit.models import DualEncoder

app = typer.Typer(help="Evaluate models and compare results.", no_args_is_help=True, rich_markup_mode=None)


Explain = Annotated[
    bool,
    typer.Option(
        "--explain",
        help="In the report, show the most confident mistakes, and the parts of the images that match the wrong answer "
        "and the correct answer.",
    ),
]
ExplainedQueries = Annotated[
    list[str] | None,
    typer.Option(
        "--explain-query",
        metavar="TEXT|F",
        help="In the report, show the images that best match TEXT, and the matching parts of these images. TEXT does "
        "not have to occur in the data. F is a text file with one query per line. May be given several times. Implies "
        "--explain.",
    ),
]


def _explained(measuring: Measuring, explain: bool, queries: list[str] | None) -> bool | list[str]:
    """Convert --explain and --explain-query to the argument `explain` of an evaluation function."""
    from clipkit.data import read_queries

    if (explain or queries) and measuring.report is None and measuring.json_file is None:
        option = "--explain" if explain else "--explain-query"
        raise UserError(f"{option} adds maps to the report, but no report was requested; give --report F.html")
    return [text for query in queries or [] for text in read_queries(query)] or explain


def _task(name: str, **given: Any) -> Callable[..., "Result"]:
    """Return a function that imports an evaluation task and runs the task with the given arguments."""

    def evaluate(model: "DualEncoder", **options: Any) -> "Result":
        from clipkit import evaluation

        result: Result = getattr(evaluation, name)(model, **given, **options)
        return result

    return evaluate


@measuring_command(app)
def retrieval(
    measuring: Measuring,
    data: Annotated[
        str,
        typer.Option(
            metavar="D",
            help="Images with captions: a table, a folder, shards (WebDataset), or hf:NAME (Hugging Face Hub).",
        ),
    ],
    merge_captions: Annotated[
        bool,
        typer.Option(
            "--merge-captions", help="Treat identical captions as one query, for which any of their images is correct."
        ),
    ] = False,
    explain: Explain = False,
    explain_query: ExplainedQueries = None,
) -> None:
    """Evaluate image-text retrieval.

    Reports recall, ranks and mean average precision from images to captions and from captions to images.
    """
    from clipkit.data import read_pairs

    explained = _explained(measuring, explain, explain_query)
    pairs = read_pairs(data)
    measuring.measure(_task("retrieval", data=pairs, merge_captions=merge_captions, explain=explained), data)


@measuring_command(app)
def zeroshot(
    measuring: Measuring,
    data: Annotated[
        str,
        typer.Option(
            metavar="D",
            help="Labeled images: class folders, a table, shards (WebDataset), or hf:NAME (Hugging Face Hub).",
        ),
    ],
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="F|NAME",
            help="Class names: a file F, or a built-in list NAME. F is a text file with one name per line, or a JSON "
            'file that contains a list of names or an object {"label": "name"}. NAME is imagenet. Default: the class '
            "names of the dataset.",
        ),
    ] = None,
    templates: Annotated[
        str | None,
        typer.Option(
            metavar="F|NAME|PROMPT",
            help="Prompts: a file F, a built-in list NAME, or a single PROMPT. F is a text file with one prompt per "
            'line, or a JSON file that contains a list of prompts or an object {"class": [prompts]}. NAME is imagenet '
            "(80 prompts) or imagenet_simple (7 prompts). In a prompt, {c} is replaced with the class name, e.g. "
            "'a drawing of a {c}'. Default: the prompts of the dataset, or 'a photo of a {c}.' if it has none.",
        ),
    ] = None,
    compare_prompts: Annotated[
        bool,
        typer.Option(
            "--compare-prompts",
            help="Also report the accuracy for the original class names and for cleaned ones (without numbers and "
            "underscores), each without a prompt and with 1, 7 and 80 prompts per class.",
        ),
    ] = False,
    explain: Explain = False,
    explain_query: ExplainedQueries = None,
) -> None:
    """Evaluate zero-shot classification.

    Reports the accuracy, i.e. the share of images for which the correct class gets the highest score. If images have
    several labels, reports mean average precision instead.
    """
    from clipkit.data import read_classes, read_labeled, read_templates

    explained = _explained(measuring, explain, explain_query)
    labeled = read_labeled(data)
    if explain and labeled.several:
        explained = True  # the task reports the error; with a list of queries it would not
    names = read_classes(classes) if classes is not None else None
    prompts = read_templates(templates) if templates is not None else None

    measuring.measure(
        _task(
            "zeroshot",
            data=labeled,
            classes=names,
            templates=prompts,
            compare_prompts=compare_prompts,
            explain=explained,
        ),
        data,
        classes,
        templates,
    )


@measuring_command(app)
def probe(
    measuring: Measuring,
    data: Annotated[
        str,
        typer.Option(
            metavar="D",
            help="Labeled training images: class folders, a table, shards (WebDataset), or hf:NAME (Hugging Face Hub).",
        ),
    ],
    test: Annotated[
        str | None,
        typer.Option(
            metavar="D", help="Labeled test images. Default: one fifth of the images of each class of --data."
        ),
    ] = None,
    shots: Annotated[
        int | None, typer.Option(metavar="N", help="Number of training images per class. Default: all.", min=1)
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="With --shots: number of random draws of the training images. The metrics are averaged over the "
            "draws.",
            min=1,
        ),
    ] = 3,
    neighbours: Annotated[
        int, typer.Option(metavar="K", help="Number of neighbors of the k-nearest-neighbor classifier.", min=1)
    ] = 20,
) -> None:
    """Evaluate a linear probe and k-nearest neighbors.

    The image tower stays frozen; a linear classifier and a k-nearest-neighbor classifier are trained on its features.
    """
    from clipkit.data import read_labeled

    training = read_labeled(data)
    measured = read_labeled(test) if test is not None else None

    measuring.measure(
        _task("probe", data=training, test=measured, shots=shots, seeds=seeds, neighbours=neighbours),
        data,
        test,
    )


def _add_command(name: str, row: TaskRow) -> None:
    """Add the command of an evaluation task that needs only the options shared by all evaluation commands."""

    def command(measuring: Measuring, data: Annotated[str, typer.Option(metavar="D", help=row.data)]) -> None:
        from clipkit.data.sources.read import check_exists

        check_exists(data)
        from clipkit.evaluation.tasks.task import TaskData, task_of

        task = task_of(name)
        given = TaskData(task.read(data))

        def evaluate(model: "DualEncoder", **options: Unpack["Options"]) -> "Result":
            return task.run(model, given, options)

        measuring.measure(evaluate, data)

    command.__name__, command.__doc__ = name, row.help
    measuring_command(app)(command)


for _name, _row in TASKS.items():
    if _row.help:
        _add_command(_name, _row)
app.command()(suite)


@app.command()
def compare(
    first: Annotated[
        Path,
        typer.Argument(
            metavar="A.json",
            help="First result: a file that clipkit eval … --json wrote, results.json of a run, or the folder of a "
            "suite.",
        ),
    ],
    second: Annotated[
        Path | None,
        typer.Argument(metavar="B", help="Second result, of the same task and data, or the folder of a second suite."),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="M",
            help="Model to compare, if a suite contains several models. Give this option twice: first a model of A, "
            "then a model of B. Without B, give two models of A.",
        ),
    ] = None,
    json_file: JsonFile = None,
    report: ReportFile = None,
) -> None:
    """Compare two results, or two models over a suite.

    Prints the paired differences of the metrics with 95 % confidence intervals, and the queries whose results differ
    most. For suites, prints the difference on each dataset with its p-value, corrected for the number of datasets
    (Holm), and a summary sentence for papers. If both models are in suite A, leave out B.
    """
    advice = "give a file that clipkit eval … --json wrote, results.json of a run, or the folder of a suite"
    for file in (first, second):
        if file is not None and not (file / "results.json").is_file():
            check_file(file, advice)
    from clipkit.evaluation.compare_suites import is_suite

    if is_suite(first):
        _compare_suites(first, second, models or [], json_file, report)
        return
    if second is None or models:
        raise UserError(f"{first}: is a single result, not a suite; give a second result, and leave out --model")
    from clipkit.cli.tables import print_comparison
    from clipkit.evaluation import compare as compared
    from clipkit.evaluation import read_result

    results = [read_result(file) for file in (first, second)]
    check_writable(json_file, report, inputs=(first, second))
    comparison = compared(*results)
    print_comparison(comparison, str(first), str(second))
    write_output(json_file, json.dumps(comparison, indent=2, ensure_ascii=False) + "\n", "comparison")
    if report is not None:
        from clipkit.report.comparison import comparison_report

        write_output(report, comparison_report(comparison, *results), "report")


def _compare_suites(
    first: Path, second: Path | None, models: list[str], json_file: Path | None, report: Path | None
) -> None:
    check_writable(json_file, report, inputs=[first, second])
    from clipkit.cli.tables import print_table
    from clipkit.cli.terminal import print_error
    from clipkit.evaluation.compare_suites import compare_suites
    from clipkit.report.comparison import suite_comparison_report, suite_comparison_table

    comparison = compare_suites(first, second, models)
    for name, why in comparison["skipped"].items():
        print_error(f"{name}: not compared: {why}")
    table = suite_comparison_table(comparison)
    print(f"A: {comparison['first']}\nB: {comparison['second']}")
    print_table(table.header, table.rows, table.title)
    print(comparison["sentence"])
    write_output(json_file, json.dumps(comparison, indent=2, ensure_ascii=False) + "\n", "comparison")
    if report is not None:
        write_output(report, suite_comparison_report(comparison), "report")
