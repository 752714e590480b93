"""Data: sources to pairs, decoding, augmentation, sampling and collation; preprocessing comes in as a callable."""

from clipkit.data.augment import Policy, TextSafe
from clipkit.data.checks import Report, check, fix, quick_findings
from clipkit.data.labels import LabelledImages, read_labelled
from clipkit.data.loader import AtWork, Augment, Batch, StandIn, pair_loader
from clipkit.data.missing import broken_images, missing_places
from clipkit.data.mixture import join, split
from clipkit.data.near_misses import NearMisses, read_near_misses
from clipkit.data.pairs import Pairs, checked_negatives, read_pairs
from clipkit.data.prepare import Prepared, prepare, read_for_shards
from clipkit.data.prompts import Classes, Templates, prompts_of, read_classes, read_templates
from clipkit.data.sampler import EpochSampler, Sample
from clipkit.data.sequences import longest
from clipkit.data.stream import StreamPairs, StreamSampler, Stretch, read_stream, stream_loader
from clipkit.data.text_views import TextOf, TextView, WrongCaption
from clipkit.data.tokens import TokenStore

__all__ = [
    "AtWork",
    "Augment",
    "Batch",
    "Classes",
    "EpochSampler",
    "LabelledImages",
    "NearMisses",
    "Pairs",
    "Policy",
    "Prepared",
    "Report",
    "Sample",
    "StandIn",
    "StreamPairs",
    "StreamSampler",
    "Stretch",
    "Templates",
    "TextOf",
    "TextSafe",
    "TextView",
    "TokenStore",
    "WrongCaption",
    "broken_images",
    "check",
    "checked_negatives",
    "fix",
    "join",
    "longest",
    "missing_places",
    "pair_loader",
    "prepare",
    "prompts_of",
    "quick_findings",
    "read_classes",
    "read_for_shards",
    "read_labelled",
    "read_near_misses",
    "read_pairs",
    "read_stream",
    "read_templates",
    "split",
    "stream_loader",
]
