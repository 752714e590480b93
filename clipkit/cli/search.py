"""Command `clipkit search`: search an index by words, images and columns."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipkit.cli.inputs import check_file, check_models
from clipkit.cli.output import check_writable, write_output
from clipkit.errors import DataError, UserError

if TYPE_CHECKING:
    from clipkit.search import Hit

_CAPTION = 60  # characters of a caption in the table


def search(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of an index that clipkit embed wrote.")],
    query: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Text to search for. Several texts are combined into one query; '0.5 * snow' is the text snow "
            "with the weight 0.5.",
        ),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(metavar="F", help="Image file that results should resemble; may be given several times."),
    ] = None,
    minus: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Text that results should not match; may be given several times."),
    ] = None,
    like: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="Image of the index that results should resemble: its location as printed in the results of a "
            "search. May be given several times.",
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="FILTER",
            help='Show only images that fulfill this condition on their columns, e.g. "year > 2020 and city '
            "in ('Seoul', 'Lima')\".",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", metavar="N", help="Maximum number of results.", min=1)] = 20,
    precision: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Show only results that are likely relevant. With 0.9, about 90 % of the shown results are relevant, "
            "averaged over many searches. Default: show all results.",
        ),
    ] = None,
    queries: Annotated[
        Path | None, typer.Option(metavar="F.txt", help="Text file with one query per line, instead of TEXT.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="M",
            help="Folder or Hub repository from which to load the model of the index. An ONNX export loads "
            "faster. Default: the value of --model in clipkit embed.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    show: Annotated[
        Path | None, typer.Option(metavar="F.html", help="Write the results with thumbnails to this HTML file.")
    ] = None,
) -> None:
    """Search an index by words, images and columns.

    Examples: clipkit search INDEX "two dogs in snow" --minus "a person" --where "year > 2020"; clipkit search INDEX
    --image photo.jpg; clipkit search INDEX --like images/12.jpg.
    """
    from clipkit.search.folder import check_is_index

    check_is_index(index)
    if model is not None:
        check_models(model)
    if queries is not None and (query or image or minus or like):
        raise UserError(f"--queries {queries} was given together with another query; give only one of the two")
    if minus and not (queries or query or image or like):
        raise UserError(f"--minus {minus[0]} was given without a query; add words, --image or --like")
    if not (queries or query or image or like):
        raise UserError('no query was given; give words, such as "two dogs in snow", --image, --like or --queries')
    for file in image or ():
        check_file(Path(file), "give an image file to --image")
        _check_image(Path(file))
    if queries is not None:
        check_file(queries, "give a text file with one query per line")
    check_writable(show, inputs=(queries, *(image or ())))
    from clipkit.search import Index

    opened = Index(index, model=model)
    options: dict[str, Any] = {"where": where, "k": k, "precision": precision}
    if queries is not None:
        texts = query_lines(queries)
        found = dict(zip(texts, opened.search_many(texts, **options), strict=True))
    else:
        text = _title(query or (), image or (), minus or (), like or ())
        hits = opened.search(query, images=image or (), minus=minus or (), like=like or (), **options)
        found = {text: hits}
    if as_json:
        answers = [{"query": text, "results": [_row(hit) for hit in hits]} for text, hits in found.items()]
        print(json.dumps(answers if queries is not None else answers[0], indent=2, ensure_ascii=False, default=str))
    else:
        for text, hits in found.items():
            _print(text, hits, precision, where)
    if show is not None:
        from clipkit.search.sheet import sheet

        write_output(show, sheet(opened, found), "thumbnails")


def _check_image(file: Path) -> None:
    """Raise an error if a file is not an image, before the model is loaded."""
    from clipkit.images import open_image

    try:
        open_image(file)
    except DataError as error:
        raise UserError(f"--image {str(error).partition(';')[0]}; give an image file") from None


def query_lines(file: Path) -> list[str]:
    """Return the distinct lines of a text file with one query per line.

    Raises:
        DataError: the file cannot be read as UTF-8 text, or is empty.
    """
    from clipkit.data.prompts import read_lines

    return list(dict.fromkeys(read_lines(file)))


def _title(query: Sequence[str], image: Sequence[str], minus: Sequence[str], like: Sequence[str]) -> str:
    parts = [*query, *image, *(f"like {one}" for one in like)]
    return " + ".join(parts) + "".join(f" - {text}" for text in minus)


def _row(hit: "Hit") -> dict[str, Any]:
    values = {"row": hit.row, "image": hit.image, "score": round(hit.score, 5)}
    if hit.relevance is not None:
        values["relevance"] = round(hit.relevance, 4)
    return {**values, "captions": hit.captions, "columns": hit.columns}


def _print(text: str, hits: "Sequence[Hit]", precision: float | None, where: str | None) -> None:
    from clipkit.cli.tables import print_table
    from clipkit.errors import printable
    from clipkit.tasks import shortened

    if not hits:
        print(f"{printable(text)}: {_why_nothing(precision, where)}")
        return
    relevance = any(hit.relevance is not None for hit in hits)
    captions = any(hit.captions for hit in hits)
    rows = []
    for hit in hits:
        cells = [hit.image, f"{hit.score:.3f}"]
        cells += [f"{hit.relevance:.0%}" if hit.relevance is not None else ""] * relevance
        rows.append([*cells, *[shortened(hit.captions[0], _CAPTION) if hit.captions else ""] * captions])
    header = ["image", "score", *["relevant"] * relevance, *["caption"] * captions]
    print_table(header, rows, text, texts=["caption"])


def _why_nothing(precision: float | None, where: str | None) -> str:
    """Return the reason why a search has no results."""
    if precision is None:
        return "no image fulfills the filter"
    filtered = " among the images that fulfill the filter" if where is not None else ""
    return f"no image is likely relevant at --precision {precision:g}{filtered}; lower or remove --precision"
