"""List of the models that can be loaded, and description of a single model."""

from collections import Counter
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from clipkit.models.absent import is_absent
from clipkit.models.families import FAMILIES
from clipkit.models.loading import load
from clipkit.models.memory import graph_bytes, widest_layer_bytes
from clipkit.models.preprocess import stack_inputs
from clipkit.models.publish.provenance import license_of

_ACTIVATIONS = ("GELU", "QuickGELU", "ReLU", "SiLU", "Mish", "Hardswish", "PReLU", "ELU", "Swish")


def loadable(search: str = "") -> dict[str, list[str]]:
    """Return the model classes and model names that can be loaded, by library.

    Args:
        search: part of the names, in upper or lower case.

    Returns:
        `transformers`: classes whose Hub repositories and folders can be loaded. `open_clip`: names for `load`, for
        each architecture with random weights and for each of its pretrained tags.

    Example:
        >>> loadable("siglip")["transformers"]
        ['SiglipModel', 'Siglip2Model']
    """
    import open_clip

    tags: dict[str, list[str]] = {}
    for architecture, tag in open_clip.list_pretrained():
        tags.setdefault(architecture, []).append(tag)
    names = []
    for architecture in open_clip.list_models():
        names += [f"open_clip:{architecture}"]
        names += [f"open_clip:{architecture}/{tag}" for tag in tags.get(architecture, [])]
    classes = [family.class_name for family in FAMILIES.values()]
    searched = search.lower()
    return {
        "transformers": [name for name in classes if searched in name.lower()],
        "open_clip": [name for name in names if searched in name.lower()],
    }


def describe(name: str) -> dict[str, Any]:
    """Return properties of a model by name, e.g. its towers, parameters, input sizes, loss and memory use.

    Sizes are in pixels or tokens. Memory is in bytes, for float32 weights. Unknown values are None.

    Args:
        name: as for `load`.

    Raises:
        ModelError: the model cannot be loaded.
    """
    model = load(name, device="cpu")
    weights = sum(p.nbytes for p in model.parameters())
    inputs: dict[str, dict[str, Tensor]] = {}
    length = model.text.tokenize.context_length
    if "image" in model.sides:
        inputs["image"] = stack_inputs([model.image.preprocess(Image.new("RGB", (224, 224), (128, 128, 128)))])
    if "text" in model.sides:
        inputs["text"] = model.text.tokenize([" ".join(["word"] * length)])
    towers = model.sides
    layer = max(widest_layer_bytes(tower, inputs[side]) for side, tower in towers.items())
    graph = max(graph_bytes(tower, inputs[side]) for side, tower in towers.items())
    with torch.no_grad():
        last = next(reversed(towers))
        width = towers[last](inputs[last]).shape[1]
    library = model.backend.library
    description: dict[str, Any] = {"name": name, "layout": "composed" if library == "clipkit" else library}
    for side, tower in (("image", model.image), ("text", model.text)):
        native = getattr(tower.trunk, "native", tower.trunk)
        description[f"{side}_tower"] = None if is_absent(tower) else type(native).__name__
        description[f"{side}_parameters"] = sum(parameter.numel() for parameter in tower.parameters())
        description[f"{side}_blocks"] = len(tower.blocks)  # the blocks that `tune: last:N` counts
        description[f"{side}_activation"] = _activation(tower)
    return description | {
        "embed_dim": width,
        "image_size": model.image.preprocess.image_size,
        "context_length": length if "text" in inputs else None,
        "padding_is_cut": "attention_mask" in inputs.get("text", {}) and model.text.padding_may_be_cut,
        "vocabulary": model.text.tokenize.vocab_size if "text" in inputs else None,
        "mean": list(model.image.preprocess.mean),
        "std": list(model.image.preprocess.std),
        "loss": "sigmoid" if model.logit_bias is not None else "softmax (InfoNCE)",
        "scale": model.logit_scale.exp().item(),
        "bias": model.logit_bias.item() if model.logit_bias is not None else None,
        "licence": license_of(name),
        "inference_bytes": weights + layer,
        # Weights, gradients, AdamW's two moments, and the activations of one pair in the larger tower.
        "training_bytes": 4 * weights + graph,
    }


def _activation(tower: nn.Module) -> str | None:
    """Return the class name of the most frequent activation module, or None if there is no such module."""
    counts: Counter[str] = Counter()
    for module in tower.modules():
        name = type(module).__name__.removesuffix("Activation")
        if name.startswith(_ACTIVATIONS) or name in ("PytorchGELUTanh", "GELUTanh"):
            counts[name] += 1
    return counts.most_common(1)[0][0] if counts else None
