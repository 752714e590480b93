"""Command `clipkit data doubtful`: list captions of training data that may belong to other images."""

import json
from pathlib import Path
from typing import Annotated

import typer

from clipkit.cli.inputs import check_recipe_inputs
from clipkit.cli.output import check_writable, write_file
from clipkit.cli.running import running

_SHOWN = 5


def doubtful(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE.yaml", help="Recipe file (YAML) whose training data (data.train) is checked."),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY.SUB=VALUE", help="Recipe values to override, e.g. optim.lr=1e-5.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="LIST.jsonl", help="File for the list of doubtful captions.")] = Path(
        "doubtful.jsonl"
    ),
    precision: Annotated[
        float,
        typer.Option(
            metavar="P",
            help="Estimated share of the listed captions that are wrong. With 0.9, about 90 % of the captions in "
            "the list are wrong; a lower value gives a longer list.",
            min=0,
            max=1,
        ),
    ] = 0.9,
    folds: Annotated[
        int,
        typer.Option(
            metavar="K",
            help="Number of parts (folds) into which the data is split. For each fold, a model is trained on the "
            "other folds.",
            min=2,
        ),
    ] = 2,
) -> None:
    """Find wrong captions in training data by cross-validation.

    Each caption is judged by a model that was not trained on this caption. The list starts with the most doubtful
    caption. Delete the lines of correct captions from the list. Then run clipkit data check D --fix DIR --drop
    LIST.jsonl, which writes a copy of the data without the captions that are still listed.
    """
    from clipkit.recipe import Recipe

    complete = Recipe.from_yaml(recipe, overrides or [])
    check_recipe_inputs(complete, resume=False, overwrite=True)
    check_writable(out, inputs=[source.source for source in complete.data.sources])
    import numpy as np

    from clipkit.cli.tables import print_table
    from clipkit.data.checks.leaks import image_name
    from clipkit.findings import counted, percent

    with running():
        from clipkit.training.cross_fit import cross_fit

        found = cross_fit(complete, folds=folds)
    data, rows = found.data, []
    for n in found.doubtful(precision).tolist():
        agreement = "" if np.isnan(found.agreements[n]) else f", agreement {found.agreements[n]:.1f}"
        reason = f"doubtful caption (fit {found.fits[n]:.1f}{agreement})"
        name = image_name(data, int(data.image_of_caption[n]))
        rows.append({"image": name, "caption": data.captions[n], "reason": reason})
    write_file(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if rows:
        print_table(list(rows[0]), [list(row.values()) for row in rows[:_SHOWN]], "The most doubtful captions")
    print(f"estimate: about {percent(found.wrong_share)} of {counted(len(data.captions), 'caption')} are wrong")
    print(f"{out}: {counted(len(rows), 'caption')}, of which about {percent(precision)} are wrong")
