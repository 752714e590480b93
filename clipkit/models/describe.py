"""What can be loaded, and what one model is."""

from collections import Counter
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from clipkit.models.absent import is_absent
from clipkit.models.encode import stack_inputs
from clipkit.models.from_transformers import FAMILIES
from clipkit.models.loading import load
from clipkit.models.memory import graph_bytes, widest_layer_bytes
from clipkit.models.publish.provenance import license_of
from clipkit.models.towers import Tower

_ACTIVATIONS = ("GELU", "QuickGELU", "ReLU", "SiLU", "Mish", "Hardswish", "PReLU", "ELU", "Swish")


def loadable(search: str = "") -> dict[str, list[str]]:
    """Names that `load` takes, by where they come from, those that contain `search`.

    Returns:
        `transformers`: the classes whose repositories and folders open; `open_clip`: architectures with random weights
        and with each of their pretrained tags.

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
    wanted = search.lower()
    return {
        "transformers": [name for name in classes if wanted in name.lower()],
        "open_clip": [name for name in names if wanted in name.lower()],
    }


def describe(name: str) -> dict[str, Any]:
    """What a model is: towers, parameters, input sizes, preprocessing, loss family, memory.

    Args:
        name: what `load` takes.

    Returns:
        Plain values; sizes in pixels and tokens, memory in bytes in float32, None where something is not stated.

    Raises:
        ModelError: it cannot be loaded.
    """
    model = load(name, device="cpu")
    weights = sum(p.nbytes for p in model.parameters())
    inputs: dict[str, dict[str, Tensor]] = {}
    length = model.text.tokenize.context_length
    if not is_absent(model.image):
        inputs["image"] = stack_inputs([model.image.preprocess(Image.new("RGB", (224, 224), (128, 128, 128)))])
    if not is_absent(model.text):
        inputs["text"] = model.text.tokenize([" ".join(["word"] * length)])
    towers: dict[str, Tower] = {side: getattr(model, side) for side in inputs}
    layer = max(widest_layer_bytes(tower, inputs[side]) for side, tower in towers.items())
    graph = max(graph_bytes(tower, inputs[side]) for side, tower in towers.items())
    with torch.no_grad():
        side, tower = next(reversed(towers.items()))
        width = tower(inputs[side]).shape[1]
    library = model.backend.library
    found: dict[str, Any] = {"name": name, "layout": "composed" if library == "clipkit" else library}
    for side in ("image", "text"):
        own = towers.get(side)
        found[f"{side}_tower"] = _tower_name(own) if own is not None else None
        found[f"{side}_parameters"] = _count(own) if own is not None else 0
        found[f"{side}_blocks"] = len(own.blocks) if own is not None else 0  # what `tune: last:N` counts
        found[f"{side}_activation"] = _activation(own) if own is not None else None
    return found | {
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
        # Weights, their gradients and AdamW's two moments, and the graph of one pair: one tower at a time has one.
        "training_bytes": 4 * weights + graph,
    }


def _count(tower: Tower) -> int:
    return sum(parameter.numel() for parameter in tower.parameters())


def _tower_name(tower: Tower) -> str:
    native: Any = getattr(tower.trunk, "native", tower.trunk)
    return type(native).__name__


def _activation(tower: nn.Module) -> str | None:
    """The one that most layers have; None where they call it as a function."""
    found: Counter[str] = Counter()
    for module in tower.modules():
        name = type(module).__name__.removesuffix("Activation")
        if name.startswith(_ACTIVATIONS) or name in ("PytorchGELUTanh", "GELUTanh"):
            found[name] += 1
    return found.most_common(1)[0][0] if found else None
