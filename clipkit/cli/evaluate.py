"""`clipkit eval`: evaluate models, compare results."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipkit.cli.measuring import JsonFile, Measuring, ReportFile, measuring_command
from clipkit.cli.output import check_writable, write_output
from clipkit.cli.suite import suite

if TYPE_CHECKING:
    from clipkit.evaluation import Result

app = typer.Typer(help="Evaluate models.", no_args_is_help=True, rich_markup_mode=None)


def _task(name: str) -> Callable[..., "Result"]:
    """Return the function of a task; imports torch, and is therefore called after the data has been read."""
    from clipkit import evaluation

    task: Callable[..., Result] = getattr(evaluation, name)
    return task


@measuring_command(app)
def retrieval(
    measuring: Measuring,
    data: Annotated[
        str, typer.Option(metavar="D", help="Images with captions: a table, a folder, shards, or hf:NAME.")
    ],
    merge_captions: Annotated[
        bool,
        typer.Option("--merge-captions", help="Treat identical captions as one query; any of their images is correct."),
    ] = False,
) -> None:
    """Measure image-text retrieval.

    Recall, ranks and mean average precision between images and captions, in both directions.
    """
    from clipkit.data import read_pairs

    pairs = read_pairs(data)
    measuring.measure(partial(_task("retrieval"), data=pairs, merge_captions=merge_captions), data)


@measuring_command(app)
def zeroshot(
    measuring: Measuring,
    data: Annotated[str, typer.Option(metavar="D", help="Labeled images: class folders, a table, shards, or hf:NAME.")],
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="F|NAME",
            help="Class names: a text file with one per line, a JSON file of label to name or list of names, or "
            "imagenet. Default: the dataset's class names.",
        ),
    ] = None,
    templates: Annotated[
        str | None,
        typer.Option(
            metavar="F|NAME",
            help="Prompts: a text file with one per line and {c} for the class name, a JSON file of class to list of "
            "sentences, imagenet (80 prompts) or imagenet_simple (7). Default: the dataset's prompts, otherwise "
            "'a photo of a {c}.'",
        ),
    ] = None,
) -> None:
    """Measure zero-shot classification.

    Accuracy of choosing among the class names; for images with several labels, mean average precision.
    """
    from clipkit.data import read_classes, read_labeled, read_templates

    labeled = read_labeled(data)
    names = read_classes(classes) if classes is not None else None
    prompts = read_templates(templates) if templates is not None else None

    measuring.measure(
        partial(_task("zeroshot"), data=labeled, classes=names, templates=prompts), data, classes, templates
    )


@measuring_command(app)
def probe(
    measuring: Measuring,
    data: Annotated[
        str, typer.Option(metavar="D", help="Training images with labels: class folders, a table, shards, or hf:NAME.")
    ],
    test: Annotated[
        str | None, typer.Option(metavar="D", help="Test images with labels. Default: a fifth of each class of --data.")
    ] = None,
    shots: Annotated[int | None, typer.Option(help="Training images per class. Default: all.", min=1)] = None,
    seeds: Annotated[
        int, typer.Option(help="Random draws of the shots; the metrics are means over the draws.", min=1)
    ] = 3,
    neighbours: Annotated[int, typer.Option(help="Number of nearest neighbors (k).", min=1)] = 20,
) -> None:
    """Measure a linear probe and k-NN.

    A linear classifier and k nearest neighbors are fitted to frozen image features.
    """
    from clipkit.data import read_labeled

    training = read_labeled(data)
    measured = read_labeled(test) if test is not None else None

    measuring.measure(
        partial(_task("probe"), data=training, test=measured, shots=shots, seeds=seeds, neighbours=neighbours),
        data,
        test,
    )


@measuring_command(app)
def compositional(
    measuring: Measuring,
    data: Annotated[
        str,
        typer.Option(
            metavar="D",
            help="A CSV, JSON or JSONL file with the columns image, caption and negative_caption (SugarCrepe), or "
            "image_0, image_1, caption_0 and caption_1 (Winoground); or a folder of such files, one per category.",
        ),
    ],
) -> None:
    """Measure near misses.

    The model chooses between captions, or images, that differ in one detail.
    """
    from clipkit.data import read_near_misses

    near = read_near_misses(data)
    measuring.measure(partial(_task("compositional"), data=near), data)


app.command()(suite)


@app.command()
def compare(
    first: Annotated[
        Path, typer.Argument(metavar="A.json", help="A result: a file written by --json, or results.json of a run.")
    ],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="Another result of the same task and data.")],
    json_file: JsonFile = None,
    report: ReportFile = None,
) -> None:
    """Compare two results on the same data.

    Paired differences with intervals, and the queries that changed most.
    """
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
