"""Data: sources to pairs, decoding, augmentation, sampling and collation; preprocessing comes in as a callable."""

from clipkit.data.augment import SeededCrop, Unaugmented
from clipkit.data.labels import LabelledPictures, read_labelled
from clipkit.data.loader import Batch, pair_loader
from clipkit.data.pairs import Pairs, read_pairs
from clipkit.data.sampler import EpochSampler, Sample

__all__ = [
    "Batch",
    "EpochSampler",
    "LabelledPictures",
    "Pairs",
    "Sample",
    "SeededCrop",
    "Unaugmented",
    "pair_loader",
    "read_labelled",
    "read_pairs",
]
