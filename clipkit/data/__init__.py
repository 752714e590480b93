"""Data: sources to pairs, decoding, augmentation, sampling and collation; preprocessing comes in as a callable."""

from clipkit.data.augment import SeededCrop, Unaugmented
from clipkit.data.labels import LabelledPictures, read_labelled
from clipkit.data.loader import Batch, pair_loader
from clipkit.data.near_misses import NearMisses, read_near_misses
from clipkit.data.pairs import Pairs, checked_negatives, read_pairs
from clipkit.data.prompts import Classes, Templates, prompts_of, read_classes, read_templates
from clipkit.data.sampler import EpochSampler, Sample

__all__ = [
    "Batch",
    "Classes",
    "EpochSampler",
    "LabelledPictures",
    "NearMisses",
    "Pairs",
    "Sample",
    "SeededCrop",
    "Templates",
    "Unaugmented",
    "checked_negatives",
    "pair_loader",
    "prompts_of",
    "read_classes",
    "read_labelled",
    "read_near_misses",
    "read_pairs",
    "read_templates",
]
