"""Function `explain`: show which parts of an image and which words of a text explain their similarity."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from clipkit.errors import DataError, ModelError
from clipkit.evaluation.explanation.hooks import NoValuesError
from clipkit.evaluation.explanation.integrated import integrated_maps
from clipkit.evaluation.explanation.maps import Method, blocks_of, gradient_maps, patch_maps, token_maps
from clipkit.evaluation.explanation.occlusion import occlusion_maps
from clipkit.evaluation.explanation.score import Scores, scored
from clipkit.evaluation.explanation.seen import Seen
from clipkit.images import ImageLike
from clipkit.models import DualEncoder
from clipkit.models.absent import check_present
from clipkit.models.encode import listed_strings

_DRAWN_WORDS = 3  # largest number of maps of words beside the map of a text


@dataclass(frozen=True, eq=False)
class Word:
    """One word of an explained text, with its effect on the cosine and its relevance map."""

    word: str
    drop: float
    """Cosine of the image and the whole text minus the cosine without this word."""
    map: Float[Tensor, "R C"]
    """Relevance map of the word, encoded as a text of one word."""


@dataclass(frozen=True, eq=False)
class Explained:
    """Explanation for one text: cosine with the image, relevance map, its faithfulness, and relevance of words."""

    text: str
    cosine: float
    map: Float[Tensor, "R C"]
    words: list[Word]
    scores: Scores | None


@dataclass(frozen=True, eq=False)
class Explanation:
    """Result of `explain`: an image and, for each text, a relevance map and the effect of each word.

    Example:
        >>> shown = explain(clipkit.load("runs/a"), "dog.jpg", "a dog")    # doctest: +SKIP
        >>> shown.texts[0].map.shape                                      # doctest: +SKIP
        torch.Size([7, 7])
    """

    model: str
    image: str
    method: Method
    pixels: UInt8[np.ndarray, "H W 3"] = field(repr=False)
    """The image as the model sees it, after resizing and cropping."""
    texts: list[Explained]
    against: list[str]
    """Texts with which each text is contrasted; empty: no contrast."""

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation without the pixels, as a dict that JSON can represent."""
        return {
            "model": self.model,
            "image": self.image,
            "method": self.method,
            "against": self.against,
            "texts": [
                {
                    "text": one.text,
                    "cosine": one.cosine,
                    "map": one.map.tolist(),
                    "words": [{"word": w.word, "drop": w.drop, "map": w.map.tolist()} for w in one.words],
                    "scores": None if one.scores is None else one.scores.to_dict(),
                }
                for one in self.texts
            ],
        }

    def save(self, file: str | Path) -> None:
        """Write a PNG file with one row of images per text.

        A row contains the image, the map of the text, and the maps of the words (at most three) whose removal lowers
        the cosine most.
        """
        from clipkit.evaluation.explanation.draw import Panel, draw

        rows = []
        for one in self.texts:
            words = sorted(one.words, key=lambda word: -word.drop)[:_DRAWN_WORDS]
            row: list[Panel] = [(Path(self.image).name, None), (f"{one.text} ({one.cosine:.3f})", one.map)]
            rows.append([*row, *((f"{word.word} ({word.drop:+.3f})", word.map) for word in words)])
        draw(self.pixels, rows, Path(file))


