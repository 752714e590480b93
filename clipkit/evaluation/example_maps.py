"""Examples with relevance maps, for the report of an evaluation.

The examples are the most confident mistakes, and text queries that the user chose.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from clipkit.embedding.features import Features
from clipkit.evaluation.examples import Item, answer, example, top
from clipkit.evaluation.explanation.draw import overlaid
from clipkit.evaluation.explanation.explain import relevance
from clipkit.evaluation.explanation.maps import Method
from clipkit.evaluation.explanation.seen import Seen
from clipkit.images import ImageLike, as_data_uri
from clipkit.metrics import top_answers
from clipkit.models import DualEncoder
from clipkit.models.encode import listed_strings

METHOD: Method = "gradient"
Explain = bool | str | Iterable[str]
"""True: explain the most confident mistakes. Texts: also explain the images that match these texts best."""

_SIDE = 168  # pixels
_IMAGES = 3  # number of images for each chosen query
_MISTAKES = 6  # number of captions


def chosen_queries(explain: Explain) -> list[str]:
    """Return the text queries in the argument `explain` of an evaluation; none if it is True or False."""
    return [] if isinstance(explain, bool) else listed_strings(explain)


def check_explainable(model: DualEncoder) -> None:
    """Check that relevance maps can be computed with a model, by explaining a blank image.

    An evaluation calls this before it encodes the data, so that an unsupported model fails early.

    Raises:
        ModelError: the inputs or the modules of the model's image tower are unsupported.
    """
    relevance(model, Seen.by(model, Image.new("RGB", (64, 64))), model.encode_text("a"), METHOD)


def add_maps(
    model: DualEncoder,
    examples: Sequence[dict[str, Any]],
    queries: Mapping[str, Sequence[Any]],
    images: Sequence[ImageLike],
    classifier: Float[Tensor, "C D"],
) -> None:
    """Add two relevance maps to each mistake: one for the predicted class and one for the correct class.

    A map is stored as a data URI of the image with the map drawn on it.

    Args:
        model: the evaluated model.
        examples: examples of a classification result; only the mistakes are changed.
        queries: the part `queries` of the result, with the label and the predicted class of each image.
        images: all evaluated images.
        classifier: unit-length features of the classes.
    """
    for mistake in examples:
        if mistake.get("kind") != "mistake":
            continue
        row = mistake["row"]
        classes = classifier[[queries["predicted"][row], queries["label"][row]]]
        for one, map_ in zip(mistake["answers"], _maps(model, images[row], classes), strict=True):
            one["map"] = map_


def explained_queries(
    features: Features, texts: Sequence[str], images: Sequence[Any], image_features: Float[Tensor, "N D"]
) -> list[dict[str, Any]]:
    """Return one example per text query: the images with the highest scores, with their relevance maps.

    Args:
        features: encoder of the evaluated model.
        texts: text queries that the user chose, e.g. "a red car"; they need not occur in the data.
        images: all evaluated images.
        image_features: features of these images.
    """
    examples = []
    for text, query in zip(texts, features.texts(texts).to(image_features.device), strict=True):
        scores = image_features @ query
        answers = [_explained(features.model, images[row], query, scores[row], False) for row in top(scores, _IMAGES)]
        examples.append(example("text", text, answers) | {"kind": "chosen"})
    return examples


def explained_mistakes(
    model: DualEncoder,
    ranks: Sequence[int],
    correct: Callable[[int], Collection[int]],
    texts: Sequence[str],
    images: Sequence[Any],
    text_features: Float[Tensor, "M D"],
    image_features: Float[Tensor, "N D"],
) -> list[dict[str, Any]]:
    """Return examples of captions for which an incorrect image has a higher cosine than the correct image.

    The captions with the largest difference between the two cosines are chosen, at most one per correct image. Each
    example contains the incorrect image with the highest cosine and the correct image, both with relevance maps.

    Args:
        model: the evaluated model.
        ranks: rank of the best correct image of each text; 1 is the best rank.
        correct: function that takes the position of a text and returns the positions of the correct images.
        texts: all texts.
        images: all images.
        text_features: features of the texts.
        image_features: features of the images.
    """
    wrong = (torch.tensor(ranks) > 1).nonzero()[:, 0]
    asked = text_features[wrong.to(text_features.device)]
    (scores, first), _ = (tuple(part.cpu() for part in parts) for parts in top_answers(image_features, asked, 1))
    right, right_scores = [], torch.empty(len(wrong))
    for row, text in enumerate(wrong.tolist()):
        of_text = sorted(correct(text))
        found = (image_features[of_text] @ asked[row]).cpu()
        right.append(of_text[int(found.argmax())])
        right_scores[row] = found.max()
    chosen: dict[int, int] = {}
    for row in (scores[:, 0] - right_scores).argsort(descending=True, stable=True).tolist():
        chosen.setdefault(right[row], row)
        if len(chosen) == _MISTAKES:
            break
    examples = []
    for right_image, row in chosen.items():
        text = int(wrong[row])
        taken = int(first[row, 0])
        answers = [
            _explained(model, images[taken], asked[row], scores[row, 0], False),
            _explained(model, images[right_image], asked[row], right_scores[row], True),
        ]
        examples.append(example("text", texts[text], answers) | {"kind": "confident", "rank": int(ranks[text])})
    return examples


def _explained(
    model: DualEncoder, image: Any, text: Float[Tensor, " D"], score: float | Tensor, right: bool
) -> dict[str, Any]:
    """Return one answer to a text query: the image, its score, whether it is correct, and its relevance map."""
    item: Item = image
    return answer("image", item, score, right) | {"map": _maps(model, image, text[None])[0]}


def _maps(model: DualEncoder, image: ImageLike, texts: Float[Tensor, "T D"]) -> list[str]:
    """Return one data URI per text: the image with the relevance map of the text drawn on it."""
    seen = Seen.by(model, image)
    maps = relevance(model, seen, texts.cpu(), METHOD)
    return [as_data_uri(overlaid(seen.pixels, map_), _SIDE) for map_ in maps]
