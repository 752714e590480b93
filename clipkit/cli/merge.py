"""Command `clipkit merge`: interpolation of two models, and soups of several models."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipkit.cli.inputs import check_models
from clipkit.errors import OutputError, UserError

if TYPE_CHECKING:
    from clipkit.models import DualEncoder


def merge(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="BASE TUNED",
            help="Two models to interpolate, or several models to average. Each is a Hub repository (ORG/NAME), a "
            "folder, a run, or open_clip:ARCH/TAG.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the merged model.")],
    alpha: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Weight of TUNED, for two models: 0 gives BASE, 1 gives TUNED. Default: equal weights.",
            min=0,
            max=1,
        ),
    ] = None,
    greedy: Annotated[
        bool,
        typer.Option(
            "--greedy",
            help="Greedy soup: start with the model that scores best on --data, then try to add each of the others. A "
            "model is added if the score of the average does not decrease.",
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="D",
            help="Held-out data for --greedy: labeled images (scored by zero-shot accuracy), or images with "
            "captions (scored by mean recall).",
        ),
    ] = None,
) -> None:
    """Average the weights of models with the same architecture.

    Two models are interpolated (WiSE-FT); several models become a model soup.
    """
    if len(models) < 2:
        raise UserError(f"merge got only one model, {models[0]}; give two or more")
    if alpha is not None and len(models) != 2:
        raise UserError(
            f"--alpha {alpha}: needs exactly two models, not {len(models)}; to average more than two models, "
            "leave out --alpha"
        )
    if greedy and (data is None or alpha is not None):
        raise UserError(
            "--greedy chooses the models by their scores on held-out data; give --data D, and leave out --alpha"
        )
    if data is not None and not greedy:
        raise UserError(f"--data {data} applies only to a greedy soup; add --greedy, or leave out --data")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: already exists; give an empty or a new folder")
    check_models(*models)
    merged, line = _average(models, alpha) if data is None else _greedy(models, data)
    try:
        merged.save(out)
    except OSError as error:
        raise OutputError(f"{out}: is not writable ({error.strerror or error}); give another folder") from None
    print(f"{out}: {line}; scale {merged.logit_scale.exp().item():.4g}")


def _average(models: list[str], alpha: float | None) -> tuple["DualEncoder", str]:
    """Return the weighted mean of the models, and one line that names the models and weights."""
    from clipkit.models import load
    from clipkit.models.merge import merge as averaged

    opened = [load(name, device="cpu") for name in models]
    parts = " and ".join(models) if len(models) == 2 else f"{len(models)} models"
    share = "equal weights" if alpha is None else f"weights {1 - alpha:g} and {alpha:g}"
    return averaged(opened, None if alpha is None else [1 - alpha, alpha]), f"{parts}, {share}"


def _greedy(models: list[str], data: str) -> tuple["DualEncoder", str]:
    """Build the greedy soup and print the tried models. Return the soup and its one-line description."""
    from clipkit.cli.tables import print_table
    from clipkit.data.sources.read import check_exists

    check_exists(data)
    from clipkit.evaluation.held_out import HeldOut
    from clipkit.models import load
    from clipkit.models.soup import greedy_soup
    from clipkit.tasks import number, readable

    held_out = HeldOut(data)
    soup, tried = greedy_soup(models, load, held_out.score, print)
    metric = held_out.metric
    rows = [
        [one.name, number(metric, one.score), number(metric, one.with_it), "yes" if one.kept else "no"] for one in tried
    ]
    print_table(["model, best first", "alone", "in the soup", "kept"], rows, f"{readable(metric)} on {data}")
    kept = [one for one in tried if one.kept]
    if len(kept) == 1:
        return soup, f"{kept[0].name} alone, because each of the other models lowers the score"
    score = number(metric, kept[-1].with_it)
    return soup, f"soup of {len(kept)} of {len(models)} models, {readable(metric)} {score}"
