"""Batches of inputs by name, loaded ahead."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipkit.data.pairs import Pairs
from clipkit.data.sampler import Sample
from clipkit.errors import DataError
from clipkit.pictures import open_picture

# (picture, epoch, position) -> pixels
Augment = Callable[[Image.Image, int, int], Float[Tensor, "3 H W"]]
Tokenize = Callable[[list[str]], dict[str, Int[Tensor, "B L"]]]


@dataclass(frozen=True)
class Batch:
    """One process's slice of a global batch: each tower's inputs by name, and who they are."""

    image: dict[str, Tensor]
    text: dict[str, Tensor]
    image_ids: Int[Tensor, " B"]
    """Position of each picture in the source."""
    caption_ids: Int[Tensor, " B"]
    """Equal for equal strings."""
    caption_rows: Int[Tensor, " B"]
    """Position of each caption in the source."""

    def __len__(self) -> int:
        return len(self.image_ids)


class _Pictures(Dataset[Tensor | DataError]):
    """Pixels of samples; what a user got wrong travels as a value, so that it stays one line on the other side."""

    def __init__(self, pairs: Pairs, augment: Augment | None) -> None:
        self.pairs = pairs
        self.augment = augment

    def __getitem__(self, sample: Sample) -> tuple[Sample, Tensor | DataError | None]:  # type: ignore[override]
        if self.augment is None:
            return sample, None
        try:
            picture = open_picture(self.pairs.pictures[sample.image])
            return sample, self.augment(picture, sample.epoch, sample.image)
        except DataError as error:
            return sample, error


class _Collate:
    def __init__(self, pairs: Pairs, tokenize: Tokenize | None) -> None:
        self.pairs = pairs
        self.tokenize = tokenize

    def __call__(self, samples: list[tuple[Sample, Tensor | DataError | None]]) -> Batch | DataError:
        pixels = [loaded for _, loaded in samples if isinstance(loaded, Tensor)]
        for _, loaded in samples:
            if isinstance(loaded, DataError):
                return loaded
        rows = [sample.caption for sample, _ in samples]
        captions = [self.pairs.captions[row] for row in rows]
        return Batch(
            image={"pixel_values": torch.stack(pixels)} if pixels else {},
            text=self.tokenize(captions) if self.tokenize is not None else {},
            image_ids=torch.tensor([sample.image for sample, _ in samples]),
            caption_ids=torch.from_numpy(self.pairs.caption_ids[rows]),
            caption_rows=torch.tensor(rows),
        )


def pair_loader(
    pairs: Pairs,
    batches: Iterable[list[Sample]],
    augment: Augment | None,
    tokenize: Tokenize | None,
    workers: int,
) -> Iterator[Batch]:
    """One iterator over all the `batches` of a run, so that workers live as long as the run does.

    Args:
        pairs: the data.
        batches: this process's samples, step by step.
        augment: picture to pixels; None where the image tower's input does not come from pixels.
        tokenize: captions to tokens; None where the text tower's input does not come from tokens.
        workers: loader processes; 0 loads here.

    Raises:
        DataError: when a picture that is due cannot be decoded.
    """
    loader: DataLoader[Tensor | DataError] = DataLoader(
        _Pictures(pairs, augment),
        batch_sampler=batches,
        collate_fn=_Collate(pairs, tokenize),
        num_workers=workers if augment is not None else 0,
        pin_memory=False,
        # Of its own: an iterator over a loader draws a seed, which must not come from the global generator.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, DataError):
            batch.everywhere = False  # the other processes' slices may be fine
            raise batch
        yield batch
