"""`clipkit eval …`."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipkit.errors import DataError, OutputError, TrainingError
from clipkit.files import write_whole

if TYPE_CHECKING:
    from clipkit.evaluation import Result
    from clipkit.processes import Processes

app = typer.Typer(help="Measure a model.", no_args_is_help=True, rich_markup_mode=None)

Model = Annotated[str, typer.Option("--model", metavar="M", help="A Hub repository, a folder or a run.")]
BatchSize = Annotated[int, typer.Option(help="Images in one forward; figures do not depend on it.", min=1)]
Json = Annotated[Path | None, typer.Option("--json", metavar="F", help="Write the result here.")]
Report = Annotated[Path | None, typer.Option(metavar="F.html", help="Write a page to look at here.")]
Predictions = Annotated[
    Path | None, typer.Option(metavar="F.parquet", help="Write what each query got, with its scores, here.")
]
CacheFolder = Annotated[
    str | None,
    typer.Option(
        "--cache",
        metavar="DIR|none",
        help="Where features are kept; without it $CLIPKIT_CACHE, or clipkit in your cache folder.",
    ),
]
Count = Annotated[int, typer.Option("--processes", help="Processes to run on, on this machine.", min=1)]


@app.command()
def retrieval(
    model: Model,
    data: Annotated[str, typer.Option(metavar="D", help="Images with captions: a table, a folder, shards, hf:NAME.")],
    merge_captions: Annotated[
        bool,
        typer.Option("--merge-captions", help="Identical captions are one query, which any of their images answers."),
    ] = False,
    batch_size: BatchSize = 64,
    cache: CacheFolder = None,
    json_file: Json = None,
    report: Report = None,
    predictions: Predictions = None,
    processes: Count = 1,
) -> None:
    """Recall, ranks and mean average precision between images and captions, both ways."""
    from clipkit.data import read_pairs

    pairs = read_pairs(data)

    def work(together: "Processes | None") -> "Result":
        from clipkit import evaluation

        return evaluation.retrieval(
            _load(model),
            pairs,
            merge_captions=merge_captions,
            batch_size=batch_size,
            cache=_cache(cache),
            predictions=predictions,
            processes=together,
            progress=True,
        )

    _measure(work, processes, json_file, report, predictions, data)


@app.command()
def zeroshot(
    model: Model,
    data: Annotated[str, typer.Option(metavar="D", help="Class folders, or a table, shards or hf:NAME with labels.")],
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="F|NAME",
            help="Class names, one a line; or a JSON of label to name or names; or imagenet. The data's own without.",
        ),
    ] = None,
    templates: Annotated[
        str | None,
        typer.Option(
            metavar="F|NAME",
            help="Prompts, one a line with {c} for the class; or a JSON of class to sentences; or imagenet "
            "(80 prompts), imagenet_simple (7).",
        ),
    ] = None,
    batch_size: BatchSize = 64,
    cache: CacheFolder = None,
    json_file: Json = None,
    report: Report = None,
    predictions: Predictions = None,
    processes: Count = 1,
) -> None:
    """Accuracy of choosing among the classes' names; with several classes an image, mean average precision."""
    from clipkit.data import read_classes, read_labeled, read_templates

    labelled = read_labeled(data)
    names = read_classes(classes) if classes is not None else None
    prompts = read_templates(templates) if templates is not None else None

    def work(together: "Processes | None") -> "Result":
        from clipkit import evaluation

        return evaluation.zeroshot(
            _load(model),
            labelled,
            classes=names,
            templates=prompts,
            batch_size=batch_size,
            cache=_cache(cache),
            predictions=predictions,
            processes=together,
            progress=True,
        )

    _measure(work, processes, json_file, report, predictions, data, classes, templates)


@app.command()
def probe(
    model: Model,
    data: Annotated[str, typer.Option(metavar="D", help="To learn from: class folders, or anything with labels.")],
    test: Annotated[
        str | None, typer.Option(metavar="D", help="To measure on; without it a fifth of each class of --data.")
    ] = None,
    shots: Annotated[int | None, typer.Option(help="Learn from so many images a class.", min=1)] = None,
    seeds: Annotated[int, typer.Option(help="Draws of the shots; figures are their means.", min=1)] = 3,
    neighbours: Annotated[int, typer.Option(help="k of the nearest neighbours.", min=1)] = 20,
    batch_size: BatchSize = 64,
    cache: CacheFolder = None,
    json_file: Json = None,
    report: Report = None,
    predictions: Predictions = None,
    processes: Count = 1,
) -> None:
    """A linear classifier, and nearest neighbours, on the image features."""
    from clipkit.data import read_labeled

    learned = read_labeled(data)
    measured = read_labeled(test) if test is not None else None

    def work(together: "Processes | None") -> "Result":
        from clipkit import evaluation

        return evaluation.probe(
            _load(model),
            learned,
            test=measured,
            shots=shots,
            seeds=seeds,
            neighbours=neighbours,
            batch_size=batch_size,
            cache=_cache(cache),
            predictions=predictions,
            processes=together,
            progress=True,
        )

    _measure(work, processes, json_file, report, predictions, data, test)


@app.command()
def compositional(
    model: Model,
    data: Annotated[
        str,
        typer.Option(
            metavar="D",
            help="A CSV, JSON or JSONL with image, caption and negative_caption, or image_0, image_1, caption_0 and "
            "caption_1; or a folder of such files, one a category.",
        ),
    ],
    batch_size: BatchSize = 64,
    cache: CacheFolder = None,
    json_file: Json = None,
    report: Report = None,
    predictions: Predictions = None,
    processes: Count = 1,
) -> None:
    """Telling apart captions, or images, that differ in one thing (SugarCrepe, Winoground)."""
    from clipkit.data import read_near_misses

    near = read_near_misses(data)

    def work(together: "Processes | None") -> "Result":
        from clipkit import evaluation

        return evaluation.compositional(
            _load(model),
            near,
            batch_size=batch_size,
            cache=_cache(cache),
            predictions=predictions,
            processes=together,
            progress=True,
        )

    _measure(work, processes, json_file, report, predictions, data)


