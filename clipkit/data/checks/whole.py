"""The whole check: everything is read once, then findings and facts."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipkit.data.checks.captions import TokenCounts, caption_findings, cut_finding, equal_pairs, lengths, normalised
from clipkit.data.checks.duplicates import Alike, alike, joined
from clipkit.data.checks.findings import FEW, SEVERITIES, Finding, by_severity, finding_of
from clipkit.data.checks.images import (
    duplicate_findings,
    file_findings,
    image_findings,
    leak_findings,
    names_of,
)
from clipkit.data.checks.look import Looked, look_at
from clipkit.data.pairs import Pairs
from clipkit.data.sequences import Strings

# What nearly every encoder takes, where no model is named.
_USUAL_SIZE = 224


@dataclass(frozen=True)
class Report:
    """What `check` found."""

    data: str
    against: str | None
    facts: dict[str, Any]
    """Counts, lengths and sizes: what the data is, not what is wrong with it."""
    findings: list[Finding]
    """Errors first."""
    broken: dict[int, str] = field(default_factory=dict, repr=False)
    """By position why an image cannot be opened; for `fix`."""
    leaked: dict[int, str] = field(default_factory=dict, repr=False)
    """By position what an image is in the other set; for `fix`."""
    keepers: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    """(N,) which image each one is merged into, itself where it stays; for `fix`."""

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON: task, data, against, facts, counts (findings by severity) and findings."""
        counts = {severity: sum(one.severity == severity for one in self.findings) for severity in SEVERITIES}
        return {
            "task": "check",
            "data": self.data,
            "against": self.against,
            "facts": self.facts,
            "counts": counts,
            "findings": [one.to_dict() for one in self.findings],
        }


def check(
    pairs: Pairs,
    against: Pairs | None = None,
    *,
    token_counts: TokenCounts | None = None,
    context_length: int | None = None,
    image_size: int | None = None,
    batch_size: int = 512,
    workers: int | None = None,
) -> Report:
    """Look at every image and caption once.

    Args:
        pairs: N images and M captions, read with `broken=("images", "captions")` so that nothing stops it.
        against: what must not be among them, as the set that a model is measured on.
        token_counts: strings -> their lengths in a model's tokens, uncut; None: lengths are in words.
        context_length: of that model in tokens.
        image_size: side of its input in pixels; None: the share of images under 224 is a fact, no finding.
        batch_size: pairs in a global batch, for the false negatives to expect in it.
        workers: threads; None: one a core, at most 16.

    Example:
        >>> report = check(read_pairs("captions.csv", broken=("images", "captions")))    # doctest: +SKIP
        >>> [finding.name for finding in report.findings]                                  # doctest: +SKIP
        ['duplicate_images']
    """
    names = names_of(pairs)
    facts: dict[str, Any] = {"images": len(pairs.images) if pairs.has_images else 0}
    found: list[Finding | None] = []
    looked, same = look_at([]), None
    leaked: dict[int, str] = {}
    keepers = np.arange(len(pairs.images))
    if pairs.has_images:
        looked = look_at(pairs.images, workers, "images")
        same, leaked = _compared(looked, against, workers)
        facts |= _image_facts(looked, image_size or _USUAL_SIZE)
        found += image_findings(pairs, looked, image_size)
        if against is not None:
            found += leak_findings(pairs, leaked, against.name)
        found += duplicate_findings(pairs, same)
        area = looked.sizes[:, 0].astype(np.int64) * looked.sizes[:, 1]
        rank = -area
        rank[list(leaked)] = 1  # last, as they are dropped
        keepers = same.keepers(rank)
    if pairs.has_captions:
        counts = lengths(pairs.captions, token_counts)
        facts |= _caption_facts(pairs, counts, token_counts is not None)
        found += caption_findings(pairs, names)
        if token_counts is not None and context_length is not None:
            facts["context_length"] = context_length
            facts["share_cut"] = float((counts > context_length).mean())
            found.append(cut_finding(pairs, counts, context_length, names))
        if against is not None and against.has_captions:
            found.append(_leaked_captions(pairs, against))
    if pairs.has_images:
        facts["batch"] = expected_false_negatives(pairs, same, batch_size)
        found += _batch_findings(facts["batch"], len(pairs.images))
    name = None if against is None else against.name
    return Report(pairs.name, name, facts, by_severity(found), looked.broken, leaked, keepers)


def quick_findings(pairs: Pairs) -> list[Finding]:
    """What can be told without opening an image: missing and empty files, and captions; a million rows in seconds.

    Example:
        >>> from clipkit.data.sequences import Files, Strings
        >>> files = Files.of(Path(), pa.array(["gone.jpg"], pa.large_string()))    # doctest: +SKIP
        >>> quick_findings(Pairs("x", files, ["a dog"], np.zeros(1, int)))         # doctest: +SKIP
        [Finding(name='missing_images', severity='error', …)]
    """
    found = file_findings(pairs) if pairs.has_images else []
    if pairs.has_captions:
        found += caption_findings(pairs, names_of(pairs))
    return by_severity(found)


