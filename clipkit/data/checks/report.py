"""Complete check of a dataset: reports problems and statistics of all images and captions."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipkit.data.checks.batch import expected_false_negatives
from clipkit.data.checks.captions import TokenCounts, lengths
from clipkit.data.checks.checked_data import CheckedData
from clipkit.data.checks.duplicates import Duplicates
from clipkit.data.checks.leaks import Leak, find_leaks
from clipkit.data.checks.rules import apply_rules
from clipkit.data.checks.scan import EMPTY, MISSING, ImageScan, scan_images
from clipkit.data.pairs import Pairs
from clipkit.data.sequences import Files, Strings
from clipkit.data.sources.remote import Remote
from clipkit.findings import SEVERITIES, Finding, most_severe_first
from clipkit.images import Stored, size_of
from clipkit.recipe import TrainRecipe

# Input size of nearly all encoders, used if no model is given.
_USUAL_SIZE = 224
_USUAL_BATCH = TrainRecipe().batch_size


@dataclass(frozen=True)
class Report:
    """Result of `check`: statistics of the data, and the problems that were found."""

    data: str
    against: Pairs | None
    facts: dict[str, Any]
    """Statistics of the data, such as numbers of images, lengths of captions and sizes of images."""
    findings: list[Finding]
    """Findings, the most severe first."""
    broken: dict[int, str] = field(default_factory=dict, repr=False)
    """Reason why an image cannot be opened, by position of the image; used by `fix`."""
    leaked: dict[int, Leak] = field(default_factory=dict, repr=False)
    """Images that also occur in `against`: position in the data -> position in `against`; used by `fix`."""
    duplicates: Duplicates | None = field(default=None, repr=False)
    """Images that have the same bytes or look the same; used by `fix`."""
    rank: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    """(N,) rank of each image, used by `fix`: among duplicates, the image with the lowest rank is kept."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dict for JSON.

        The keys are task, data, against, facts (statistics), counts (number of findings by severity), and findings.
        """
        return {
            "task": "check",
            "data": self.data,
            "against": None if self.against is None else self.against.name,
            "facts": self.facts,
            "counts": {name: sum(finding.severity == name for finding in self.findings) for name in SEVERITIES},
            "findings": [finding.to_dict() for finding in self.findings],
        }


def check(
    pairs: Pairs,
    against: Pairs | None = None,
    *,
    token_counts: TokenCounts | None = None,
    context_length: int | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
) -> Report:
    """Check all images and captions, and return a report of statistics and problems.

    Args:
        pairs: N images and M captions. Read them with `broken=("images", "captions")`, so that missing images and empty
            captions become findings instead of errors.
        against: data that must not contain the same images, usually the validation set.
        token_counts: function that counts the tokens of each string before truncation; None: count words.
        context_length: maximum number of tokens that the model reads.
        image_size: side of the model's input in pixels. None: no finding about images that are smaller than the input;
            the statistics use 224.
        batch_size: pairs in a global batch, to estimate the number of false negatives; None: the default of recipes.
        workers: threads; None: one per core, at most 16.

    Example:
        >>> report = check(read_pairs("captions.csv", broken=("images", "captions")))    # doctest: +SKIP
        >>> [finding.name for finding in report.findings]                                  # doctest: +SKIP
        ['duplicate_images']
    """
    facts: dict[str, Any] = {"images": len(pairs.images) if pairs.has_images else 0}
    scan, duplicates, batch = scan_images([]), None, None
    leaked: dict[int, Leak] = {}
    rank = np.zeros(len(pairs.images), np.int64)
    if pairs.has_images:
        scan = scan_images(pairs.images, workers, "images")
        others = against.images if against is not None and against.has_images else []
        duplicates, leaked = find_leaks(scan, scan_images(others, workers, "against"))
        facts |= _image_facts(scan, image_size or _USUAL_SIZE)
        rank = -scan.sizes[:, 0].astype(np.int64) * scan.sizes[:, 1]  # the largest copy is kept
        rank[list(leaked)] = 1  # leaked images are dropped, so prefer copies that are not leaked
    counts = np.zeros(0, np.int64)
    if pairs.has_captions:
        counts = lengths(pairs.captions, token_counts)
        facts |= _caption_facts(pairs, counts, "words" if token_counts is None else "tokens")
        if token_counts is not None and context_length is not None:
            facts |= {"context_length": context_length, "share_cut": float((counts > context_length).mean())}
    if pairs.has_images:
        facts["batch"] = batch = expected_false_negatives(pairs, duplicates, batch_size or _USUAL_BATCH)
        batch["assumed"] = batch_size is None
    data = CheckedData(
        pairs,
        broken=scan.broken,
        image_rows=range(len(scan)),
        sizes=scan.sizes,
        spreads=scan.spreads,
        image_size=image_size,
        duplicates=duplicates,
        against=against,
        leaked=leaked,
        caption_rows=range(len(counts)),
        token_counts=counts,
        context_length=None if token_counts is None else context_length,
        batch=batch,
    )
    of_others = against.findings if against is not None else ()
    findings = most_severe_first([*dict.fromkeys([*pairs.findings, *of_others]), *apply_rules(data)])
    return Report(pairs.name, against, facts, findings, scan.broken, leaked, duplicates, rank)


def quick_findings(pairs: Pairs) -> list[Finding]:
    """Report missing files, empty files and poor captions in seconds, without opening images.

    Example:
        >>> from clipkit.data.sequences import Files
        >>> files = Files.of(Path(), pa.array(["gone.jpg"], pa.large_string()))    # doctest: +SKIP
        >>> quick_findings(Pairs("x", files, ["a dog"], np.zeros(1, int)))         # doctest: +SKIP
        [Finding(name='missing_images', severity='error', …)]
    """
    return apply_rules(CheckedData(pairs, broken=dict(_missing_or_empty(pairs))), scopes=["quick"])


def _missing_or_empty(pairs: Pairs) -> Iterator[tuple[int, str]]:
    """Yield (position, reason) for each image whose file does not exist or is empty."""
    images: Iterable[str | Path | Stored] = pairs.images if pairs.has_images else ()
    if pairs.has_images and isinstance(pairs.images, Files):
        folder = str(pairs.images.folder)  # for a million images, strings take seconds, but Paths half a minute
        names = pairs.images.names
        images = (Remote(name) if "://" in name else os.path.join(folder, name) for name in names)  # noqa: PTH118
    for position, image in enumerate(images):
        size = size_of(image)
        # -1 means an unknown size for an image in an archive or at a URL, but a missing file for a path.
        if size == 0 or (size < 0 and not isinstance(image, Stored)):
            yield position, EMPTY if size == 0 else MISSING


def _image_facts(scan: ImageScan, image_size: int) -> dict[str, Any]:
    sizes = scan.sizes[scan.sizes.min(axis=1, initial=1 << 30) > 0]
    facts: dict[str, Any] = {"bytes": int(scan.file_bytes[scan.file_bytes > 0].sum())}
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


def _caption_facts(pairs: Pairs, counts: NDArray[np.int64], unit: str) -> dict[str, Any]:
    column = Strings.of(pairs.captions).column
    facts: dict[str, Any] = {"captions": len(column), "distinct_captions": int(pc.count_distinct(column).as_py())}
    if pairs.has_images:
        facts["captions_per_image"] = _quantiles(np.bincount(pairs.image_of_caption, minlength=len(pairs.images)))
    return facts | {"caption_length": {"unit": unit} | _quantiles(counts)}


def _quantiles(values: NDArray[Any]) -> dict[str, float]:
    low, middle, high, top = np.quantile(values, [0, 0.5, 0.95, 1]).tolist()
    return {"min": low, "median": middle, "p95": high, "max": top, "mean": float(values.mean())}
