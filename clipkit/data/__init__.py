"""Data: sources to pairs, decoding, augmentation, sampling and collation; preprocessing comes in as a callable."""

from clipkit.data.augment import Policy, TextSafe
from clipkit.data.checks import Finding, Report, check, fix, quick_findings
from clipkit.data.labels import LabelledPictures, read_labelled
from clipkit.data.loader import Augment, Batch, pair_loader
from clipkit.data.near_misses import NearMisses, read_near_misses
from clipkit.data.pairs import Pairs, checked_negatives, read_pairs
from clipkit.data.prompts import Classes, Templates, prompts_of, read_classes, read_templates
from clipkit.data.sampler import EpochSampler, Sample
from clipkit.data.text_views import TextOf, TextView, WrongCaption

__all__ = [
    "Augment",
    "Batch",
    "Classes",
    "EpochSampler",
    "Finding",
    "LabelledPictures",
    "NearMisses",
    "Pairs",
    "Policy",
    "Report",
    "Sample",
    "Templates",
    "TextOf",
    "TextSafe",
    "TextView",
    "WrongCaption",
    "check",
    "checked_negatives",
    "fix",
    "pair_loader",
    "prompts_of",
    "quick_findings",
    "read_classes",
    "read_labelled",
    "read_near_misses",
    "read_pairs",
    "read_templates",
]
