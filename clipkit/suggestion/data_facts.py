"""Facts about training data that a recipe depends on, e.g. size, captions, resolution and duplicates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from clipkit.data.checks import check
from clipkit.data.pairs import Pairs, read_pairs
from clipkit.data.sequences import evenly_spaced
from clipkit.data.sources.columns import split_options
from clipkit.data.sources.streams import Stream, stream_of
from clipkit.errors import DataError
from clipkit.findings import Finding

TEMPLATES = "imagenet_simple"
"""Name of the templates that make captions from class names: the seven best templates of CLIP for ImageNet."""
_EXAMINED = 2000
"""Maximum number of images that are opened."""
_ABOUT_BATCHES = ("batch_too_large", "false_negatives")


@dataclass(frozen=True)
class DataFacts:
    """Properties of training data that a recipe depends on.

    Fractions (`share_...`) are in [0, 1], and refer to the examined images or captions.
    """

    source: str
    """Source for the recipe; with the option `templates` if the data has labels instead of captions."""
    images: int
    """Number of images; for a stream, a low estimate."""
    is_stream: bool
    captions_per_image: float
    """Median number of captions of an image."""
    classes: int | None
    """Number of different classes if the captions are class names; otherwise None."""
    examined: int
    """Number of images that were opened."""
    caption_tokens: float
    """Median length of a caption in tokens."""
    share_cut: float
    """Share of the captions that have more tokens than the context length of the model."""
    short_side: float
    """Median length of the shorter side of an image, in pixels."""
    share_smaller: float
    """Share of the images that are smaller than the input of the model."""
    share_duplicates: float
    """Share of the images that have the same bytes as another examined image, or look the same."""
    findings: Sequence[Finding]
    """Warnings and errors about the data, the most severe first."""

    @property
    def has_labels(self) -> bool:
        """True if the captions are made from class names."""
        return self.classes is not None


def data_facts(
    source: str, token_counts: Callable[[list[str]], list[int]], context_length: int, image_size: int | None
) -> DataFacts:
    """Return facts about training data. At most 2,000 images are opened.

    Args:
        source: any source of training data.
        token_counts: function that returns the number of tokens of each string, before truncation.
        context_length: maximum number of tokens that the model reads.
        image_size: side of the model's input in pixels; None: the model accepts any size.

    Raises:
        DataError: the data is unreadable, or has no captions or labels.
    """
    stream = stream_of(source)
    pairs, images = _of_stream(stream) if stream is not None else _of_source(source)
    if (templated := with_templates(source, pairs)) != source:
        source, (pairs, images) = templated, _of_source(templated)
    sample = pairs
    if stream is None and len(pairs.images) > _EXAMINED:
        sample = pairs.take(np.array(evenly_spaced(len(pairs.images), _EXAMINED)))
    report = check(sample, token_counts=token_counts, context_length=context_length, image_size=image_size)
    facts = report.facts
    duplicates = report.duplicates
    return DataFacts(
        source=source,
        images=images,
        is_stream=stream is not None,
        captions_per_image=facts["captions_per_image"]["median"],
        classes=None if pairs.classes is None else len(set(pairs.classes)),
        examined=len(sample.images),
        caption_tokens=facts["caption_length"]["median"],
        share_cut=facts.get("share_cut", 0.0),
        short_side=facts.get("short_side", {}).get("median", 0.0),
        share_smaller=facts.get("share_smaller", 0.0),
        share_duplicates=0.0 if duplicates is None else float((np.asarray(duplicates.degrees) > 0).mean()),
        findings=[one for one in report.findings if one.severity != "note" and one.name not in _ABOUT_BATCHES],
    )


def with_templates(source: str, pairs: Pairs) -> str:
    """Add the option `templates` to a source if the captions of its pairs are class names; return the source.

    A source that already has the option is returned unchanged.
    """
    options = split_options(source)[1]
    if pairs.classes is None or "templates" in options:
        return source
    return f"{source}{'&' if options else '?'}templates={TEMPLATES}"


def _of_source(source: str) -> tuple[Pairs, int]:
    pairs = read_pairs(source, broken=("images", "captions"))
    if len(pairs.images) < 2:
        raise DataError(f"{source}: has {len(pairs.images)} image(s), too few for training; give more data")
    return pairs, len(pairs.images)


def _of_stream(stream: Stream) -> tuple[Pairs, int]:
    """Return the first pairs of a stream, and a low estimate of the total number of images.

    The estimate is the number of images in the first shard times the number of shards minus one.
    """
    first, count, captions, rows = [], 0, [], []
    for sample in stream.samples(stream.parts[0]):
        if count < _EXAMINED:
            first.append(sample.image)
            captions += sample.captions
            rows += [count] * len(sample.captions)
        count += 1
    if not count:
        raise DataError(f"{stream.parts[0]}: is an empty shard; check its path or URL")
    # One shard is not counted, because the last shard is often shorter than the others.
    return Pairs(stream.name, first, captions, np.array(rows, np.int64)), count * max(1, len(stream.parts) - 1)
