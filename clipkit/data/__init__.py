"""Data: reading sources, decoding, augmentation, sampling and batches."""

from clipkit.data.augment import Policy, TextSafe
from clipkit.data.batch import Augment, Batch, InputMaker
from clipkit.data.checks import Report, check, fix, quick_findings
from clipkit.data.feed import AnyFeed, IndexedFeed, Loading, StreamFeed, stream_feed
from clipkit.data.labels import LabeledImages, read_labeled
from clipkit.data.loader import Replacement, pair_loader
from clipkit.data.missing import broken_images, missing_positions
from clipkit.data.mixture import join, split
from clipkit.data.near_misses import NearMisses, read_near_misses
from clipkit.data.pairs import Pairs, checked_negatives, read_pairs
from clipkit.data.prepare import Prepared, prepare, read_for_shards
from clipkit.data.prompts import Classes, Templates, prompts_of, read_classes, read_templates
from clipkit.data.sampler import EpochSampler, Sample
from clipkit.data.sequences import longest
from clipkit.data.text_views import TextOf, TextView, WrongCaption
from clipkit.data.tokens import TokenStore
from clipkit.data.workers import WorkerProgress

__all__ = [
    "AnyFeed",
    "Augment",
    "Batch",
    "Classes",
    "EpochSampler",
    "IndexedFeed",
    "InputMaker",
    "LabeledImages",
    "Loading",
    "NearMisses",
    "Pairs",
    "Policy",
    "Prepared",
    "Replacement",
    "Report",
    "Sample",
    "StreamFeed",
    "Templates",
    "TextOf",
    "TextSafe",
    "TextView",
    "TokenStore",
    "WorkerProgress",
    "WrongCaption",
    "broken_images",
    "check",
    "checked_negatives",
    "fix",
    "join",
    "longest",
    "missing_positions",
    "pair_loader",
    "prepare",
    "prompts_of",
    "quick_findings",
    "read_classes",
    "read_for_shards",
    "read_labeled",
    "read_near_misses",
    "read_pairs",
    "read_templates",
    "split",
    "stream_feed",
]
