"""Table of the rules about data. To add a rule, write a function in a file of rules, add a row here, and test it."""

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
    """A rule about data, with its requirements and its scope.

    Args:
        needs: parts of the pairs that the rule needs: images, captions or both.
        scope: uses besides `clipkit data check`. quick: before training, without opening an image;
            sampled: before training, on a sample; full: no other use.
    """

    needs: Literal["images", "captions"]
    scope: Scope


RULES = (
    DataRule("missing_images", missing_images, "an image file does not exist", "images", "quick"),
    DataRule("broken_images", broken_images, "an image cannot be opened (quick: its file is empty)", "images", "quick"),
    DataRule("tiny_images", tiny_images, "a side is under 32 pixels", "images", "full"),
    DataRule("extreme_shapes", extreme_shapes, "one side is more than three times the other", "images", "full"),
    DataRule("small_images", small_images,
         "an image is smaller than the model's input; a "
                 "warning if 20 % of the images or more are affected", "images", "sampled"),
    DataRule("leaked_images", leaked_images,
         "an image has the same bytes as an image in the validation data", "images", "sampled"),
    DataRule("leaked_near_images", leaked_near_images,
         "an image looks like an image in the validation data", "images", "full"),
    DataRule("duplicate_images", duplicate_images, "an image has the same bytes as an earlier image", "images", "full"),
    DataRule("near_duplicate_images", near_duplicate_images, "an image looks like an earlier image", "images", "full"),
    DataRule("empty_captions", empty_captions, "a caption is empty", "captions", "quick"),
    DataRule("file_name_captions", file_name_captions, "a caption is a file name", "captions", "quick"),
    DataRule("url_captions", url_captions, "a caption is a URL", "captions", "quick"),
    DataRule("stock_captions", stock_captions, "a caption could describe "
            "any image, e.g. 'photo of'", "captions", "quick"),
    DataRule("captions_are_classes", captions_are_classes,
         "the captions seem to be class names: nearly every image has one caption, shared with "
                 "several other images", "captions", "quick"),
    DataRule("one_word_captions", one_word_captions, "a caption is a single word", "captions", "quick"),
    DataRule("boilerplate_captions", boilerplate_captions,
         "the same caption is used for many different images (at least 100, or 0.2 % of the images "
                 "but at least 5)", "captions", "quick"),
    DataRule("shared_captions", shared_captions,
         "a caption is also used for another image; a "
                 "warning if 5 % of the captions or more are affected", "captions", "quick"),
    DataRule("repeated_captions", repeated_captions, "an image has the same caption twice", "captions", "quick"),
    DataRule("cut_captions", cut_captions, "a caption is longer than "
            "the model's context length", "captions", "sampled"),
    DataRule("leaked_captions", leaked_captions, "a caption also occurs in the validation data", "captions", "full"),
    DataRule("batch_too_large", batch_too_large, "the batch is larger than the dataset", "images", "full"),
    DataRule("false_negatives", false_negatives,
         "1 % of the rows of a batch have the same caption or image as another row (50 % if the loss "
                 "counts these as positives)",
         "images", "sampled"),
)  # fmt: skip


def apply_rules(data: CheckedData, scopes: Collection[Scope] = ("quick", "sampled", "full")) -> list[Finding]:
    """Apply all rules and return their findings, the most severe first."""
    has = {"images": data.pairs.has_images, "captions": data.pairs.has_captions}
    return most_severe_first(apply([rule for rule in RULES if rule.scope in scopes and has[rule.needs]], data))
