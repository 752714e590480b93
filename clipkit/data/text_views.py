"""Random views of captions that depend only on the seed, the caption and the epoch."""

from collections.abc import Callable, Sequence

import numpy as np

from clipkit.data.pairs import Pairs
from clipkit.data.sampler import Sample
from clipkit.errors import DataError
from clipkit.seeds import mix

_TEXT_VIEW = 3  # number of this module's random stream; each module has a different number

# Function from a sample of an epoch to a string.
TextOf = Callable[[Sample], str]


class TextView:
    """Function from a sample to a view of its caption, e.g. the whole caption or a part of it.

    Args:
        policy: "same": the caption; "crop": some consecutive words of the caption; "paraphrase": the text in the column
            paraphrase; "sibling": another caption of the image, or the same caption if the image has only one.
        pairs: the captions.
        crop: minimum and maximum fraction of the words that a crop keeps.
        seed: seed of the run. Random choices depend only on (seed, epoch, caption, view).
        view: number of the view: 0 for the view that is compared with images; 1, 2, … for further views.

    Raises:
        DataError: the policy needs paraphrases or several captions per image, and the data lacks them.

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
            raise DataError(
                f"{pairs.name}: has no column named paraphrase or translation, but the objective needs one of "
                "these columns; add a column, or set views.text.policies: [same, crop], which need no column"
            )
        if policy == "paraphrase" and pairs.paraphrases is not None and "" in pairs.paraphrases:
            row = pairs.paraphrases.index("") + 1
            raise DataError(f"{pairs.name}: row {row} has no paraphrase; add the paraphrase or drop the row")
        if policy == "sibling" and max(map(len, pairs.captions_of_image)) < 2:
            raise DataError(
                f"{pairs.name}: the caption policy 'sibling' needs images with several captions, but no image "
                "has more than one caption; use the policy 'crop'"
            )
        self.policy = policy
        self.pairs = pairs
        self.crop = crop
        self.seed = seed
        self.view = view

    def __call__(self, sample: Sample) -> str:
        """Return the view of the sample's caption."""
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
                siblings = self.pairs.captions_of_image[sample.image]
                others = siblings[siblings != sample.caption]
                return captions[self._generator(sample).choice(others) if len(others) else sample.caption]
            case other:
                raise NotImplementedError(
                    f"the caption policy {other} is not implemented; use same, crop, paraphrase or sibling"
                )

    def _generator(self, sample: Sample) -> np.random.Generator:
        return np.random.default_rng(mix(self.seed, _TEXT_VIEW, sample.epoch, sample.caption, self.view))


class WrongCaption:
    """Function from a sample to the hard negative of its caption."""

    def __init__(self, negatives: Sequence[str]) -> None:
        self.negatives = negatives

    def __call__(self, sample: Sample) -> str:
        """Return the hard negative of the sample's caption."""
        return self.negatives[sample.caption]
