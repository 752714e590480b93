"""Construction of towers from the parts of an open_clip model."""

from typing import Any

from torch import nn

from clipkit.errors import ModelError
from clipkit.models.blocks import prefixed, timm_blocks, transformers_blocks
from clipkit.models.preprocess import Preprocess, Resize, TransformCall
from clipkit.models.projections import Projection
from clipkit.models.quiet import as_model_error
from clipkit.models.tokenizer import OpenClipTokenizer
from clipkit.models.towers import ImageTower, TextTower
from clipkit.models.trunks import CausalText, Native


def image_tower(visual: Any, name: str) -> ImageTower:
    """Build the image tower of an open_clip model.

    If the projection is a separate parameter of `visual`, it is moved to the tower's head.

    Args:
        visual: `visual` of the open_clip model.
        name: the model's name, for errors.

    Raises:
        ModelError: the tower's input is not square.
    """
    preprocess = _preprocess(visual, name)
    if hasattr(visual, "trunk"):  # timm's model with open_clip's head on top
        return _timm_tower(visual, preprocess)
    if isinstance(getattr(visual, "proj", None), nn.Parameter):
        # Move the projection to the head, so that a frozen trunk needs to run only once. A trunk skips a projection of
        # None.
        head = Projection(visual.proj)
        visual.proj = None
        return ImageTower(Native(visual), head, prefixed(transformers_blocks(visual)), preprocess)
    # CLIP's ResNet: four stages, and an attention pool that also projects.
    stages: dict[str, list[str]] = {}
    for parameter, _ in visual.named_parameters():
        part = parameter.partition(".")[0]
        stages.setdefault(part if part.startswith(("layer", "attnpool")) else "layer1", []).append(
            f"native.{parameter}"
        )
    pool = stages.pop("attnpool", [])
    return ImageTower(Native(visual), nn.Identity(), list(stages.values()), preprocess, head_names=pool)


def _preprocess(visual: Any, name: str) -> Preprocess:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    given = visual.preprocess_cfg
    with as_model_error(f"{name}: its image preprocessing is not valid", f"; correct preprocess_cfg, which is {given}"):
        config = PreprocessCfg(**given)
        transform = TransformCall(image_transform_v2(config, is_train=False))
        height, width = (config.size, config.size) if isinstance(config.size, int) else config.size
    if height != width:
        raise ModelError(
            f"{name}: inputs of {height} × {width} pixels are not supported; use a model with square inputs"
        )
    pixels = transform.pixels if transform.scales_last else None
    steps = None
    if config.resize_mode in ("shortest", "squash"):
        steps = Resize(config.resize_mode, int(height), config.interpolation, "round")
    return Preprocess(transform, int(height), tuple(config.mean), tuple(config.std), steps=steps, pixels=pixels)


def _timm_tower(visual: Any, preprocess: Preprocess) -> ImageTower:
    blocks = prefixed(timm_blocks(visual.trunk))
    names: list[str] = []
    if not any(True for _ in visual.head.parameters()):  # the trunk contains the projection, or there is none
        for prefix in ("native.head.", "native.attn_pool."):
            names = names or [name for block in blocks for name in block if name.startswith(prefix)]
        blocks = [[name for name in block if name not in names] for block in blocks]
    return ImageTower(Native(visual.trunk), visual.head, [b for b in blocks if b], preprocess, head_names=names)


def text_tower(native: Any, tokenizer: Any, source: str | None) -> tuple[OpenClipTokenizer, TextTower]:
    """Return the tokenizer and the text tower of an open_clip model.

    Args:
        native: the open_clip model.
        tokenizer: the tokenizer from open_clip.
        source: name by which a recipe can load the tokenizer, or None.
    """
    text = getattr(native, "text", native)
    context_length = int(getattr(tokenizer, "context_length", None) or text.context_length)
    inner = getattr(tokenizer, "tokenizer", None)
    padding = int(inner.pad_token_id) if inner is not None else 0
    pooling = getattr(text, "pool_type", getattr(text, "text_pool_type", None))
    causal = getattr(text, "attn_mask", None) is not None and getattr(text, "cls_emb", None) is None
    if causal and pooling in ("argmax", "eos"):
        end = getattr(text, "eos_id", getattr(text, "text_eos_id", None)) if pooling == "eos" else None
        trunk: nn.Module = CausalText(text, end)
        cutting = OpenClipTokenizer(tokenizer, source, context_length, padding)
        return cutting, TextTower(trunk, _head(text.text_projection), transformers_blocks(trunk), cutting)
    masked = hasattr(text, "pooler")  # an encoder of transformers, which masks padding by the ID of its token
    fixed = OpenClipTokenizer(tokenizer, source, context_length, padding if masked else None)
    names = [f"native.{name}" for name, _ in text.named_parameters() if name.startswith(("proj.", "text_projection"))]
    blocks = [[name for name in block if name not in names] for block in prefixed(transformers_blocks(text))]
    return fixed, TextTower(Native(text), nn.Identity(), blocks, fixed, head_names=names)


def _head(projection: nn.Module | nn.Parameter | None) -> nn.Module:
    if isinstance(projection, nn.Module):
        return projection
    return nn.Identity() if projection is None else Projection(projection)
