"""Relevance maps of the most confident mistakes of a classification, for its report."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from clipkit.evaluation.explanation.draw import overlaid
from clipkit.evaluation.explanation.explain import relevance
from clipkit.evaluation.explanation.maps import Method
from clipkit.evaluation.explanation.seen import Seen
from clipkit.images import ImageLike, as_data_uri
from clipkit.models import DualEncoder

METHOD: Method = "gradient"
_SIDE = 168  # pixels


def check_explainable(model: DualEncoder) -> None:
    """Check on a blank image that maps can be computed, before anything is encoded.

    Raises:
        ModelError: the model's image inputs are not pixels, or the method does not suit its image tower.
    """
    relevance(model, Seen.by(model, Image.new("RGB", (64, 64))), model.encode_text("a"), METHOD)


def add_maps(
    model: DualEncoder,
    examples: Sequence[dict[str, Any]],
    queries: Mapping[str, Sequence[Any]],
    images: Sequence[ImageLike],
    classifier: Float[Tensor, "C D"],
) -> None:
    """Add to both answers of each mistake, as a data URI, the image with the map of the answer's class.

    Args:
        model: the evaluated model.
        examples: examples of a classification result; only the mistakes are changed.
        queries: the label and the predicted class of each image.
        images: all images.
        classifier: unit features of the classes.
    """
    for example in examples:
        if example.get("kind") != "mistake":
            continue
        row = example["row"]
        seen = Seen.by(model, images[row])
        maps = relevance(model, seen, classifier[[queries["predicted"][row], queries["label"][row]]].cpu(), METHOD)
        for answer, map_ in zip(example["answers"], maps, strict=True):
            answer["map"] = as_data_uri(overlaid(seen.pixels, map_), _SIDE)