@app.command()
def suite(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A shipped suite or data set, or a YAML file.")],
    models: Annotated[list[str], typer.Option("--model", metavar="M", help="May be given several times.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; one that is begun is gone on with.")] = Path(
        "suite"
    ),
    cache: CacheFolder = None,
    processes: Count = 1,
) -> None:
    """Many data sets with several models: one table, one report; goes on where it was stopped."""
    from clipkit.evaluation.suites import read_suite, run_suite

    chosen = read_suite(name)
    if processes > 1:
        from clipkit.cli.launch import run_again_on_processes

        run_again_on_processes(processes)
        return
    from clipkit.cli.process import keep_freed_memory

    keep_freed_memory()
    together = _joined()
    is_main = together is None or together.is_main

    def say(line: str) -> None:
        if is_main:
            print(line, flush=True)

    try:
        found = run_suite(chosen, models, out, cache=_cache(cache), processes=together, say=say, progress=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written to ({error.strerror or error}); give another folder") from None
    if not found.rows:
        reasons = {"could not be reached": found.unreached, "failed": found.failed}
        said = " and ".join(f"{len(own)} {what}" for what, own in reasons.items() if own)
        raise TrainingError(f"{name}: nothing was measured, {said}; why stands above")
    if is_main:
        from clipkit.cli.tables import print_table
        from clipkit.report import suite_markdown, suite_report, suite_tables

        result = found.to_dict()
        for table in suite_tables(result):
            print_table(table.header, table.rows, f"\n{table.title}")
        _write(out / "table.md", suite_markdown(result))
        _write(out / "report.html", suite_report(result))
        print(f"{out}: results.json, table.md, report.html, and a result for each data set and model")
    if found.failed:
        raise typer.Exit(1)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="A result, as --json writes or a run holds.")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="Another one on the same data.")],
    json_file: Json = None,
    report: Report = None,
) -> None:
    """Which of two results is better, by how much, and where they disagree most."""
    results = [_result(file) for file in (first, second)]
    _check_writable(json_file, report, inputs=(first, second))
    from clipkit.cli.tables import print_comparison
    from clipkit.evaluation import compare as compared

    comparison = compared(*results)
    print_comparison(comparison, str(first), str(second))
    if json_file is not None:
        _write(json_file, json.dumps(comparison, indent=2, ensure_ascii=False) + "\n")
        print(f"comparison: {json_file}")
    if report is not None:
        from clipkit.report import comparison_report

        _write(report, comparison_report(comparison, results[0], results[1]))
        print(f"report: {report}")


def _result(file: Path) -> dict[str, Any]:
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as a result ({error}); give a file that --json wrote") from None
    parts = {"task": str, "model": str, "data": dict, "settings": dict, "metrics": dict}
    if not isinstance(result, dict) or not all(isinstance(result.get(name), kind) for name, kind in parts.items()):
        raise DataError(f"{file}: is not a result; give a file that --json wrote, or a run's results.json")
    return result


def _load(model: str) -> Any:
    from clipkit.cli.process import keep_freed_memory
    from clipkit.models import load

    keep_freed_memory()
    return load(model)


def _cache(folder: str | None) -> Any:
    return False if folder == "none" else folder


def _check_writable(*files: Path | None, inputs: Sequence[str | Path | None] = ()) -> None:
    """Before anything is computed: each file has a place of its own, and none is an input."""
    taken = {Path(str(source).partition("?")[0]).resolve(): source for source in inputs if source is not None}
    for file in files:
        if file is None:
            continue
        if not file.absolute().parent.is_dir():
            raise OutputError(f"{file}: there is no folder {file.absolute().parent}; make it first")
        if file.is_dir():
            raise OutputError(f"{file}: is a folder; give a file")
        if file.resolve() in taken:
            raise OutputError(f"{file}: would be overwritten, it is given as {taken[file.resolve()]} too; give another")
        taken[file.resolve()] = file


def _measure(
    work: "Callable[[Processes | None], Result]",
    count: int,
    json_file: Path | None,
    report: Path | None,
    predictions: Path | None,
    *inputs: str | None,
) -> None:
    """Evaluate on so many processes, and show and write what was found, once."""
    _check_writable(json_file, report, predictions, inputs=inputs)
    if count > 1:
        from clipkit.cli.launch import run_again_on_processes

        run_again_on_processes(count)
        return
    result = work(_joined())
    if int(os.environ.get("RANK", "0")) == 0:
        _show(result, json_file, report)


def _joined() -> "Processes | None":
    """The processes that a launcher started; None where this is the only one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from clipkit.processes import Processes, accelerator_of

    return Processes(accelerator_of())


def _show(result: "Result", json_file: Path | None, report: Path | None) -> None:
    from clipkit.cli.tables import print_metrics
    from clipkit.evaluation import to_json

    print_metrics(result["metrics"], f"{result['model']} on {result['data']['name']}")
    if json_file is not None:
        _write(json_file, to_json(result))
        print(f"result: {json_file}")
    if report is not None:
        from clipkit.report import evaluation_report

        _write(report, evaluation_report(result))
        print(f"report: {report}")


def _write(file: Path, text: str) -> None:
    try:
        write_whole(file, text)
    except OSError as error:
        raise OutputError(f"{file}: cannot be written ({error.strerror}); give another place") from None
