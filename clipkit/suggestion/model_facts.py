"""Facts about a pretrained model that a recipe depends on: family, size, loss, depth, memory."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from clipkit.errors import ModelError
from clipkit.models import DualEncoder, compose, load
from clipkit.models.absent import check_present
from clipkit.models.memory import graph_bytes
from clipkit.models.preprocess import stack_inputs
from clipkit.models.token_counts import token_counter
from clipkit.recipe import ModelRecipe


@dataclass(frozen=True)
class ModelFacts:
    """Properties of a model that a recipe depends on."""

    names: dict[str, str]
    """Recipe keys that name the model, e.g. {"model.name": "openai/clip-vit-base-patch32"}."""
    library: str
    """Layout in which the model is saved: transformers, open_clip or clipkit."""
    parameters: int
    blocks: tuple[int, int]
    """Number of blocks of the image tower and of the text tower."""
    has_bias: bool
    """True for a model that was trained with the sigmoid loss (SigLIP)."""
    scale: float
    """Scale that multiplies the cosines, exp(logit_scale)."""
    image_size: int | None
    context_length: int
    training_bytes: int
    """Bytes of memory for full tuning of one pair at a time in float32: weights, gradients, moments, activations.
    """
    operations: float
    """Floating-point operations of a forward pass for one image and one caption of maximum length."""

    @property
    def is_new(self) -> bool:
        """True if the model is composed of two towers, with projections that are not pretrained."""
        return "model.name" not in self.names

    @property
    def title(self) -> str:
        """Name of the model; for a model composed of two towers, the names of both towers."""
        return " + ".join(self.names.values())


def model_facts(name: str | None, image: str | None, text: str | None) -> tuple[ModelFacts, Callable[..., list[int]]]:
    """Load a model; return facts about it, and a function that returns the number of tokens of each string.

    Args:
        name: complete model, as in the recipe key `model.name`; None if two towers are given.
        image: image tower, as in `model.image.name`; None if a complete model is given.
        text: text tower, as in `model.text.name`; None if a complete model is given.

    Raises:
        ModelError: the model cannot be loaded, lacks a tower, or has random weights.
    """
    if name is not None:
        if name.startswith("open_clip:") and not {"/", "?"} & set(name):
            raise ModelError(
                f"{name}: has random weights, but clipkit suggest needs a pretrained model; add a tag "
                "(open_clip:ARCH/TAG), or start from recipes/demo_emoji.yaml to train from scratch"
            )
        names, model = {"model.name": name}, load(name, device="cpu")
    else:
        if image is None or text is None:
            raise ModelError("a tower is missing; give --model M, or both --image-tower and --text-tower")
        names = {"model.image.name": image, "model.text.name": text}
        towers = {"image": {"name": image}, "text": {"name": text}}
        model = compose(ModelRecipe.model_validate({**towers, "start": "random"}))
    check_present(model.name, image=model.image, text=model.text)
    return _measured(model, names), token_counter(model)


def _measured(model: DualEncoder, names: dict[str, str]) -> ModelFacts:
    length = model.text.tokenize.context_length
    inputs = {
        "image": stack_inputs([model.image.preprocess(Image.new("RGB", (224, 224), (128, 128, 128)))]),
        "text": model.text.tokenize([" ".join(["word"] * length)]),
    }
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        for side, tower in model.sides.items():
            tower(inputs[side])
    weights = sum(parameter.nbytes for parameter in model.parameters())
    graph = sum(graph_bytes(tower, inputs[side]) for side, tower in model.sides.items())
    return ModelFacts(
        names=names,
        library=model.backend.library,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        blocks=(len(model.image.blocks), len(model.text.blocks)),
        has_bias=model.logit_bias is not None,
        scale=model.logit_scale.exp().item(),
        image_size=model.image.preprocess.image_size,
        context_length=length,
        training_bytes=4 * weights + graph,
        operations=float(counter.get_total_flops()),
    )
