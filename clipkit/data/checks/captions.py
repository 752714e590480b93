"""What is wrong with captions, a column at a time: fast for a million of them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipkit.data.checks.findings import Finding, Severity, counted, finding_of, some
from clipkit.data.pairs import Pairs
from clipkit.data.sequences import Strings, first_positions

TokenCounts = Callable[[list[str]], Sequence[int]]
"""Strings -> how many tokens each has before it is cut, with those at its start and end."""

# Said of any image: none of them tells one from another.
_OF_ANY = (
    r"(?i)^[^\pL\pN]*((a|an|the|this|is|of|my|stock|no|default|here|s)[^\pL\pN]+)*"
    r"(image|images|photo|photos|photograph|image|images|pic|img|untitled|caption|captions|description|title|"
    r"alt text|alt|placeholder|thumbnail|null|none|nan|n/?a|undefined|unknown|unnamed|todo|tbd|test)"
    r"([^\pL\pN]+(of|by|from|a|an|the|is|not|available|here|credit|\d+))*[^\pL\pN]*$"
)
_FILE_NAME = (
    r"(?i)^[^\s]*\.(jpe?g|png|gif|webp|bmp|tiff?|heic|svg)$|^(img|dsc[nf]?|dcim|pict|screenshot)[-_ ]?\d{2,}\S*$"
)
_ADDRESS = r"(?i)^(https?://|www\.)\S+$"
# Written without spaces between words: a caption of these has more than one word.
_WITHOUT_SPACES = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
# One caption on so many different images says nothing of them, however large the set; in a smaller one a share of it.
_ON_IMAGES, _AT_LEAST, _ON_SHARE = 100, 5, 0.002
# A photo of a dog is said to be one in any large set; only where it is the rule does it cost anything.
_OFTEN_SHARED = 0.05
_TOKENS_AT_ONCE = 10_000


def normalised(captions: Sequence[str]) -> pa.Array:
    """Captions in lower case without spaces and punctuation; what is nothing else stays as it is.

    Example:
        >>> normalised(["A dog .", "a  DOG", "?!"]).to_pylist()
        ['adog', 'adog', '?!']
    """
    lower: Any = pc.utf8_lower(Strings.of(captions).column)
    bare = pc.replace_substring_regex(lower, pattern=r"[\s\p{P}\p{Z}]+", replacement="")
    return pc.if_else(pc.equal(bare, ""), lower, bare)


def lengths(captions: Sequence[str], token_counts: TokenCounts | None) -> NDArray[np.int64]:
    """(M,) in tokens, or in words where nobody counts tokens."""
    column = Strings.of(captions).column
    if token_counts is None:
        return pc.count_substring_regex(column, pattern=r"\S+").to_numpy().astype(np.int64)
    which, first = first_positions(column)
    distinct = Strings(column.take(pa.array(first)))
    counts = [
        count
        for start in range(0, len(distinct), _TOKENS_AT_ONCE)
        for count in token_counts(distinct[start : start + _TOKENS_AT_ONCE])
    ]
    return np.array(counts, dtype=np.int64)[which] if counts else np.zeros(0, np.int64)


def caption_findings(pairs: Pairs, names: Callable[[int], str]) -> list[Finding | None]:
    """All but lengths in tokens.

    Args:
        pairs: with captions.
        names: position of an image -> what a person calls it.
    """
    column = Strings.of(pairs.captions).column
    total = len(column)
    whose = names if pairs.has_images else (lambda image: f"row {image + 1}")

    def of_image(row: int) -> str:
        return whose(int(pairs.image_of_caption[row]))

    def said(row: int) -> str:
        return f"{pairs.captions[row]!r:.100} ({of_image(row)})"

    empty = np.flatnonzero(_true(pc.equal(column, "")))
    found: list[Finding | None] = [
        finding_of(
            "empty_captions", "error", empty, total, "empty captions", of_image,
            "write them or drop the rows; --fix drops them",
        )
    ]  # fmt: skip
    full = np.ones(total, bool)
    full[empty] = False
    keys = normalised(pairs.captions)
    matching = [
        full & _true(pc.match_substring_regex(column, pattern=pattern)) for pattern in (_ADDRESS, _FILE_NAME, _OF_ANY)
    ]
    # Each caption once: www.example.org/a.jpg is an address, img-1234 a file name.
    address, file_name, stock = (
        np.flatnonzero(own & ~np.logical_or.reduce(matching[:place], initial=False))
        for place, own in enumerate(matching)
    )
    found += [
        finding_of(
            "file_name_captions", None, file_name, total, "captions that are file names", said,
            "take the captions from elsewhere, or drop the rows",
        ),
        finding_of(
            "url_captions", None, address, total, "captions that are addresses", said,
            "take the captions from elsewhere, or drop the rows",
        ),
        finding_of(
            "stock_captions", None, stock, total, "captions that fit any image, as 'image' or 'photo of'", said,
            "drop the rows: they teach that any image fits",
        ),
    ]  # fmt: skip
    taken = np.zeros(total, bool)
    taken[np.concatenate([stock, file_name, address])] = True
    which, first = first_positions(keys)
    images_with = _images_with(which, pairs.image_of_caption, full)
    if pairs.has_images and _are_classes(pairs, images_with, full):
        found.append(
            Finding(
                "captions_are_classes", "note", total, 1.0,
                f"captions, only {int((images_with > 0).sum()):,} of them different: they seem to be classes",
                "a batch holds many images of one caption: take a loss that counts them as positives, as clipkit's",
                some(first.tolist(), lambda row: repr(pairs.captions[row])),
            )
        )  # fmt: skip
    else:
        found += _repetitive(pairs, which, first, images_with, full & ~taken, said)
    if pairs.has_images:
        found.append(_repeated(pairs, which, full, said))
    return found


def cut_finding(
    pairs: Pairs, counts: NDArray[np.int64], context_length: int, names: Callable[[int], str]
) -> Finding | None:
    """Captions that are longer than the model reads."""
    cut = np.flatnonzero(counts > context_length)
    order = cut[np.argsort(-counts[cut], kind="stable")]
    return finding_of(
        "cut_captions", None, order, len(counts), f"captions longer than the model's {context_length} tokens",
        lambda row: f"{counts[row]} tokens: {pairs.captions[row]!r:.80} ({names(int(pairs.image_of_caption[row]))})",
        "the end of each is never read: shorten them, split them into several captions, or take a model of longer "
        "context",
    )  # fmt: skip


def equal_pairs(pairs: Pairs) -> float:
    """Of the pairs of different images, each with one of its captions drawn, how many have the same one: a sum of
    probabilities over all pairs."""
    images = pairs.image_of_caption
    weight = 1 / np.bincount(images, minlength=len(pairs.images))[images]
    full = ~_true(pc.equal(Strings.of(pairs.captions).column, ""))
    text = pairs.caption_ids
    # One entry an image and caption: an image's own captions are no pair.
    keys, which = np.unique((text * len(pairs.images) + images)[full], return_inverse=True)
    shares = np.bincount(which, weight[full], len(keys))
    of_text = np.unique(keys // len(pairs.images), return_inverse=True)[1]
    squares, sums = np.bincount(of_text, shares**2), np.bincount(of_text, shares)
    return max(0.0, float((sums**2 - squares).sum() / 2))


def _repetitive(
    pairs: Pairs,
    which: NDArray[np.int64],
    first: NDArray[np.int64],
    images_with: NDArray[np.int64],
    usual: NDArray[np.bool_],
    said: Callable[[int], str],
) -> list[Finding | None]:
    """One word, one caption for many images, one caption for a few. `usual`: no other finding names them."""
    column = Strings.of(pairs.captions).column
    total = len(column)
    one_word = ~_true(pc.match_substring_regex(column, pattern=rf"\s|{_WITHOUT_SPACES}"))
    often = max(_AT_LEAST, min(_ON_IMAGES, int(_ON_SHARE * len(pairs.images))))
    boilerplate = usual & (images_with[which] >= often) & pairs.has_images
    shared = usual & ~boilerplate & (images_with[which] > 1) & pairs.has_images
    frequent = np.unique(which[boilerplate])
    frequent = frequent[np.argsort(-images_with[frequent], kind="stable")]

    def often_said(own: int) -> str:
        return f"{pairs.captions[int(first[own])]!r:.100} (on {counted(int(images_with[own]), 'image')})"

    severity: Severity = "warning" if shared.sum() >= _OFTEN_SHARED * total else "note"
    found: list[Finding | None] = [
        finding_of(
            "one_word_captions", None, np.flatnonzero(usual & one_word & ~boilerplate), total, "captions of one word",
            said, "a model of sentences learns little from them: write them out, or give ?templates= for classes",
        )
    ]  # fmt: skip
    if len(frequent):
        count = int(boilerplate.sum())
        most = float(images_with.max()) > len(pairs.images) / 2
        found.append(
            Finding(
                "boilerplate_captions", "warning", count, count / total,
                f"captions that stand on {often} or more different images"
                + (", one of them on most of all" if most else ""),
                "look at them; drop the rows whose caption says nothing of its image",
                some(frequent.tolist(), often_said),
            )
        )  # fmt: skip
    found.append(
        finding_of(
            "shared_captions", severity, np.flatnonzero(shared), total, "captions that another image has too", said,
            "in one batch they are false negatives: take a loss that counts equal captions as positives, as clipkit's "
            "do; in retrieval give --merge-captions",
        )
    )  # fmt: skip
    return found


def _repeated(
    pairs: Pairs, which: NDArray[np.int64], full: NDArray[np.bool_], said: Callable[[int], str]
) -> Finding | None:
    """A caption that its image has already."""
    rows = np.flatnonzero(full)
    keys = pairs.image_of_caption[rows] * (int(which.max(initial=0)) + 1) + which[rows]
    _, begins = np.unique(keys, return_index=True)
    again = np.ones(len(rows), bool)
    again[begins] = False
    return finding_of(
        "repeated_captions", None, rows[again], len(full), "captions that their image has already", said,
        "they weigh double: drop them; --fix does",
    )  # fmt: skip


def _are_classes(pairs: Pairs, images_with: NDArray[np.int64], full: NDArray[np.bool_]) -> bool:
    """Whether nearly every image has one caption, which it shares with several others."""
    strings = images_with[images_with > 0]
    several = strings[strings > 1]
    return bool(
        len(strings) > 1
        and int(full.sum()) <= 1.1 * len(pairs.images)
        and several.sum() >= 0.9 * len(pairs.images)
        and len(strings) <= len(pairs.images) / 4
    )


def _images_with(
    which: NDArray[np.int64], image_of_caption: NDArray[np.int64], full: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """For each distinct caption how many different images have it; 0 for the empty one."""
    count = int(which.max(initial=-1)) + 1
    images = int(image_of_caption.max(initial=-1)) + 1
    distinct = np.unique((which * images + image_of_caption)[full])
    return np.bincount(distinct // max(1, images), minlength=count)


def _true(column: Any) -> NDArray[np.bool_]:
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=bool)
