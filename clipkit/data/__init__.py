"""Data: reading sources, decoding, augmentation, sampling and batches."""

from typing import TYPE_CHECKING

from clipkit.lazy import on_first_use

if TYPE_CHECKING:
    from clipkit.data.augment import Policy, TextSafe
    from clipkit.data.batch import Augment, Batch, InputMaker
    from clipkit.data.checks import Report, check, fix, quick_findings
    from clipkit.data.feed import AnyFeed, IndexedFeed, Loading, StreamFeed, stream_feed
    from clipkit.data.hard_batches import hard_neighbors
    from clipkit.data.labels import LabeledImages, read_labeled
    from clipkit.data.loader import Replacement, pair_loader
    from clipkit.data.missing import broken_images, missing_positions
    from clipkit.data.mixture import join, split
    from clipkit.data.near_misses import NearMisses, read_near_misses
    from clipkit.data.pairs import Pairs, checked_negatives, read_pairs
    from clipkit.data.prepare import Prepared, read_for_shards
    from clipkit.data.prompts import Classes, Templates, prompts_of, read_classes, read_queries, read_templates
    from clipkit.data.sampler import EpochSampler, HardGroups, Sample
    from clipkit.data.sequences import longest
    from clipkit.data.text_views import TextOf, TextView, WrongCaption
    from clipkit.data.tokens import TokenStore
    from clipkit.data.workers import WorkerProgress

# The same names as in the imports above, which only type checkers read.
_NAMES = {
    "augment": "Policy TextSafe",
    "batch": "Augment Batch InputMaker",
    "checks": "Report check fix quick_findings",
    "feed": "AnyFeed IndexedFeed Loading StreamFeed stream_feed",
    "hard_batches": "hard_neighbors",
    "labels": "LabeledImages read_labeled",
    "loader": "Replacement pair_loader",
    "missing": "broken_images missing_positions",
    "mixture": "join split",
    "near_misses": "NearMisses read_near_misses",
    "pairs": "Pairs checked_negatives read_pairs",
    "prepare": "Prepared read_for_shards",
    "prompts": "Classes Templates prompts_of read_classes read_queries read_templates",
    "sampler": "EpochSampler HardGroups Sample",
    "sequences": "longest",
    "text_views": "TextOf TextView WrongCaption",
    "tokens": "TokenStore",
    "workers": "WorkerProgress",
}
__getattr__ = on_first_use(__name__, _NAMES)
