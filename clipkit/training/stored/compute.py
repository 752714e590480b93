"""Computation of stored inputs: run the frozen part of a tower over images, augmented views or captions."""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from clipkit.data import Augment, InputMaker, Loading, Sample
from clipkit.data.augment import shared_draft
from clipkit.data.feed import IndexedFeed
from clipkit.embedding.shared import evaluating
from clipkit.embedding.store import PartWriter
from clipkit.models import DualEncoder
from clipkit.models.devices import is_accelerator
from clipkit.models.encode import encode_images, encode_strings
from clipkit.models.preprocess import channels_last
from clipkit.models.towers import TRUNK_FEATURES, ImageTower, TextTower
from clipkit.training.stored.items import Items
from clipkit.training.stored.settings import Storing

Inputs = dict[str, Tensor]

# Rows per forward pass on a CPU.
_BATCH = 64
# float32 holds whole numbers exactly below this number squared.
_LOW = 1 << 20


def frozen_part(tower: ImageTower | TextTower, storing: Storing) -> Callable[[Inputs], Inputs]:
    """Return the function that computes the stored values from inputs: activations at the cut, or trunk features."""

    def run(inputs: Inputs) -> Inputs:
        if tower.cut is None:
            return {TRUNK_FEATURES: tower.trunk(**inputs).float()}
        with storing.autocast():
            return tower.cut.below(inputs)

    return run


def write_images(
    model: DualEncoder, items: Items, storing: Storing, skips_bad: bool
) -> Callable[[PartWriter, slice], Int[Tensor, " R"]]:
    """Return a function that computes and stores the inputs of some images, without augmentation.

    Args:
        model: the model.
        items: all images.
        storing: settings.
        skips_bad: True to record unreadable images instead of raising an error.
    """

    def write(writer: PartWriter, share: slice) -> Tensor:
        bad: dict[int, str] = {}
        through = _appended(frozen_part(model.image, storing), writer)
        images = items.values[share]
        with evaluating(model):
            numbers = encode_images(
                model.image, images, through, _batch(model), model.device, _shows(storing), bad if skips_bad else None
            )
        positions = _positions(numbers)
        positions[list(bad)] = -1
        writer.bad = {share.start + row: reason for row, reason in bad.items()}
        return positions

    return write


def write_texts(model: DualEncoder, items: Items, storing: Storing) -> Callable[[PartWriter, slice], Int[Tensor, " R"]]:
    """Return a function that computes and stores the inputs of some captions."""

    def write(writer: PartWriter, share: slice) -> Tensor:
        through = _appended(frozen_part(model.text, storing), writer)
        with evaluating(model):
            numbers = encode_strings(
                model.text, items.values[share], through, _batch(model), model.device, _shows(storing)
            )
        return _positions(numbers)

    return write


def write_views(
    model: DualEncoder, feed: IndexedFeed, augment: Augment, storing: Storing, loading: Loading
) -> Callable[[PartWriter, slice], Int[Tensor, " R"]]:
    """Return a function that computes and stores the inputs of some augmented views.

    Row `view * images + image` of the store is the view of an image in epoch `view`.

    Args:
        model: the model.
        feed: the data.
        augment: function from (image, epoch, position) to the tower's inputs.
        storing: settings.
        loading: settings of the loader; the rows of replaced images do not exist.
    """
    count = len(feed.pairs.images)

    def write(writer: PartWriter, share: slice) -> Tensor:
        run = frozen_part(model.image, storing)
        rows = torch.arange(share.start, share.stop)
        slices = [[Sample(row // count, row % count, 0) for row in part.tolist()] for part in rows.split(_BATCH)]
        names = {"image_features": augment}
        maker = InputMaker(names, {}, _no_tokens, shared_draft(names.values()))
        positions: list[Tensor] = []
        with evaluating(model), torch.inference_mode():
            for batch in feed.loader(slices, maker, loading):
                inputs = {name: value.to(model.device) for name, value in batch.inputs["image_features"].items()}
                written = writer.append(run(model.image.ready(channels_last(inputs))))
                requested = rows[sum(len(part) for part in positions) :][: len(batch)] % count
                positions.append(torch.where(batch.image_ids == requested, written, -1))
                writer.bad |= batch.bad
        return torch.cat(positions) if positions else rows

    return write


def _appended(run: Callable[[Inputs], Inputs], writer: PartWriter) -> Callable[[Inputs], Tensor]:
    """Return a function that stores what `run` returns, and returns the positions as float32 (B, 2)."""

    def through(inputs: Inputs) -> Tensor:
        positions = writer.append(run(inputs))
        return torch.stack([positions // _LOW, positions % _LOW], dim=1).float()

    return through


def _positions(numbers: Tensor) -> Int[Tensor, " R"]:
    high, low = numbers.long().unbind(dim=1)
    return high * _LOW + low


def _batch(model: DualEncoder) -> int | None:
    return None if is_accelerator(model.device) else _BATCH


def _shows(storing: Storing) -> bool:
    return storing.processes.is_main


def _no_tokens(texts: list[str]) -> Inputs:
    raise NotImplementedError("no features come from text")