def explain(
    model: DualEncoder,
    image: ImageLike,
    texts: str | Iterable[str],
    *,
    method: Method = "gradient",
    against: str | Iterable[str] = (),
    score: bool = True,
) -> Explanation:
    """Show which parts of an image and which words of a text explain their cosine similarity.

    The methods compute the relevance of a part of the image as follows:

    - gradient (for every image tower): the gradient of the cosine times the features of the part.
    - patches (only for vision transformers): the cosine of the patch and the text.
    - occlusion (for every image tower): the drop of the cosine when the part is hidden. The tower encodes 37 copies of
      the image.

    Args:
        model: returned by `clipkit.load`.
        image: path, PIL image or uint8 array.
        texts: one or several texts.
        method: how relevance maps are computed; see above.
        against: texts to contrast with, e.g. "a photo of a cat". The maps then explain how much larger the cosine with
            the text is than the mean cosine with these texts. A text is not contrasted with itself.
        score: measure how faithful the maps are. This encodes about 140 copies of the image per text.

    Raises:
        DataError: the image is unreadable, or there are no texts.
        ModelError: the model lacks a tower, its image inputs are not pixels, or the method does not support the model.

    Example:
        >>> shown = explain(clipkit.load("runs/a"), "dog.jpg", "a dog with a ball")  # doctest: +SKIP
        >>> shown.texts[0].words[1].drop                                             # doctest: +SKIP
        0.083
        >>> shown.save("dog_explained.png")                                          # doctest: +SKIP
    """
    several, others = listed_strings(texts), listed_strings(against)
    if not several:
        raise DataError("texts is an empty list; give at least one text")
    check_present(model.name, image=model.image, text=model.text)
    seen = Seen.by(model, image)
    words = [text.split() for text in several]
    words = [row if len(row) > 1 else [] for row in words]
    shorter = [" ".join(row[:k] + row[k + 1 :]) for row in words for k in range(len(row))]
    alone = [word for row in words for word in row]
    features = model.encode_text([*several, *alone, *shorter])
    directions = _contrasted(model, [*several, *alone], features, others)
    maps = relevance(model, seen, directions, method)
    cosines = (model_features(model, seen) @ features.T).tolist()
    of_words, without = iter(maps[len(several) :]), iter(cosines[len(several) + len(alone) :])
    explained = [
        Explained(
            text,
            cosines[k],
            maps[k],
            [Word(word, cosines[k] - next(without), next(of_words)) for word in words[k]],
            scored(model, seen, directions[k], maps[k]) if score else None,
        )
        for k, text in enumerate(several)
    ]
    name = str(image) if isinstance(image, str | Path) else type(image).__name__
    return Explanation(model.name, name, method, seen.pixels, explained, others)


def _contrasted(
    model: DualEncoder, texts: Sequence[str], features: Float[Tensor, "M D"], against: Sequence[str]
) -> Float[Tensor, "T D"]:
    """Subtract the mean feature of the texts in `against` from the feature of each of the T texts.

    A text is not contrasted with itself. Only the first T rows of `features` are used.
    """
    features = features[: len(texts)]
    if not against:
        return features
    of_others = model.encode_text(against)
    rows = [[row for row, other in enumerate(against) if other != text] for text in texts]
    return torch.stack(
        [one - of_others[row].mean(dim=0) if row else one for one, row in zip(features, rows, strict=True)]
    )


def model_features(model: DualEncoder, seen: Seen) -> Float[Tensor, " D"]:
    """Return the unit-length features of an image."""
    with torch.inference_mode():
        return torch.nn.functional.normalize(model.image(seen.inputs)[0].float(), dim=-1).cpu()


def relevance(model: DualEncoder, seen: Seen, features: Float[Tensor, "T D"], method: Method) -> Float[Tensor, "T R C"]:
    """Return one relevance map of the image per text.

    Raises:
        ModelError: the method does not support the image tower.
    """
    if method == "occlusion":
        return occlusion_maps(model, seen, features)
    blocks = blocks_of(model.image, seen)
    try:
        if method == "gradient":
            if not blocks:
                return integrated_maps(model.image, seen, features)
            return gradient_maps(model.image, blocks, seen, features)
        if blocks:
            return patch_maps(model.image, blocks[-1], seen, features)
    except NoValuesError:
        if method == "gradient" and blocks:
            return token_maps(model.image, blocks[-1], seen, features)
    raise ModelError(
        f"{model.name}: the image tower does not support the method {method}; use another method (gradient, "
        "patches or occlusion)"
    )
