"""Function `explain`: which parts of an image and which words of a text made a model match them."""

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
    """A word of a text, its effect on the cosine, and its relevance map."""

    word: str
    drop: float
    """Cosine of the image and the whole text minus the cosine without this word."""
    map: Float[Tensor, "R C"]
    """Relevance of each part of the image for the word alone."""


@dataclass(frozen=True, eq=False)
class Explained:
    """A text with its cosine, its relevance map, its words, and the scores of the map."""

    text: str
    cosine: float
    map: Float[Tensor, "R C"]
    words: list[Word]
    scores: Scores | None


@dataclass(frozen=True, eq=False)
class Explanation:
    """Relevance maps and words of an image and its texts, from `explain`.

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
    """Texts against which these texts are explained; empty: each text is explained by itself."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pixels as plain values."""
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
        """Write an image file (PNG): the image, and the maps of each text and of its most important words."""
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
    """Show which parts of an image and which words of a text made a model match them.

    Args:
        model: returned by `clipkit.load`.
        image: path, PIL image or uint8 array.
        texts: a text, or several.
        method: `gradient`: gradient of the cosine times the features of each part, for every image
            tower; `patches`: cosine of each patch and the text, for vision transformers; `occlusion`: drop of the
            cosine when the part is hidden, for every image tower, with 37 forward passes for all texts.
        against: other texts; the maps and their scores then explain the difference between the cosine with the text and
            the mean cosine with these. A text of this list is not compared with itself.
        score: measure how faithful the maps are, with about 140 forward passes per text.

    Raises:
        DataError: the image is unreadable, or there are no texts.
        ModelError: the model lacks a tower, its image inputs are not pixels, or the method does not suit it.

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
    """Return the features of each text minus the mean features of the texts in `against` that differ from the text."""
    features = features[: len(texts)]
    if not against:
        return features
    of_others = model.encode_text(against)
    rows = [[row for row, other in enumerate(against) if other != text] for text in texts]
    return torch.stack(
        [one - of_others[row].mean(dim=0) if row else one for one, row in zip(features, rows, strict=True)]
    )


def model_features(model: DualEncoder, seen: Seen) -> Float[Tensor, " D"]:
    """Return the unit features of an image."""
    with torch.inference_mode():
        return torch.nn.functional.normalize(model.image(seen.inputs)[0].float(), dim=-1).cpu()


def relevance(model: DualEncoder, seen: Seen, features: Float[Tensor, "T D"], method: Method) -> Float[Tensor, "T R C"]:
    """Return the relevance map of each text.

    Raises:
        ModelError: the method does not suit the image tower.
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
        f"{model.name}: its image tower does not support the method {method}; use another method (gradient, "
        "patches or occlusion)"
    )
