"""Rules about captions. Each rule returns a finding, or None if it finds no problem."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipkit.data.checks.captions import as_mask, normalized
from clipkit.data.checks.checked_data import CheckedData, DataRule
from clipkit.findings import Finding, Severity, counted, finding_about
from clipkit.tasks import shortened

# Short captions of different images are sometimes equal by chance; from this share of captions it is a problem.
_MANY_SHARED = 0.05
_OTHER_SOURCE = "use captions from another column or source, or drop the rows"


def empty_captions(data: CheckedData) -> Finding | None:
    """Report captions that are empty."""
    advice = "add the missing captions, or drop the rows (--fix)"
    return _report(data, data.captions.empty, "empty_captions", "empty captions", advice, "error", data.row_name)


def file_name_captions(data: CheckedData) -> Finding | None:
    """Report captions that are file names."""
    return _report(data, data.captions.file_name, "file_name_captions", "captions that are file names", _OTHER_SOURCE)


def url_captions(data: CheckedData) -> Finding | None:
    """Report captions that are URLs."""
    return _report(data, data.captions.url, "url_captions", "captions that are URLs", _OTHER_SOURCE)


def stock_captions(data: CheckedData) -> Finding | None:
    """Report captions that could describe any image, e.g. 'photo of'."""
    what, advice = (
        "uninformative captions, which could describe any image, e.g. 'photo of'",
        "drop the rows, because such a caption contains no information about its image",
    )
    return _report(data, data.captions.stock, "stock_captions", what, advice)


def captions_are_classes(data: CheckedData) -> Finding | None:
    """Report captions that seem to be class names."""
    index = data.captions
    if not index.are_classes:
        return None
    different, total = int((index.image_counts > 0).sum()), len(index.empty)
    return Finding(
        "captions_are_classes", "note",
        f"captions that seem to be class names: {total:,} captions, but only {different:,} distinct ones",
        "a batch contains many images with the same caption: use a loss that counts them as positives "
        "(loss.duplicates: positive, the default)",
        count=total, share=1.0, examples=tuple(repr(data.pairs.captions[int(row)]) for row in index.first[:10]),
    )  # fmt: skip


def one_word_captions(data: CheckedData) -> Finding | None:
    """Report captions of a single word, unless all captions are class names."""
    advice = "write full sentences; turn class names into sentences with ?templates="
    return _report(data, data.captions.one_word, "one_word_captions", "captions of one word", advice)


def boilerplate_captions(data: CheckedData) -> Finding | None:
    """Report captions that are used for many different images, with the most frequent as examples."""
    index = data.captions
    most = (
        " (one of these captions is used for most of the images)"
        if index.image_counts.max(initial=0) > len(data.pairs.images) / 2
        else ""
    )
    what = f"captions that are used for {index.boilerplate_images} or more different images{most}"
    advice = "drop the rows whose caption does not describe its image"
    finding = _report(data, index.boilerplate, "boilerplate_captions", what, advice, "warning")
    if finding is None:
        return None
    frequent = np.unique(index.distinct[index.boilerplate])
    frequent = frequent[np.argsort(-index.image_counts[frequent], kind="stable")][:10].tolist()
    images = [counted(int(index.image_counts[number]), "image") for number in frequent]
    texts = [f"{shortened(repr(data.pairs.captions[int(index.first[number])]), 100)}" for number in frequent]
    return replace(finding, examples=tuple(f"{text} (on {on})" for text, on in zip(texts, images, strict=True)))


def shared_captions(data: CheckedData) -> Finding | None:
    """Report captions that are used for several images, but for too few to be boilerplate."""
    shared = data.captions.shared
    return _report(
        data, shared, "shared_captions", "captions that are also used for another image",
        "in one batch, equal captions are false negatives: use a loss that counts them as positives "
        "(loss.duplicates: positive, the default); evaluate retrieval with --merge-captions",
        "warning" if shared.any() and shared.mean() >= _MANY_SHARED else "note",
    )  # fmt: skip


def repeated_captions(data: CheckedData) -> Finding | None:
    """Report captions that occur more than once for the same image."""
    what, advice = (
        "captions repeated for the same image",
        "training uses such a caption more often than the other captions: drop the repetitions (--fix)",
    )
    return _report(data, data.captions.repeated, "repeated_captions", what, advice)


def cut_captions(data: CheckedData) -> Finding | None:
    """Report captions that are longer than the model's context length, longest first."""
    if data.context_length is None:
        return None
    counts = data.token_counts
    cut = np.flatnonzero(counts > data.context_length)
    return finding_about(
        cut[np.argsort(-counts[cut], kind="stable")].tolist(), len(counts),
        name="cut_captions", what=f"captions longer than the model's context length of {data.context_length} tokens",
        describe=lambda number: f"{counts[number]} tokens: {data.caption_name(int(data.caption_rows[number]))}",
        advice="the model ignores the end of such a caption: shorten these captions, split them into several "
        "captions (data.captions: all), or use a model with a longer context",
    )  # fmt: skip


def leaked_captions(data: CheckedData) -> Finding | None:
    """Report captions that also occur in the data `against`, usually the validation data."""
    if data.against is None or not data.against.has_captions:
        return None
    captions = normalized(data.pairs.captions)
    leaked = as_mask(pc.is_in(captions, value_set=normalized(data.against.captions)))
    return _report(
        data, leaked & ~as_mask(pc.equal(captions, "")), "leaked_captions",
        f"captions that are also in {data.against.name}",
        "short captions may be equal by chance; many equal long captions mean that both datasets contain the "
        "same images: split the data by image, not by caption",
    )  # fmt: skip


def _report(
    data: CheckedData,
    mask: NDArray[np.bool_],
    name: str,
    what: str,
    advice: str,
    severity: Severity | None = None,
    describe: Callable[[int], str] | None = None,
) -> Finding | None:
    return finding_about(
        np.flatnonzero(mask).tolist(), len(mask), name=name, what=what, advice=advice,
        describe=describe or data.caption_name, severity=severity,
    )  # fmt: skip


CAPTION_RULES = (
    DataRule("empty_captions", empty_captions, "a caption is empty", "captions", "quick"),
    DataRule("file_name_captions", file_name_captions, "a caption is a file name", "captions", "quick"),
    DataRule("url_captions", url_captions, "a caption is a URL", "captions", "quick"),
    DataRule("stock_captions", stock_captions,
         "a caption could describe any image, e.g. 'photo of'", "captions", "quick"),
    DataRule("captions_are_classes", captions_are_classes,
         "the captions seem to be class names: nearly every image has one caption, shared with several other images",
         "captions", "quick"),
    DataRule("one_word_captions", one_word_captions, "a caption is a single word", "captions", "quick"),
    DataRule("boilerplate_captions", boilerplate_captions,
         "the same caption is used for many different images (at least 100, or 0.2 % of the images but at least 5)",
         "captions", "quick"),
    DataRule("shared_captions", shared_captions,
         "a caption is also used for another image; a warning if 5 % of the captions or more are affected",
         "captions", "quick"),
    DataRule("repeated_captions", repeated_captions, "an image has the same caption twice", "captions", "quick"),
    DataRule("cut_captions", cut_captions,
         "a caption is longer than the model's context length", "captions", "sampled"),
    DataRule("leaked_captions", leaked_captions,
         "a caption also occurs in the validation data", "captions", "full"),
)  # fmt: skip
