"""Command `clipkit explain`: show why a model matches an image and a text."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipkit.cli.inputs import check_file, check_models
from clipkit.cli.measuring import Dtype, JsonFile
from clipkit.cli.output import check_writable, write_output
from clipkit.errors import OutputError, UserError

if TYPE_CHECKING:
    from clipkit.evaluation.explanation import Explanation, Scores
    from clipkit.models import DualEncoder

Method = Literal["gradient", "patches", "occlusion"]


def explain(
    model: Annotated[
        str, typer.Option(metavar="M", help="Model: a Hub repository, a folder, a run, or open_clip:ARCH/TAG.")
    ],
    image: Annotated[str | None, typer.Option(metavar="F", help="Image file to explain.")] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Text to compare with the image; may be given several times."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="D",
            help="Images with captions to explain, instead of --image and --text. Prints the mean deletion and "
            "insertion scores of the maps.",
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="With --data: number of images to explain, evenly spaced in the data. Default: 100.",
            min=2,
        ),
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="How the maps are computed. gradient (any image tower): the gradient of the cosine similarity, times "
            "the features, for each part of the image. patches (only vision transformers): the cosine similarity of "
            "each patch and the text. occlusion (any image tower, 37 forward passes per image): the drop of the cosine "
            "similarity when the part is hidden."
        ),
    ] = "gradient",
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Explain why the image matches --text better than this text; may be given several times. The maps and "
            "their scores then explain the difference between the cosine with --text and the mean cosine with these "
            "texts.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="F.png", help="Draw the maps to this PNG file.")] = None,
    json_file: JsonFile = None,
    score: Annotated[
        bool | None,
        typer.Option(
            help="With --image: measure how faithful the maps are (default), with about 140 forward passes per text.",
        ),
    ] = None,
    dtype: Annotated[
        Dtype,
        typer.Option(
            help="Precision of the forward pass. auto: bf16 autocast with fp32 weights on a CUDA GPU, otherwise fp32."
        ),
    ] = "fp32",
) -> None:
    """Show which parts of an image and which words of a text match.

    Prints for each word how much the cosine similarity of image and text decreases without the word, and draws maps of
    the parts of the image that match the text. Also prints how faithful the maps are: how fast the cosine similarity
    changes if the most relevant parts are hidden first (deletion) or shown first (insertion), compared with random
    maps and with a map that always marks the center.
    Example: clipkit explain --model M --image dog.jpg --text "a dog with a ball" --out dog.png.
    """
    if (image is None) == (data is None) or (image is None) != (not text):
        raise UserError(
            "clipkit explain needs either an image with texts or data; give --image F and at least one --text "
            "TEXT, or only --data D"
        )
    of_image = {"--against": against, "--out": out, "--score" if score else "--no-score": score}
    for option, value in (of_image if image is None else {"--images": images}).items():
        if value or value is False:
            needed = "--image" if image is None else "--data"
            raise UserError(f"{option} applies to {needed}, which was not given; remove {option}")
    check_models(model)
    if image is not None:
        check_file(Path(image), "give an image file to --image")
    else:
        from clipkit.data.sources.read import check_exists

        assert data is not None
        check_exists(data)
    check_writable(out, json_file, inputs=(model, image, data))
    from clipkit.models import load

    loaded = load(model, dtype=dtype)
    if data is not None:
        _score(loaded, data, images or 100, method, json_file)
        return
    from clipkit.evaluation.explanation import explain as run

    assert image is not None
    explanation = run(loaded, image, text or [], method=method, against=against or [], score=score is not False)
    _print(explanation)
    write_output(json_file, json.dumps(explanation.to_dict(), ensure_ascii=False) + "\n", "explanation")
    if out is not None:
        try:
            explanation.save(out)
        except OSError as error:
            raise OutputError(f"{out}: cannot be written ({error.strerror or error}); give another file") from None
        print(f"maps: {out}")


def _score(model: "DualEncoder", data: str, images: int, method: Method, json_file: Path | None) -> None:
    from clipkit.cli.tables import print_metrics
    from clipkit.cli.terminal import print_error
    from clipkit.evaluation import to_json
    from clipkit.evaluation.explanation import score_explanations

    result = score_explanations(model, data, method=method, images=images, progress=True)
    for line in result["data"].get("findings", ()):
        print_error(line)
    print_metrics(result)
    write_output(json_file, to_json(result), "result")


def _print(explanation: "Explanation") -> None:
    from clipkit.cli.tables import print_table

    for one in explanation.texts:
        rows, columns = one.map.shape
        row, column = divmod(int(one.map.argmax()), columns)
        where = f"row {row + 1} of {rows}, column {column + 1} of {columns}"
        print(f"{explanation.image}: {one.text!r}: cosine {one.cosine:.3f}, most relevant part: {where}")
        if one.words:
            print_table(
                ["word", "decrease of the cosine without the word"],
                [[word.word, f"{word.drop:+.3f}"] for word in one.words],
            )
        if one.scores is not None:
            _print_scores(one.scores, explanation.against)


def _print_scores(scores: "Scores", against: list[str]) -> None:
    from clipkit.cli.tables import print_table

    maps = (scores.map, scores.random, scores.center)
    from clipkit.findings import counted

    rows = [
        ["deletion AUC, lower is better", *(f"{one.deletion:.3f}" for one in maps)],
        ["insertion AUC, higher is better", *(f"{one.insertion:.3f}" for one in maps)],
    ]
    scored = f"cosine minus mean cosine with {counted(len(against), 'other text')}" if against else "cosine"
    print_table([f"{scored} while parts of the image are hidden", "this map", "random", "center"], rows)
    if scores.occlusion is not None:
        center = f" (center map: {scores.center_occlusion:.2f})" if scores.center_occlusion is not None else ""
        print(f"rank correlation with occlusion: {scores.occlusion:.2f}{center}")
