"""Mixup of stored features: each pair is mixed with a random other pair (FuseMix).

The method is algorithm 1 of Vouitsis et al., "Data-Efficient Multimodal Fusion on a Single GPU" (CVPR 2024). The stored
outputs u of the image trunk and v of the text trunk become λ u_i + (1 − λ) u_j and λ v_i + (1 − λ) v_j, with
λ ~ Beta(α, α). Here λ is drawn for each pair, not for each batch. It is at least 1/2, so pair i has the larger weight,
and the mixed pair has the IDs of pair i (Berthelot et al., "MixMatch", 2019, equation 9).
"""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from clipkit.data import Batch
from clipkit.errors import RecipeError
from clipkit.models.towers import TRUNK_FEATURES
from clipkit.seeds import mix
from clipkit.training.inputs import TowerInputs
from clipkit.training.plan import Plan
from clipkit.training.transfer import send

_MIXUP = 9  # makes these random numbers independent of those of other modules


@dataclass(frozen=True)
class Mixup:
    """Draws a random partner and a random mixing weight for each pair of a global batch.

    The result depends only on the seed, the step and the position in the global batch, not on the process.

    Args:
        alpha: parameter α of the Beta distribution.
        captions: positions of the captions in the data that may be drawn as partners.
        seed: seed of the run.
        batch_size: pairs in the global batch, G.
    """

    alpha: float
    captions: NDArray[np.int64]
    seed: int
    batch_size: int

    def draw(self, step: int, rows: slice) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
        """Return the weight λ and the partner's caption position for each of the given rows of a global batch.

        Args:
            step: number of the step, from 0.
            rows: rows of the global batch.

        Example:
            >>> weights, partners = Mixup(1.0, np.arange(9), seed=0, batch_size=4).draw(step=0, rows=slice(2, 4))
            >>> bool((weights >= 0.5).all()), partners.shape
            (True, torch.Size([2]))
        """
        generator = np.random.default_rng(mix(self.seed, _MIXUP, step))
        shares = generator.beta(self.alpha, self.alpha, self.batch_size)
        partners = self.captions[generator.integers(len(self.captions), size=self.batch_size)]
        shares = np.maximum(shares, 1 - shares).astype(np.float32)
        return torch.from_numpy(shares[rows]), torch.from_numpy(partners[rows])


def check_stored(plan: Plan, inputs: TowerInputs) -> None:
    """If the recipe sets `data.mixup`, check that all features of the objective come from stored outputs.

    Raises:
        RecipeError: `data.mixup` is set, but a tower runs in each step.
    """
    computed = [name for name in inputs.encoders if name not in inputs.stores]
    if plan.recipe.data.mixup is not None and computed:
        raise RecipeError(
            f"data.mixup mixes stored outputs of frozen trunks, but {computed[0]} of {plan.data.train.name} are "
            "computed in each step; freeze both trunks, use data that is not a stream, or remove data.mixup"
        )


def mixed(
    batches: Generator[Batch, None, None], plan: Plan, inputs: TowerInputs, first_step: int
) -> Generator[Batch, None, None]:
    """Yield batches with mixed features if the recipe sets `data.mixup`; otherwise, yield the batches unchanged.

    The mixed features overwrite those of the batch. The IDs do not change, because the original pair always has the
    larger weight.

    Args:
        batches: this process's rows of each global batch, from `first_step` on.
        inputs: the stored outputs of both trunks.
        first_step: number of the first step, from 0.
    """
    recipe, pairs = plan.recipe, plan.data.train.pairs
    if recipe.data.mixup is None:
        yield from batches
        return
    of_caption = torch.from_numpy(pairs.image_of_caption)
    usable = np.flatnonzero(~np.isin(pairs.image_of_caption, list(inputs.bad)))
    mixup = Mixup(recipe.data.mixup, usable, recipe.train.seed, recipe.train.batch_size)
    rows = plan.processes.share(recipe.train.batch_size)
    with closing(batches):
        for step, batch in enumerate(batches, first_step):
            shares, captions = mixup.draw(step, rows)
            drawn = {"shares": shares, "captions": captions, "images": of_caption[captions]}
            drawn = send(drawn, plan.model.device)
            changed = {}
            for name, value in batch.inputs.items():
                store, own = inputs.stores[name], value[TRUNK_FEATURES]
                other = store[drawn["images" if name == "image_features" else "captions"]]
                weights = drawn["shares"].to(store.dtype)[:, None]
                changed[name] = {TRUNK_FEATURES: torch.lerp(other, own, weights, out=own)}
            yield replace(batch, inputs=changed)
