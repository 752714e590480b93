"""Stored inputs of a tower: opened from an earlier run or computed, and read in each step."""

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
    """Stored inputs of one kind of features.

    Args:
        store: the rows; row `view * len(items) + item` is a view of an item.
        items: images or captions.
        views: number of views.
        seed: seed of the run.
        padding: values of padding by the name of the input.
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
        """For each image or caption, the number of its row in the store; with several views, that of the first view."""
        return torch.arange(len(self.items)) if self.items.row_of is None else self.items.row_of

    def example(self, count: int) -> Inputs:
        """Return the inputs of the item with the most tokens, repeated `count` times."""
        longest = int(self.lengths().where(self.store.exist(self._rows), -1).argmax())
        return self.take(torch.full((count,), longest))

    def lengths(self) -> Int[Tensor, " N"]:
        """Return the number of tokens of each caption, or zeros."""
        return self.store.lengths(self._rows)

    def all(self) -> Tensor:
        """Return stored trunk features of all images or captions (N, W)."""
        features: Tensor = self.store.take(self._rows)[TRUNK_FEATURES]
        return features

    def take(self, positions: Int[Tensor, " B"], epoch: int = 0) -> Inputs:
        """Return the stored inputs for images or captions; of several views of an image, one is drawn in each epoch."""
        rows = positions if self.items.row_of is None else self.items.row_of[positions]
        if self.views > 1:
            if epoch != self._epoch:
                generator = np.random.default_rng(mix(self.seed, _VIEW, epoch))
                self._epoch, drawn = epoch, generator.integers(self.views, size=len(self.items))
                self._view_of = torch.from_numpy(drawn)
            rows = rows + len(self.items) * self._view_of[positions]
        return self.store.take(rows, self.padding)


def has_cut(tower: ImageTower | TextTower, storing: Storing) -> bool:
    """Return whether the trunk can be cut (see `clipkit.models.cut`); the first call finds out, and logs why not."""
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
    """Return the store of some items, from an earlier run or computed now.

    The result is None if it cannot be stored, e.g. because the disk is too small; the reason is logged.

    Args:
        tower: the tower; its trunk is cut (`tower.cut`) or frozen as a whole.
        items: images or captions whose inputs are stored.
        storing: settings.
        write: computes and writes some of the rows.
        view: describes the augmentation; empty if there is none.

    Raises:
        RecipeError: it cannot be stored, and the recipe sets `data.views`, which need it.
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
        storing.log(f"{described} from {store.folder}")
    else:
        reason = f"data.store.disk leaves {readable_size(storing.left)}" if needed > storing.left else ""
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
            storing.log(f"{described} are computed in each step instead of stored ({error}); {advice}")
            return None
        storing.log(f"{described} computed once and stored in {store.folder}")
    storing.taken += store.nbytes
    return store


def _type_of(
    storing: Storing, rows: int, sizes: Mapping[torch.dtype, float], largest: float, computed: torch.dtype
) -> torch.dtype:
    """Return the data type of stored activations; auto: the computed type, or a 16-bit type if that does not fit.

    It does not depend on what is stored already, so that the same recipe gives the same result.
    """
    if storing.recipe.dtype != "auto":
        return _DTYPES[storing.recipe.dtype]
    half = torch.float16 if largest < _FP16_SAFE else torch.bfloat16
    return computed if computed.itemsize <= 2 or rows * sizes[computed] <= storing.left else half


def _measured(
    tower: ImageTower | TextTower, items: Items, storing: Storing
) -> tuple[dict[torch.dtype, float], float, torch.dtype]:
    """Return the mean bytes of a stored row by data type, the largest activation, and the computed data type."""
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
    """Return inputs of two images, or of captions of different lengths."""
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
