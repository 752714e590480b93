"""Views of captions, seeded by what they are of."""

from collections.abc import Callable, Sequence

import numpy as np

from clipkit.data.pairs import Pairs
from clipkit.data.sampler import Sample
from clipkit.errors import DataError
from clipkit.seeds import mix

_TEXT_VIEW = 3  # beside the streams of order, caption and augmentation

# A sample of an epoch -> a string.
TextOf = Callable[[Sample], str]


class TextView:
    """One kind of view of captions.

    Args:
        policy: same: the caption; crop: some of its words, side by side; paraphrase: the column of that name; sibling:
            another caption of its image, itself where there is no other.
        pairs: the captions.
        crop: share of the words that a crop keeps, lowest and highest.
        seed: the run's; what is drawn depends on (seed, epoch, caption, view) alone.
        view: which of a caption's views this is; 0 for the caption beside an image.

    Raises:
        DataError: the data has no paraphrases, or no image with two captions.

    Example:
        >>> from pathlib import Path
        >>> pairs = Pairs("made", [Path("a")], ["a dog runs in the snow"], np.array([0]))
        >>> TextView("crop", pairs, (0.5, 0.5), seed=0, view=1)(Sample(epoch=0, image=0, caption=0))
        'runs in the'
    """

    def __init__(
        self, policy: str, pairs: Pairs, crop: tuple[float, float] = (1.0, 1.0), seed: int = 0, view: int = 0
    ) -> None:
        if policy == "paraphrase" and pairs.paraphrases is None:
            raise DataError(f"{pairs.name}: the policy paraphrase needs a column of that name; add it, or take crop")
        if policy == "paraphrase" and pairs.paraphrases is not None and "" in pairs.paraphrases:
            row = pairs.paraphrases.index("") + 1
            raise DataError(f"{pairs.name}: row {row} has no paraphrase; fill it in or drop the row")
        if policy == "sibling" and max(map(len, pairs.captions_of_image)) < 2:
            raise DataError(
                f"{pairs.name}: the policy sibling needs images with several captions, and none has; take crop"
            )
        self.policy = policy
        self.pairs = pairs
        self.crop = crop
        self.seed = seed
        self.view = view

    def __call__(self, sample: Sample) -> str:
        """The view of this sample's caption in its epoch."""
        captions = self.pairs.captions
        match self.policy:
            case "same":
                return captions[sample.caption]
            case "crop":
                words, generator = captions[sample.caption].split(), self._generator(sample)
                kept = max(1, round(generator.uniform(*self.crop) * len(words)))
                start = int(generator.integers(len(words) - kept + 1))
                return " ".join(words[start : start + kept])
            case "paraphrase":
                assert self.pairs.paraphrases is not None
                return self.pairs.paraphrases[sample.caption]
            case "sibling":
                own = self.pairs.captions_of_image[sample.image]
                others = own[own != sample.caption]
                return captions[self._generator(sample).choice(others) if len(others) else sample.caption]
            case other:
                raise NotImplementedError(f"{other} is in the recipe, but no policy of captions")

    def _generator(self, sample: Sample) -> np.random.Generator:
        return np.random.default_rng(mix(self.seed, _TEXT_VIEW, sample.epoch, sample.caption, self.view))


class WrongCaption:
    """The wrong caption beside a sample's own."""

    def __init__(self, negatives: Sequence[str]) -> None:
        self.negatives = negatives

    def __call__(self, sample: Sample) -> str:
        """As the source has it."""
        return self.negatives[sample.caption]
