"""Commands `clipkit data preview`, `prepare` and `check`."""

import io
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipkit.cli.epilog import ending_with
from clipkit.cli.output import check_writable, write_file, write_output
from clipkit.cli.terminal import print_findings
from clipkit.errors import Interrupted, OutputError, RecipeError, UserError, one_line
from clipkit.overwriting import IMAGE_MARK

if TYPE_CHECKING:
    from PIL import Image

app = typer.Typer(help="Check, prepare and preview data.", no_args_is_help=True, rich_markup_mode=None)


def _policies() -> str:
    from clipkit.recipe.policies import table

    return (
        "Augmentation policies and the parameters of their steps (p: probability; scale: share of the image area):\n\n"
        + table()
    )


def _policy_names() -> list[str]:
    from clipkit.recipe.policies import POLICIES

    return list(POLICIES)


@app.command(cls=ending_with(_policies))
def preview(
    data: Annotated[
        str,
        typer.Argument(
            metavar="D",
            help="Images: a table (CSV, JSON, Parquet), a folder, shards (WebDataset), or hf:NAME (Hugging Face Hub).",
        ),
    ],
    policy: Annotated[
        str,
        typer.Option(
            metavar="POLICY",
            autocompletion=_policy_names,
            help="Name of an augmentation policy, or a list of steps, e.g. '[crop, {name: rotate, degrees: 15}]'.",
        ),
    ] = "simclr",
    out: Annotated[Path, typer.Option(metavar="FILE", help="Image file to write.")] = Path("preview.png"),
    count: Annotated[int, typer.Option(metavar="N", help="Number of images, one per row.", min=1)] = 8,
    views: Annotated[int, typer.Option(metavar="N", help="Number of augmented views per image.", min=1)] = 5,
    size: Annotated[int, typer.Option(metavar="PIXELS", help="Side length of each view in pixels.", min=8)] = 160,
    safe: Annotated[
        bool,
        typer.Option("--safe", help="Do not flip or recolor images whose captions mention left/right or a color."),
    ] = False,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Random seed. With the seed of a training run, the preview shows the views of that run.",
            min=0,
        ),
    ] = 0,
) -> None:
    """Draw images next to their augmented views."""
    from clipkit.data.sources.read import check_exists
    from clipkit.recipe.policies import parse_policy

    steps = parse_policy(policy)
    check_writable(out, inputs=(data,))
    check_exists(data)
    if Path(data).is_dir() and out.resolve().parent == Path(data).resolve():
        raise OutputError(f"{out}: would be saved among the images of {data}; give a file in another folder with --out")
    from clipkit.data import read_pairs
    from clipkit.data.preview import preview as draw

    pairs = read_pairs(data, captions=safe)
    if not pairs.has_images:
        raise RecipeError(f"{data}: has captions but no images; give data with images")
    sheet = draw(pairs, steps, count=count, views=views, size=size, safe=safe, seed=seed)
    write_file(out, _encoded(sheet, out))
    print_findings(pairs.findings)
    print(f"{out}: {min(count, len(pairs.images))} of {len(pairs.images)} images, {views} views of each")


def _encoded(sheet: "Image.Image", out: Path) -> bytes:
    from PIL import Image, PngImagePlugin

    mark = PngImagePlugin.PngInfo()
    mark.add_text(*IMAGE_MARK)
    content = io.BytesIO()
    try:
        sheet.save(content, Image.registered_extensions()[out.suffix.lower()], pnginfo=mark)
    except (KeyError, OSError, ValueError) as error:
        raise OutputError(
            f"{out}: cannot be written in the format {out.suffix or '(none)'} ({one_line(error)}); give an image file, "
            "e.g. preview.png"
        ) from None
    return content.getvalue()


@app.command()
def prepare(
    data: Annotated[
        str,
        typer.Argument(
            metavar="D",
            help="Images, with or without captions: a table, a folder, shards (WebDataset), or hf:NAME (Hugging "
            "Face Hub).",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="New folder for the shards. To resume after an interruption, give the same folder again.",
        ),
    ],
    size: Annotated[
        int,
        typer.Option(
            metavar="PIXELS",
            help="Length of the short side of the resized images, in pixels. Images whose short side is smaller "
            "than this are not resized.",
            min=1,
        ),
    ] = 256,
    quality: Annotated[int, typer.Option(metavar="N", help="JPEG quality.", min=1, max=100)] = 90,
    lossless: Annotated[bool, typer.Option("--lossless", help="Write PNG instead of JPEG.")] = False,
    format: Annotated[
        Literal["tar", "parquet"],
        typer.Option(help="Format of the shards: tar (WebDataset) or parquet (Hugging Face Hub)."),
    ] = "tar",
    shard_size: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Number of images per shard. Unreadable images are skipped, so a shard may contain fewer.",
            min=1,
        ),
    ] = 1000,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Number of threads. Default: one per core.", min=1)
    ] = None,
) -> None:
    """Resize images and pack them with their captions into shards.

    Training reads shards faster than single files. After an interruption, run the same command again to resume.
    """
    from clipkit.data.prepare import prepare as run
    from clipkit.data.prepare import read_for_shards
    from clipkit.findings import counted

    try:
        pairs = read_for_shards(data)
        print_findings(pairs.findings)
        made = run(
            pairs,
            out,
            size=size,
            quality=quality,
            lossless=lossless,
            format=format,
            shard_size=shard_size,
            workers=workers,
        )
    except Interrupted as error:
        sys.stderr.write(f"clipkit: {error}\n")
        raise typer.Exit(error.code) from None
    print(
        f"{out}: {counted(made.images, 'image')} in {counted(made.shards, 'shard')}; "
        f"{made.source_bytes / 1e6:,.1f} MB before, {made.bytes / 1e6:,.1f} MB after"
    )
    if made.skipped:
        print(f"skipped {counted(len(made.skipped), 'image')}; {out / 'skipped.jsonl'} lists them with reasons")
    print(f"to train on the shards, set this in a recipe: data.train: {made.pattern}")


