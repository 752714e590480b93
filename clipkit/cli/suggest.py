"""Command `clipkit suggest`: write a recipe for the user's data, model and machine, with reasons."""

from pathlib import Path
from typing import Annotated

import typer

from clipkit.cli.inputs import check_models
from clipkit.cli.output import check_writable, write_output


def suggest(
    data: Annotated[
        str,
        typer.Argument(
            metavar="D",
            help="Training data, images with captions or labels: a table, a folder, shards (WebDataset), or "
            "hf:NAME (Hugging Face Hub).",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="M", help="Model to fine-tune: a Hub repository (ORG/NAME), a folder, or open_clip:ARCH/TAG."
        ),
    ] = None,
    image_tower: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Image tower (a timm model) to combine with --text-tower, instead of --model."
        ),
    ] = None,
    text_tower: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Text tower (a text encoder on the Hub) to combine with --image-tower."),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            metavar="D2",
            help="Validation data, in any format that D can have. Default: a share of the training images.",
        ),
    ] = None,
    retention: Annotated[
        str | None,
        typer.Option(
            metavar="D3", help="Other data, with labels or captions, on which the model should not get worse."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="RECIPE.yaml", help="New file for the recipe. Default: print the recipe.")
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="F.json",
            help="Write the recipe, its reasons, and the facts about the data, the model and the machine to this "
            "JSON file.",
        ),
    ] = None,
) -> None:
    """Write a recipe for your data, model and machine, with reasons.

    Opens up to 2,000 images; trains nothing. clipkit train accepts the recipe without changes.
    """
    import json

    from clipkit.data.sources.read import check_exists

    for source in (data, validation, retention):
        if source is not None:
            check_exists(source)
    if model is not None:
        check_models(model)
    check_writable(out, json_file, inputs=(data, validation, retention))
    from clipkit.suggestion import suggest as run

    suggestion = run(
        data, model, image_tower=image_tower, text_tower=text_tower, validation=validation, retention=retention
    )
    if out is None:
        print(suggestion.to_yaml(), end="")
    else:
        suggestion.save(out)
    write_output(json_file, json.dumps(suggestion.to_dict(), indent=2, ensure_ascii=False) + "\n", "suggestion")
    if out is not None:
        for finding in suggestion.data.findings:
            print(finding.line())
        print(f"{out}: read the recipe, then run: clipkit train {out}")
