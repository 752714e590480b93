"""Computation of stored inputs: run the frozen first layers of a tower on images, augmented views or captions."""

from collections.abc import Callable
from contextlib import closing

import torch
from jaxtyping import Int
from torch import Tensor

from clipkit.data import Augment, Batch, InputMaker, Loading, Sample
from clipkit.data.augment import shared_draft
from clipkit.data.feed import IndexedFeed
from clipkit.embedding.shared import evaluating
from clipkit.embedding.store import PartWriter
from clipkit.models import DualEncoder
from clipkit.models.devices import is_accelerator
from clipkit.models.encode import cpu_batch, encode_images, encode_strings
from clipkit.models.preprocess import channels_last
from clipkit.models.side_by_side import side_by_side, threads_for
from clipkit.models.towers import TRUNK_FEATURES, ImageTower, TextTower
from clipkit.training.stored.items import Items
from clipkit.training.stored.settings import Storing

Inputs = dict[str, Tensor]

# Rows per forward pass on a CPU.
_BATCH = 64
# A position is split into two numbers, a multiple of this number and the rest, which float32 represents exactly.
_LOW = 1 << 20


def frozen_part(storing: Storing) -> Callable[[ImageTower | TextTower, Inputs], Inputs]:
    """Return a function that runs the frozen layers of a tower, and returns the values to store.

    If the trunk is cut (see `clipkit.models.cut`), these values are the activations at the cut. Otherwise, they are the
    output of the whole trunk.
    """

    def run(tower: ImageTower | TextTower, inputs: Inputs) -> Inputs:
        if tower.cut is None:
            return {TRUNK_FEATURES: tower.trunk(**inputs).float()}
        with storing.autocast():
            return tower.cut.below(inputs)

    return run


def write_images(
    model: DualEncoder, items: Items, storing: Storing, skips_bad: bool
) -> Callable[[PartWriter, slice], Int[Tensor, " R"]]:
    """Return a function (writer, slice of the images) that encodes and stores these images.

    The function returns the row number of each image within the writer's part of the store; -1 for unreadable images.

    Args:
        model: model with a frozen image tower, or with frozen first layers in this tower.
        items: all images.
        storing: settings.
        skips_bad: True to record unreadable images instead of raising an error.
    """

    def write(writer: PartWriter, share: slice) -> Tensor:
        bad: dict[int, str] = {}
        images = items.values[share]
        with evaluating(model):
            numbers = encode_images(
                model.image,
                images,
                frozen_part(storing),
                _batch(model),
                model.device,
                storing.processes.is_main,
                bad if skips_bad else None,
                keep=_kept(writer),
            )
        positions = _positions(numbers)
        positions[list(bad)] = -1
        writer.bad = {share.start + row: reason for row, reason in bad.items()}
        return positions

    return write


def write_texts(model: DualEncoder, items: Items, storing: Storing) -> Callable[[PartWriter, slice], Int[Tensor, " R"]]:
    """Return a function (writer, slice of the captions) that encodes and stores these captions.

    The function returns the row number of each caption within the writer's part of the store.
    """

    def write(writer: PartWriter, share: slice) -> Tensor:
        with evaluating(model):
            numbers = encode_strings(
                model.text,
                items.values[share],
                frozen_part(storing),
                _batch(model),
                model.device,
                storing.processes.is_main,
                keep=_kept(writer),
            )
        return _positions(numbers)

    return write


def write_views(
    model: DualEncoder, feed: IndexedFeed, augment: Augment, storing: Storing, loading: Loading
) -> Callable[[PartWriter, slice], Int[Tensor, " R"]]:
    """Return a function (writer, slice of the rows) that encodes and stores augmented views of images.

    For N images, row `view * N + image` contains the image as it is augmented in epoch `view`. The function returns the
    row number of each view within the writer's part of the store; -1 if the loader replaced an unreadable image.

    Args:
        model: model with a frozen image tower, or with frozen first layers in this tower.
        feed: data with the images.
        augment: augmentation, a function from (image, epoch, position of the image) to the inputs of the tower.
        storing: settings.
        loading: settings of the loader.
    """
    count = len(feed.pairs.images)

    def write(writer: PartWriter, share: slice) -> Tensor:
        run = frozen_part(storing)
        rows = torch.arange(share.start, share.stop)
        size, threads = _BATCH, 1
        if not is_accelerator(model.device):
            few = cpu_batch(model.image, None)
            threads = threads_for(model.image, len(rows) // few)
            size = few if threads > 1 else _BATCH
        parts = rows.split(size)
        slices = [[Sample(row // count, row % count, 0) for row in part.tolist()] for part in parts]
        names = {"image_features": augment}
        maker = InputMaker(names, {}, _no_tokens, shared_draft(names.values()))
        positions: list[Tensor] = []

        def values(tower: ImageTower, batch: Batch) -> tuple[Batch, Inputs]:
            inputs = {name: value.to(model.device) for name, value in batch.inputs["image_features"].items()}
            with torch.inference_mode():
                return batch, run(tower, tower.ready(channels_last(inputs)))

        batches = feed.loader(slices, maker, loading)
        with evaluating(model), closing(side_by_side(model.image, batches, values, threads)) as outputs:
            for batch, stored in outputs:
                written = writer.append(stored)
                requested = rows[sum(len(part) for part in positions) :][: len(batch)] % count
                positions.append(torch.where(batch.image_ids == requested, written, -1))
                writer.bad |= batch.bad
        return torch.cat(positions) if positions else rows

    return write


def _kept(writer: PartWriter) -> Callable[[Inputs], Tensor]:
    """Return a function that stores B rows, and returns their row numbers within the writer's part of the store.

    The row numbers are encoded as floats (B, 2); `_positions` decodes them.
    """

    def keep(values: Inputs) -> Tensor:
        positions = writer.append(values)
        return torch.stack([positions // _LOW, positions % _LOW], dim=1).float()

    return keep


def _positions(numbers: Tensor) -> Int[Tensor, " R"]:
    high, low = numbers.long().unbind(dim=1)
    return high * _LOW + low


def _batch(model: DualEncoder) -> int | None:
    return None if is_accelerator(model.device) else _BATCH


def _no_tokens(texts: list[str]) -> Inputs:
    raise NotImplementedError("this run computes no features of texts")
