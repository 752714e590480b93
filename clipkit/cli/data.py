"""`clipkit data preview`, `prepare` and `check`."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from clipkit.cli.epilog import ending_with
from clipkit.cli.output import check_writable, write_output
from clipkit.errors import Interrupted, OutputError, RecipeError

app = typer.Typer(help="Check, prepare and preview data.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _data() -> None:
    """Check, prepare and preview data before training on it."""


def _policies() -> str:
    from clipkit.recipe.policies import table

    return "Policies, with their strengths:\n\n" + table()


@app.command(cls=ending_with(_policies))
def preview(
    data: Annotated[str, typer.Argument(metavar="D", help="Images: a table, a folder, shards, hf:NAME.")],
    policy: Annotated[
        str, typer.Option(help="Name of a policy, or a list of steps, e.g. '[crop, {name: rotate, degrees: 15}]'.")
    ] = "simclr",
    out: Annotated[Path, typer.Option(help="Image file to write.")] = Path("preview.png"),
    count: Annotated[int, typer.Option(help="Number of images, one per row.", min=1)] = 8,
    views: Annotated[int, typer.Option(help="Augmented views per image.", min=1)] = 5,
    size: Annotated[int, typer.Option(help="Side of a view in pixels.", min=8)] = 160,
    safe: Annotated[
        bool,
        typer.Option("--safe", help="Do not flip or recolor images whose captions mention left/right or a color."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the run, which determines the views.", min=0)] = 0,
) -> None:
    """Draw images beside their augmented views."""
    from clipkit.recipe.policies import parse_policy

    steps = parse_policy(policy)
    from clipkit.data import read_pairs
    from clipkit.data.preview import preview as draw

    pairs = read_pairs(data, captions=safe)
    if not pairs.has_images:
        raise RecipeError(f"{data}: has captions but no images; a preview shows images")
    sheet = draw(pairs, steps, count=count, views=views, size=size, safe=safe, seed=seed)
    try:
        if Path(data).is_dir() and out.resolve().parent == Path(data).resolve():
            raise OutputError(f"{out}: would become one of the images of {data}; give --out another folder")
        sheet.save(out)
    except (OSError, ValueError) as error:
        raise OutputError(f"{out}: cannot be written ({error}); give an image file, e.g. preview.png") from None
    print(f"{out}: {min(count, len(pairs.images))} of {len(pairs.images)} images, {views} views of each")


@app.command()
def prepare(
    data: Annotated[str, typer.Argument(metavar="D", help="Data of any kind, with or without captions.")],
    out: Annotated[Path, typer.Option(help="Folder for the shards: a new one, or one begun by the same command.")],
    size: Annotated[int, typer.Option(help="Short side in pixels; smaller images are not resized.", min=1)] = 256,
    quality: Annotated[int, typer.Option(help="JPEG quality.", min=1, max=100)] = 90,
    lossless: Annotated[bool, typer.Option("--lossless", help="PNG instead of JPEG.")] = False,
    format: Annotated[
        Literal["tar", "parquet"], typer.Option(help="tar (WebDataset's layout) or parquet (the Hub's layout).")
    ] = "tar",
    shard_size: Annotated[int, typer.Option(help="Images of the source per shard.", min=1)] = 1000,
    workers: Annotated[int | None, typer.Option(help="Threads. Default: one per core.", min=1)] = None,
) -> None:
    """Resize images to the size that training needs and pack them with their captions into shards.

    After an interruption, the same command resumes.
    """
    from clipkit.data.prepare import prepare as run
    from clipkit.data.prepare import read_for_shards
    from clipkit.findings import counted

    try:
        made = run(
            read_for_shards(data),
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
    print(f"data.train: {made.pattern}")


@app.command()
def check(
    data: Annotated[str, typer.Argument(metavar="D", help="Any data that can be trained on.")],
    against: Annotated[
        str | None, typer.Option(metavar="D2", help="Data that must not be in D, e.g. the validation set.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="M", help="Count captions in this model's tokens, and compare images with its input size."
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(metavar="G", help="Pairs in a batch, for the expected number of false negatives.", min=2)
    ] = 512,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="F", help="Write the findings to this file.")
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Write a cleaned copy to this new folder, with a list of what was dropped."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Threads. Default: one per core.", min=1)] = None,
) -> None:
    """Find problems in data before training on it: broken, duplicate and leaked images, poor captions.

    Exits with 0 when the check ran, whatever it found.
    """
    from clipkit.cli.check import print_report, read_for_check
    from clipkit.data import checks
    from clipkit.findings import counted

    started = time.monotonic()
    check_writable(json_file, inputs=(data, against))
    if fix is not None:
        checks.check_output_folder(fix, data)
    pairs = read_for_check(data)
    other = None if against is None else read_for_check(against)
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
        settings = {"model": model, "batch_size": batch_size}
        found = report.to_dict() | {"settings": settings, "seconds": round(time.monotonic() - started, 1)}
        write_output(json_file, json.dumps(found, indent=2, ensure_ascii=False) + "\n", "findings")
    if fix is not None:
        kept = checks.fix(pairs, report, fix)
        print(
            f"cleaned copy: {fix / 'captions.csv'} ({counted(kept['images'], 'image')}, "
            f"{counted(kept['captions'], 'caption')}); dropped ({kept['dropped']:,}), with reasons: "
            f"{fix / 'dropped.jsonl'}"
        )
