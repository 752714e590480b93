"""The table of rules about data: to add one, write a function in a file of rules, add a row here, and test it."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from clipkit.data.checks.batch import batch_too_large, false_negatives
from clipkit.data.checks.caption_rules import (
    boilerplate_captions,
    captions_are_classes,
    cut_captions,
    empty_captions,
    file_name_captions,
    leaked_captions,
    one_word_captions,
    repeated_captions,
    shared_captions,
    stock_captions,
    url_captions,
)
from clipkit.data.checks.checked_data import CheckedData
from clipkit.data.checks.image_rules import (
    broken_images,
    duplicate_images,
    extreme_shapes,
    leaked_images,
    leaked_near_images,
    missing_images,
    near_duplicate_images,
    small_images,
    tiny_images,
)
from clipkit.findings import Finding, Rule, apply, most_severe_first

Scope = Literal["quick", "sampled", "full"]


@dataclass(frozen=True)
class DataRule(Rule[CheckedData]):
    """A rule about data.

    Args:
        needs: what the pairs must have.
        scope: where it is applied besides `clipkit data check`. quick: before training, without opening an image;
            sampled: before training, on a sample; full: nowhere else.
    """

    needs: Literal["images", "captions"]
    scope: Scope


RULES = (
    DataRule("missing_images", missing_images, "an image file does not exist", "images", "quick"),
    DataRule("broken_images", broken_images, "an image cannot be opened (quick: its file is empty)", "images", "quick"),
    DataRule("tiny_images", tiny_images, "a side is under 32 pixels", "images", "full"),
    DataRule("extreme_shapes", extreme_shapes, "one side is more than three times the other", "images", "full"),
    DataRule("small_images", small_images,
         "an image is smaller than the model's input; a warning from 20 % of the images on", "images", "sampled"),
    DataRule("leaked_images", leaked_images,
         "an image has the same bytes as one of the validation data", "images", "sampled"),
    DataRule("leaked_near_images", leaked_near_images,
         "an image looks like one of the validation data", "images", "full"),
    DataRule("duplicate_images", duplicate_images, "an image has the same bytes as an earlier one", "images", "full"),
    DataRule("near_duplicate_images", near_duplicate_images, "an image looks like an earlier one", "images", "full"),
    DataRule("empty_captions", empty_captions, "a caption is empty", "captions", "quick"),
    DataRule("file_name_captions", file_name_captions, "a caption is a file name", "captions", "quick"),
    DataRule("url_captions", url_captions, "a caption is a URL", "captions", "quick"),
    DataRule("stock_captions", stock_captions, "a caption fits any image, e.g. 'photo of'", "captions", "quick"),
    DataRule("captions_are_classes", captions_are_classes,
         "nearly every image has one caption, which several others share", "captions", "quick"),
    DataRule("one_word_captions", one_word_captions, "a caption is a single word", "captions", "quick"),
    DataRule("boilerplate_captions", boilerplate_captions,
         "a caption stands on many different images (100, or 0.2 % of them but at least 5)", "captions", "quick"),
    DataRule("shared_captions", shared_captions,
         "another image has the caption too; a warning from 5 % of the captions on", "captions", "quick"),
    DataRule("repeated_captions", repeated_captions, "an image has the same caption twice", "captions", "quick"),
    DataRule("cut_captions", cut_captions, "a caption is longer than the model's context", "captions", "sampled"),
    DataRule("leaked_captions", leaked_captions, "the validation data has the caption too", "captions", "full"),
    DataRule("batch_too_large", batch_too_large, "a batch is larger than the dataset", "images", "full"),
    DataRule("false_negatives", false_negatives,
         "1 % of a batch has the caption or image of another row (50 % if the loss counts these as positives)",
         "images", "sampled"),
)  # fmt: skip


def apply_rules(data: CheckedData, scopes: Collection[Scope] = ("quick", "sampled", "full")) -> list[Finding]:
    """Return all findings about the data, the most severe first."""
    has = {"images": data.pairs.has_images, "captions": data.pairs.has_captions}
    return most_severe_first(apply([rule for rule in RULES if rule.scope in scopes and has[rule.needs]], data))