def expected_false_negatives(pairs: Pairs, same: Alike | None, batch_size: int) -> dict[str, Any]:
    """How many pairs of rows in one batch to expect that say or show the same.

    A batch is drawn as training draws it: different images, each with one of its captions. Two given images are in
    it together with probability G (G - 1) / (N (N - 1)).

    Args:
        pairs: N images.
        same: which of them are the same, where that is known.
        batch_size: G; at most N.

    Returns:
        size (G), same_caption (expected pairs of rows whose captions are the same string, the images being two), and
        same_image (expected pairs of rows whose images are the same, by bytes or to the eye).
    """
    count = len(pairs.images)
    size = min(batch_size, count)
    together = size * (size - 1) / (count * (count - 1)) if count > 1 else 0.0
    return {
        "size": batch_size,
        "same_caption": together * equal_pairs(pairs) if pairs.has_captions else 0.0,
        "same_image": together * same.pairs if same is not None else 0.0,
    }


def _batch_findings(batch: dict[str, Any], images: int) -> list[Finding | None]:
    size = batch["size"]
    found: list[Finding | None] = []
    if size > images:
        found.append(
            Finding(
                "batch_too_large", "warning", images, 1.0,
                f"images, fewer than a batch of {size:,}",
                "training needs at least one batch: take a smaller train.batch_size or more data",
            )
        )  # fmt: skip
    pairs = batch["same_caption"] + batch["same_image"]
    # Each pair makes two rows that have a negative which is none.
    share = min(1.0, 2 * pairs / max(1, min(size, images)))
    if share >= FEW:
        found.append(
            Finding(
                "false_negatives", "warning", round(2 * pairs), share,
                f"rows of a batch of {size:,} whose caption or image another row has too, as expected",
                "a loss that counts equal captions as positives, as clipkit's do, sees to the captions; merge images "
                "that are the same (--fix)",
            )
        )  # fmt: skip
    return found


def _compared(looked: Looked, against: Pairs | None, workers: int | None) -> tuple[Alike, dict[int, str]]:
    """Which images are the same among themselves, and which are in the other set, as what."""
    count = len(looked)
    if against is None or not against.has_images:
        return alike(looked), {}
    there = names_of(against)
    both = alike(joined(looked, look_at(against.images, workers, "against")))
    # Of each content its first place, and the place in the other set where it is there.
    outside: dict[int, int] = {}
    for place in range(count, len(both.first)):
        outside.setdefault(int(both.first[place]), place - count)
    near: dict[int, int] = {}
    for one, other in both.near.tolist():
        for own, its in ((one, other), (other, one)):
            if own < count and its in outside:
                near.setdefault(own, outside[its])
    leaked: dict[int, str] = {}
    for place, first in enumerate(both.first[:count].tolist()):
        if first in outside:
            leaked[place] = f"= {there(outside[first])}"
        elif first in near:
            leaked[place] = f"~ {there(near[first])}"
    inside = both.near[(both.near < count).all(axis=1)]
    return Alike(both.first[:count], inside), leaked


def _leaked_captions(pairs: Pairs, against: Pairs) -> Finding | None:
    own, other = normalised(pairs.captions), normalised(against.captions)
    there = np.asarray(pc.is_in(own, value_set=other).to_numpy(zero_copy_only=False), dtype=bool)
    there &= ~np.asarray(pc.equal(own, "").to_numpy(zero_copy_only=False), dtype=bool)
    names = names_of(pairs)
    return finding_of(
        "leaked_captions", None, np.flatnonzero(there), len(own), f"captions that are in {against.name} too",
        lambda row: f"{pairs.captions[row]!r:.100} ({names(int(pairs.image_of_caption[row]))})",
        "short ones coincide; many long ones say that the sets were drawn from one: split by image again",
    )  # fmt: skip


def _image_facts(looked: Looked, image_size: int) -> dict[str, Any]:
    whole = looked.sizes.min(axis=1, initial=1 << 30) > 0
    sizes = looked.sizes[whole]
    facts: dict[str, Any] = {"bytes": int(looked.file_bytes[looked.file_bytes > 0].sum())}
    if not len(sizes):
        return facts
    short = sizes.min(axis=1)
    return facts | {
        "width": _quantiles(sizes[:, 0]),
        "height": _quantiles(sizes[:, 1]),
        "short_side": _quantiles(short),
        "aspect_ratio": _quantiles(sizes[:, 0] / sizes[:, 1]),
        "input_size": image_size,
        "share_smaller": float((short < image_size).mean()),
    }


def _caption_facts(pairs: Pairs, counts: NDArray[np.int64], tokens: bool) -> dict[str, Any]:
    column = Strings.of(pairs.captions).column
    facts: dict[str, Any] = {"captions": len(column), "distinct_captions": int(pc.count_distinct(column).as_py())}
    if pairs.has_images:
        facts["captions_a_image"] = _quantiles(np.bincount(pairs.image_of_caption, minlength=len(pairs.images)))
    return facts | {"caption_length": {"unit": "tokens" if tokens else "words"} | _quantiles(counts)}


def _quantiles(values: NDArray[Any]) -> dict[str, float]:
    low, middle, high, top = np.quantile(values, [0, 0.5, 0.95, 1]).tolist()
    return {"min": low, "median": middle, "p95": high, "max": top, "mean": float(values.mean())}
