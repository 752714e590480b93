"""`clipkit eval …`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from clipkit.errors import DataError, OutputError

app = typer.Typer(help="Measure a model.", no_args_is_help=True, rich_markup_mode=None)

Model = Annotated[str, typer.Option("--model", metavar="M", help="A Hub repository, a folder or a run.")]
BatchSize = Annotated[int, typer.Option(help="Pictures in one forward; figures do not depend on it.", min=1)]
Json = Annotated[Path | None, typer.Option("--json", metavar="F", help="Write the result here.")]
Report = Annotated[Path | None, typer.Option(metavar="F.html", help="Write a page to look at here.")]


@app.command()
def retrieval(
    model: Model,
    data: Annotated[str, typer.Option(metavar="D", help="A CSV or TSV with image and caption columns.")],
    batch_size: BatchSize = 64,
    json_file: Json = None,
    report: Report = None,
) -> None:
    """Recall at 1, 5 and 10 between pictures and captions, both ways."""
    from clipkit.data import read_pairs

    pairs = read_pairs(data)
    _check_writable(json_file, report)
    from clipkit import evaluation

    result = evaluation.retrieval(_load(model), pairs, batch_size=batch_size, progress=True)
    _show(dict(result), json_file, report)


@app.command()
def zeroshot(
    model: Model,
    data: Annotated[str, typer.Option(metavar="D", help="Class folders, or a CSV with image and label columns.")],
    classes: Annotated[
        Path | None, typer.Option(metavar="F", help="Class names, one a line; the data's own without.")
    ] = None,
    templates: Annotated[
        Path | None,
        typer.Option(metavar="F", help="Prompts, one a line with {c} for the class; or a JSON of class to sentences."),
    ] = None,
    batch_size: BatchSize = 64,
    json_file: Json = None,
    report: Report = None,
) -> None:
    """Accuracy of choosing among the classes' names."""
    from clipkit.data import read_labelled

    labelled = read_labelled(data)
    names = _lines(classes) if classes is not None else None
    prompts = _templates(templates) if templates is not None else None
    _check_writable(json_file, report)
    from clipkit import evaluation
    from clipkit.evaluation.zeroshot import TEMPLATES

    result = evaluation.zeroshot(
        _load(model),
        labelled,
        classes=names,
        templates=prompts or TEMPLATES,
        batch_size=batch_size,
        progress=True,
    )
    _show(dict(result), json_file, report)


def _load(model: str) -> Any:
    from clipkit.cli.process import keep_freed_memory
    from clipkit.models import load

    keep_freed_memory()
    return load(model)


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as lines of text ({error})") from None
    if not lines:
        raise DataError(f"{path}: is empty; write one entry a line")
    return lines


def _templates(path: Path) -> list[str] | dict[str, list[str]]:
    lines = _lines(path)
    if path.suffix != ".json":
        return lines
    try:
        own = json.loads("\n".join(lines))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: is not valid JSON ({error})") from None
    if not isinstance(own, dict) or not all(isinstance(sentences, list) for sentences in own.values()):
        raise DataError(f'{path}: must be an object of class to sentences, as {{"cat": ["a cat", "a sleeping cat"]}}')
    return own


def _check_writable(*files: Path | None) -> None:
    for file in files:
        if file is not None and not file.absolute().parent.is_dir():
            raise OutputError(f"{file}: there is no folder {file.absolute().parent}; make it first")


def _show(result: dict[str, Any], json_file: Path | None, report: Path | None) -> None:
    from clipkit.cli.tables import print_metrics

    print_metrics(result["metrics"], f"{result['model']} on {result['data']['name']}")
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"result: {json_file}")
    if report is not None:
        from clipkit.report import evaluation_report

        report.write_text(evaluation_report(result), encoding="utf-8")
        print(f"report: {report}")
