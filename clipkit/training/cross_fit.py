"""Search for doubtful captions in training data with models that were not trained on them (cross-fitting).

A model learns the wrong captions of its training data, so it does not recognize them as wrong. The images are therefore
divided into folds. The captions of each fold are compared with their images by a model that was trained on the other
folds (`clipkit.search.doubts`). Frozen trunks run only once over all data.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.data import IndexedFeed, Pairs
from clipkit.errors import Interrupted, RecipeError, UserError
from clipkit.image_formats import pixel_limit
from clipkit.processes import Processes, accelerator_of
from clipkit.recipe import Recipe
from clipkit.search.doubts import doubts_of, doubts_of_exchanged, totals_of, wrong_among
from clipkit.seeds import mix
from clipkit.training.closed_form import coordinates_of, layers_of
from clipkit.training.failures import failures_in_one_line
from clipkit.training.folder.run_folder import RunFolder, claimed
from clipkit.training.folder.run_log import RunLog
from clipkit.training.given import Given
from clipkit.training.inputs import TowerInputs
from clipkit.training.opening import tower_inputs
from clipkit.training.plan import Plan, make_plan
from clipkit.training.run import run
from clipkit.training.stop import StopRequest

_FOLD = 8  # makes these random numbers independent of those of other modules
_SIDES = ("image_features", "text_features")


@dataclass(frozen=True)
class CrossFit:
    """Result of `cross_fit`: an estimate of how doubtful each of M captions is.

    Each caption is judged by a model that was not trained on this caption.
    """

    data: Pairs
    fits: NDArray[np.float64]
    """(M,) fit to the image (`clipkit.search.doubts`); NaN for captions of unreadable images."""
    agreements: NDArray[np.float64]
    """(M,) agreement with the other captions of the image; NaN without others."""
    wrong_share: float
    """Estimated share of wrong captions."""
    precisions: NDArray[np.float64]
    """(M,) estimated share of wrong captions among those that are at least as doubtful as this one."""

    def doubtful(self, precision: float = 0.9) -> NDArray[np.int64]:
        """Return the positions of doubtful captions, the most doubtful first.

        Args:
            precision: minimum estimated share of wrong captions among the returned captions, between 0 and 1. A lower
                precision returns more captions.
        """
        totals = totals_of(self.fits, self.agreements)
        order = np.argsort(totals, kind="stable")[: np.isfinite(totals).sum()]
        enough = np.flatnonzero(self.precisions[order] >= precision)
        return order[: enough[-1] + 1] if len(enough) else order[:0]


def cross_fit(
    recipe: str | Path | Recipe | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    train: object = None,
    folds: int = 2,
) -> CrossFit:
    """Estimate how doubtful each caption of the training data is.

    The images are divided into folds. For each fold, a model is trained with the recipe on the other folds, and judges
    the captions of the fold. Validation data is not used, and nothing is written to `output`.

    Args:
        recipe: a YAML file, a Recipe, or a dict of its sections.
        overrides: changes to the recipe.
        train: training data instead of `data.train`, as for `clipkit.train`.
        folds: number of folds, 2 or more. With more folds, each model is trained on more images, which takes longer.

    Raises:
        UserError: the recipe, the data or `folds` is invalid, or the recipe does not train on images with captions.
        TrainingError: the training of a model cannot continue.
        Interrupted: a signal stopped the search.

    Example:
        >>> found = cross_fit("recipes/flickr8k_towers.yaml")                  # doctest: +SKIP
        >>> [found.data.captions[n] for n in found.doubtful(precision=0.9)]    # doctest: +SKIP
    """
    if folds < 2:
        raise UserError(f"folds is {folds}; give 2 or more")
    given = Given(train=train)
    recipe = given.recipe(recipe, dict(overrides or {}) | {"data.validation": None})
    if not recipe.is_cross_modal:
        raise RecipeError(
            f"objective is {'+'.join(recipe.objective)}; set objective: captions, which is needed to find "
            "doubtful captions"
        )
    accelerator = accelerator_of(recipe.train.precision, recipe.train.timeout_minutes)
    processes = Processes(accelerator)
    if processes.count > 1:
        raise RecipeError(f"clipkit data doubtful was started with {processes.count} processes; use one process")
    log = RunLog(enabled=True)
    with _nothing_to_resume(), StopRequest() as stop, pixel_limit(recipe.data.max_pixels), failures_in_one_line():
        whole = make_plan(recipe, accelerator, given)
        if not whole.data.train.can_index:
            raise RecipeError(
                f"{whole.data.train.name}: is a stream, which cannot be divided into folds; download the data and give "
                "its path"
            )
        inputs, pairs = tower_inputs(whole, log), whole.data.train.pairs
        good = np.array([row for row in range(len(pairs.images)) if row not in inputs.bad])
        fold_of = np.random.default_rng(mix(recipe.train.seed, _FOLD)).permutation(len(good)) % folds
        fits, agreements = (np.full(len(pairs.captions), np.nan) for _ in range(2))
        exchanged = []
        for fold in range(folds):
            rest, held = good[fold_of != fold], good[fold_of == fold]
            log.info(f"fold {fold + 1} of {folds}: training on the {len(rest):,} images of the other folds")
            with tempfile.TemporaryDirectory() as name:
                outputs = _rows_of(pairs, rest, inputs.stores)
                part = Given(train=replace(pairs.take(rest), content=""), outputs=outputs)
                plan = make_plan(recipe.override({"output": name}), accelerator, part)
                layers = layers_of(plan.model)
                with log.paused(), claimed(folder := RunFolder(name), processes, False, False, []):
                    run(plan, folder, stop)
            kept = pairs.take(held)
            features = _features(plan, kept, _rows_of(pairs, held, inputs.stores), layers)
            of = (*features, np.arange(len(kept.captions)), kept.image_of_caption)
            doubts, captions = doubts_of(*of), _captions_of(pairs, held)
            fits[captions], agreements[captions] = doubts.fits, doubts.agreements
            exchanged.append(doubts_of_exchanged(*of))
    totals = totals_of(fits, agreements)
    share, precisions = wrong_among(totals[np.isfinite(totals)], np.concatenate(exchanged))
    every = np.full(len(totals), np.nan)
    every[np.isfinite(totals)] = precisions
    return CrossFit(pairs, fits, agreements, share, every)


@contextmanager
def _nothing_to_resume() -> Iterator[None]:
    try:
        yield
    except Interrupted as error:
        raise Interrupted(
            "stopped before the last fold was finished; run the command again from the start", error.code
        ) from None


def _captions_of(pairs: Pairs, images: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the positions of all captions of the given images, in the order of `pairs.take(images)`."""
    return np.concatenate([pairs.captions_of_image[image] for image in images.tolist()])


def _rows_of(pairs: Pairs, images: NDArray[np.int64], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the trunk outputs of the given images and their captions, in the order of `pairs.take(images)`."""
    captions = _captions_of(pairs, images)
    return {
        name: rows[torch.from_numpy(images if name == "image_features" else captions).to(rows.device)]
        for name, rows in outputs.items()
    }


def _features(
    plan: Plan, pairs: Pairs, outputs: Mapping[str, Tensor], layers: Mapping[str, Any]
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Return the image features (N, D) and the caption features (M, D) of held-out pairs.

    Args:
        outputs: stored outputs of frozen trunks for `pairs`, by feature name.
        layers: result of `layers_of` before training.
    """
    if plan.recipe.start == "cca":
        outputs = coordinates_of(plan.model, outputs, layers)
    encoded = {name: plan.objective.encoded[name] for name in _SIDES}
    kept = {name: rows for name, rows in outputs.items() if name in _SIDES}
    with plan.learned.chosen():
        inputs = TowerInputs(plan.model, IndexedFeed(pairs), plan.processes, encoded, augmented=True, outputs=kept)
        images, texts = inputs.features()
    return images.half().numpy(), texts.half().numpy()
