"""Stored inputs of a tower, which are computed once or opened from an earlier run."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from clipkit.embedding.cached import readable_size
from clipkit.embedding.store import PartWriter
from clipkit.embedding.store_folder import HeldStore, NotStoredError, build_store, make_room, open_store
from clipkit.errors import RecipeError
from clipkit.models.cut import ACTIVATIONS, OUTSIDE, NoCutError
from clipkit.models.find_cut import find_cut
from clipkit.models.fingerprint import frozen_fingerprint
from clipkit.models.preprocess import stack_inputs
from clipkit.models.towers import TRUNK_FEATURES, ImageTower, TextTower
from clipkit.recipe.data import bytes_of
from clipkit.seeds import mix
from clipkit.training.stored.compute import frozen_part
from clipkit.training.stored.items import Items
from clipkit.training.stored.settings import Storing

Inputs = dict[str, Tensor]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_VIEW = 7  # makes these random numbers independent of those of other modules
# Largest absolute activation of a few examples up to which auto stores fp16, whose limit is 65,504; above it, bf16.
_FP16_SAFE = 8192.0


@dataclass(eq=False)
class StoredInputs:
    """Stored inputs for one kind of features, e.g. image_features.

    Args:
        store: opened store; row `view * len(items) + item` contains one view of one item.
        items: images or captions.
        views: number of views of each item.
        seed: seed of the run, for the random choice of views.
        padding: name of an input -> value of its padding; 0 for other inputs.
    """

    store: HeldStore
    items: Items
    views: int = 1
    seed: int = 0
    padding: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._epoch = -1
        self._view_of = torch.zeros(len(self.items), dtype=torch.int64)

    @property
    def _rows(self) -> Int[Tensor, " N"]:
        """Row in the store of the first view of each image or caption."""
        return torch.arange(len(self.items)) if self.items.row_of is None else self.items.row_of

    def example(self, count: int) -> Inputs:
        """Return a batch in which the item with the most tokens is repeated `count` times."""
        longest = int(self.lengths().where(self.store.exist(self._rows), -1).argmax())
        return self.take(torch.full((count,), longest))

    def lengths(self) -> Int[Tensor, " N"]:
        """Return the number of tokens of each caption; zeros if the store does not contain tokens."""
        return self.store.lengths(self._rows)

    def all(self) -> Tensor:
        """Return the stored trunk outputs of all images or captions (N, W)."""
        features: Tensor = self.store.take(self._rows)[TRUNK_FEATURES]
        return features

    def take(self, positions: Int[Tensor, " B"], epoch: int = 0) -> Inputs:
        """Return the stored inputs of the images or captions at the given positions in the data.

        If there are several views of each image, one view per image is drawn at random in each epoch.
        """
        rows = positions if self.items.row_of is None else self.items.row_of[positions]
        if self.views > 1:
            if epoch != self._epoch:
                generator = np.random.default_rng(mix(self.seed, _VIEW, epoch))
                self._epoch, drawn = epoch, generator.integers(self.views, size=len(self.items))
                self._view_of = torch.from_numpy(drawn)
            rows = rows + len(self.items) * self._view_of[positions]
        return self.store.take(rows, self.padding)


def has_cut(tower: ImageTower | TextTower, storing: Storing) -> bool:
    """Return whether the trunk of a tower can be cut into frozen and trained layers (see `clipkit.models.cut`).

    If the trunk is not cut yet, this function cuts it, or logs the reason why this is not possible.
    """
    if tower.cut is None:
        may_cut_padding = isinstance(tower, TextTower) and tower.padding_may_be_cut
        try:
            tower.cut = find_cut(tower.trunk, _example(tower), may_cut_padding)
        except NoCutError as error:
            storing.log(f"the {_side(tower)} tower runs as a whole in each step: {error}")
    return tower.cut is not None


def store_of(
    tower: ImageTower | TextTower,
    items: Items,
    storing: Storing,
    write: Callable[[PartWriter, slice], Int[Tensor, " R"]],
    view: str = "",
) -> HeldStore | None:
    """Open the store of some images or captions from an earlier run, or compute it now.

    The result is None if the values cannot be stored, e.g. because the disk is too small. The reason is logged.

    Args:
        tower: tower whose trunk is cut (`tower.cut`) or frozen as a whole.
        items: images or captions.
        storing: settings.
        write: function that computes and writes a slice of the rows.
        view: text that identifies the augmentation; empty if images are not augmented.

    Raises:
        RecipeError: the values cannot be stored, but the recipe sets `data.views`, which requires stored values.
    """
    views = storing.views if view else None
    rows, cut = len(items) * (views or 1), tower.cut
    sizes, largest, computed = _measured(tower, items, storing)
    dtype = computed if cut is None else _type_of(storing, rows, sizes, largest, computed)
    needed = int(rows * sizes[dtype])
    name = str(dtype).removeprefix("torch.")
    what = f"{'outputs' if cut is None else f'activations before {cut.name}'} of the {_side(tower)} tower"
    counted = f"{len(items):,} {items.kind}" + (f" in {views} views" if views else "")
    described = f"{what} for {counted} ({readable_size(needed)}, {name})"
    identity = [frozen_fingerprint(tower), what, items.key, view, name, str(computed)]
    key = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:32]
    store = open_store(key, storing.machine)
    if store is not None:
        storing.log(f"{described} are read from {store.folder}")
    else:
        reason = f"data.store.disk leaves only {readable_size(storing.left)}" if needed > storing.left else ""
        reason = reason or make_room(needed, bytes_of(storing.recipe.disk), storing.machine)
        about = {"what": what, "data": items.data, "items": counted, "dtype": name}
        of_tokens = cut is not None and cut.of_tokens
        try:
            if reason:
                raise NotStoredError(reason)
            store = build_store(key, storing.machine, rows, write, about, of_tokens=of_tokens, dtype=dtype)
        except NotStoredError as error:
            advice = "raise data.store.disk, run clipkit cache prune, or set CLIPKIT_CACHE to a larger disk"
            if views:
                raise RecipeError(
                    f"data.views is {views}: {described} cannot be stored ({error}); use fewer views, {advice}"
                ) from None
            storing.log(f"{described} are computed in each step, because they cannot be stored ({error}); {advice}")
            return None
        storing.log(f"{described} were computed once and stored in {store.folder}")
    storing.taken += store.nbytes
    return store


def _type_of(
    storing: Storing, rows: int, sizes: Mapping[torch.dtype, float], largest: float, computed: torch.dtype
) -> torch.dtype:
    """Return the data type in which activations are stored.

    With `auto`, this is the type that the tower computes, or a 16-bit type if the disk space is too small.

    Args:
        storing: settings.
        rows: number of rows to store.
        sizes: data type -> mean size of a row in bytes.
        largest: largest absolute activation of a few examples.
        computed: data type that the tower computes.
    """
    # The result does not depend on what is stored already, so that the same recipe gives the same data type.
    if storing.recipe.dtype != "auto":
        return _DTYPES[storing.recipe.dtype]
    half = torch.float16 if largest < _FP16_SAFE else torch.bfloat16
    return computed if computed.itemsize <= 2 or rows * sizes[computed] <= storing.left else half


def _measured(
    tower: ImageTower | TextTower, items: Items, storing: Storing
) -> tuple[dict[torch.dtype, float], float, torch.dtype]:
    """Compute the values to store for a few examples, and measure their size.

    Return the mean size of a row in bytes by data type, the largest absolute value, and the computed data type.
    """
    inputs = _example(tower)
    with torch.no_grad():
        made = frozen_part(storing)(tower, inputs)
    name = ACTIVATIONS if ACTIVATIONS in made else TRUNK_FEATURES
    value, once = made.pop(name), made.pop(OUTSIDE, torch.empty(1, 0))[0].nbytes
    per_row, others = value[0].numel(), sum(one[0].nbytes for one in made.values())
    scale = 1.0
    if tower.cut is not None and tower.cut.of_tokens:
        assert isinstance(tower, TextTower)
        tokens = tower.tokenize(items.sample)["attention_mask"].sum(dim=1).double().mean()
        scale = float(tokens) / value.shape[1]
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    sizes = {dtype: scale * (per_row * dtype.itemsize + others) + once for dtype in dtypes}
    return sizes, float(value.abs().max()), value.dtype


def _example(tower: ImageTower | TextTower) -> Inputs:
    """Return inputs of a tower for two random images, or for three captions of different lengths."""
    if isinstance(tower, ImageTower):
        noise = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
        inputs = stack_inputs([tower.preprocess(Image.fromarray(pixels)) for pixels in noise])
    else:
        inputs = tower.tokenize(["a photo of two dogs, running through low water.", "a cat", "x"])
    weight = next(tower.parameters())
    placed = {name: value.to(weight.device) for name, value in inputs.items()}
    ready = tower.ready(placed)
    return {name: value.to(weight.dtype) if value.is_floating_point() else value for name, value in ready.items()}


def _side(tower: ImageTower | TextTower) -> str:
    return "image" if isinstance(tower, ImageTower) else "text"