@app.command()
def check(
    data: Annotated[
        str,
        typer.Argument(
            metavar="D",
            help="Images, captions, or both: a table (CSV, JSON, Parquet), a folder, shards (WebDataset), or "
            "hf:NAME (Hugging Face Hub).",
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="D2",
            help="Data that must not share images with D, e.g. the validation set. Shared images are reported as "
            "leaked.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="M",
            help="Model that will use the data. Captions longer than its context length and images smaller than "
            "its input are reported.",
        ),
    ] = None,
    only: Annotated[
        Literal["images", "captions"] | None,
        typer.Option(
            help="Check only images or only captions. Required for a table that has no column of captions or no "
            "column of images."
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="G",
            help="Planned batch size, to estimate the number of false negatives per batch. Default: 512, the "
            "default of a recipe.",
            min=2,
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="F.json", help="Write the findings to this JSON file.")
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write a cleaned copy of the data to this new folder, with a list of dropped images and captions.",
        ),
    ] = None,
    drop: Annotated[
        Path | None,
        typer.Option(
            metavar="LIST.jsonl",
            help="With --fix: also drop the images and captions that are listed in this file, which clipkit "
            "browse or clipkit data doubtful wrote.",
        ),
    ] = None,
    drop_most: Annotated[
        bool,
        typer.Option("--drop-most", help="Allow --fix to drop 50 % or more of the images or captions."),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Number of threads. Default: one per core.", min=1)
    ] = None,
) -> None:
    """Find broken, duplicate and leaked images, and poor captions.

    The exit code is 0 even if problems are found. A table must have a column for images and one for captions, unless
    --only is given.
    """
    from clipkit.cli.inputs import check_file, check_models
    from clipkit.data.sources.read import check_exists

    for source in (data, *([] if against is None else [against])):
        check_exists(source)
    if model is not None:
        check_models(model)
    if drop is not None:
        check_file(drop, "give a list that clipkit browse or clipkit data doubtful wrote")
        if fix is None:
            raise UserError(f"--drop {drop} was given without --fix; add --fix DIR, or remove --drop")
    from clipkit.cli.check import print_report, read_for_check
    from clipkit.data import checks
    from clipkit.findings import counted

    started = time.monotonic()
    check_writable(json_file, inputs=(data, against))
    if fix is not None:
        checks.check_output_folder(fix, data)
    pairs = read_for_check(data, only)
    listed = None if drop is None else checks.read_drop_list(drop, pairs)
    other = None if against is None else read_for_check(against, may_lack=True)
    token_counts, context_length, image_size = None, None, None
    if model is not None:
        from clipkit.models import load
        from clipkit.models.token_counts import token_counter

        loaded = load(model, device="cpu")
        image_size = loaded.image.preprocess.image_size if pairs.has_images else None
        if pairs.has_captions:
            token_counts, context_length = token_counter(loaded), loaded.text.tokenize.context_length
    report = checks.check(
        pairs,
        other,
        token_counts=token_counts,
        context_length=context_length,
        image_size=image_size,
        batch_size=batch_size,
        workers=workers,
    )
    print_report(report)
    if json_file is not None:
        settings = {"model": model, "batch_size": report.facts.get("batch", {}).get("size", batch_size)}
        found = report.to_dict() | {"settings": settings, "seconds": round(time.monotonic() - started, 1)}
        write_output(json_file, json.dumps(found, indent=2, ensure_ascii=False) + "\n", "findings")
    if fix is not None:
        kept = checks.fix(pairs, report, fix, drop_most, listed)
        print(
            f"cleaned copy: {fix / 'captions.csv'} ({counted(kept['images'], 'image')}, "
            f"{counted(kept['captions'], 'caption')}); {kept['dropped']:,} dropped images and "
            f"captions are listed with reasons in {fix / 'dropped.jsonl'}"
        )
