"""Dual encoders of transformers: their towers, and what is particular about each family."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from clipkit.errors import ModelError, one_line
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.preprocess import Inputs, Preprocess
from clipkit.models.quiet import without_weight_bars
from clipkit.models.tokenizer import TransformersTokenizer, transformers_tokenizer
from clipkit.models.towers import PADDING_MAY_BE_CUT, ImageTower, TextTower, positions_of, transformers_blocks
from clipkit.models.weights import check_loaded, check_weights


class Pooled(nn.Module):
    """A transformers encoder that gives its pooled output."""

    def __init__(self, native: nn.Module) -> None:
        super().__init__()
        self.native = native

    def forward(self, **inputs: Tensor) -> Float[Tensor, "B W"]:
        output = self.native(**inputs).pooler_output
        return output.flatten(1)  # convolutional towers keep two dimensions of size one


class FirstToken(nn.Module):
    """A transformers encoder that gives the state of its first token."""

    def __init__(self, native: nn.Module) -> None:
        super().__init__()
        self.native = native

    def forward(self, **inputs: Tensor) -> Float[Tensor, "B W"]:
        return self.native(**inputs).last_hidden_state[:, 0]


class Patches(nn.Module):
    """SigLIP2's image encoder over patches of images in their own shape."""

    def __init__(self, native: nn.Module) -> None:
        super().__init__()
        self.native = native

    def forward(self, pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor) -> Tensor:
        return self.native(
            pixel_values=pixel_values, pixel_attention_mask=pixel_attention_mask, spatial_shapes=spatial_shapes
        ).pooler_output


@dataclass(frozen=True)
class Family:
    """A model class of transformers and how its towers are taken out of it."""

    class_name: str
    image: Callable[[nn.Module], nn.Module] = Pooled
    text: Callable[[nn.Module], nn.Module] = Pooled
    longest: int | None = None
    """Context that the family's processor sets, where the model's positions allow more."""


FAMILIES = {
    "align": Family("AlignModel", text=FirstToken, longest=64),
    "altclip": Family("AltCLIPModel", text=FirstToken),
    "chinese_clip": Family("ChineseCLIPModel", text=FirstToken),
    "clip": Family("CLIPModel"),
    "metaclip_2": Family("MetaClip2Model"),
    "siglip": Family("SiglipModel"),
    "siglip2": Family("Siglip2Model", image=Patches),
    "vision-text-dual-encoder": Family("VisionTextDualEncoderModel"),
}


class FromTransformers:
    """The backend: keeps the native objects, which share every parameter with the towers."""

    library = "transformers"

    def __init__(self, native: Any, processor: Any, tokenizer: TransformersTokenizer) -> None:
        self.native = native
        self.processor = processor
        self.tokenizer = tokenizer

    @property
    def class_name(self) -> str:
        return type(self.native).__name__

    def tensors(self, model: DualEncoder) -> dict[str, Tensor]:
        """The weights by transformers' names, with the scale and bias that the towers have."""
        with torch.no_grad():
            if hasattr(self.native, "temperature"):  # ALIGN divides by it
                self.native.temperature.copy_(torch.exp(-model.logit_scale))
            for name in ("logit_scale", "logit_bias"):
                own, theirs = getattr(model, name), getattr(self.native, name, None)
                if theirs is not None and theirs is not own:
                    theirs.copy_(own.reshape(theirs.shape))
        tensors: dict[str, Tensor] = self.native.state_dict()
        return tensors

    def save(self, model: DualEncoder, folder: Path) -> None:
        """What the class's `from_pretrained` and `AutoProcessor` open."""
        self.tensors(model)  # puts scale and bias in place
        with without_weight_bars():
            self.native.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        self.tokenizer.save(folder)


def load_transformers(folder: Path, name: str, kind: str) -> DualEncoder:
    """The model saved in `folder`, in float32 and evaluation mode.

    Args:
        folder: with config.json, weights, preprocessing and tokenizer.
        name: what the user called it.
        kind: the model type that config.json states.

    Raises:
        ModelError: its class is not one of `FAMILIES`, or something in the folder cannot be used.
    """
    import transformers

    family = FAMILIES.get(kind)
    if family is None:
        known = ", ".join(sorted(own.class_name for own in FAMILIES.values()))
        raise ModelError(
            f"{name}: is a transformers model of type {kind}; of transformers' classes clipkit opens {known}"
        )
    check_weights(folder)
    native = _native(getattr(transformers, family.class_name), folder, name)
    processor = _processor(folder, name)
    tokenizer = _tokenizer(native, family, folder)
    vision = native.vision_model.config
    image = ImageTower(
        family.image(native.vision_model),
        getattr(native, "visual_projection", nn.Identity()),
        prefixed_blocks(native.vision_model),
        _preprocess(processor, getattr(vision, "image_size", None), name),
        head_names=_pooling_head(native.vision_model),
    )
    text = TextTower(
        family.text(native.text_model),
        getattr(native, "text_projection", nn.Identity()),
        prefixed_blocks(native.text_model, with_pooler=family.text is Pooled),
        tokenizer,
        head_names=_pooling_head(native.text_model),
        padding_may_be_cut=not tokenizer.fixed,
    )
    backend = FromTransformers(native, processor, tokenizer)
    return DualEncoder(image, text, _logit_scale(native), _scalar(getattr(native, "logit_bias", None)), backend, name)


def _native(kind: Any, folder: Path, name: str) -> Any:
    try:
        with without_weight_bars():
            native, info = kind.from_pretrained(
                folder,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
                local_files_only=True,
            )
    except Exception as error:  # transformers raises whatever its readers raise
        raise ModelError(f"{name}: cannot be opened as a transformers {kind.__name__} ({one_line(error)})") from None
    check_loaded(info, folder)
    return native.eval()


def _processor(folder: Path, name: str) -> Any:
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its readers raise
        raise ModelError(
            f"{name}: its image preprocessing cannot be read ({one_line(error)}); it needs preprocessor_config.json"
        ) from None


def _tokenizer(native: Any, family: Family, folder: Path) -> TransformersTokenizer:
    config = native.text_model.config
    fixed = config.model_type not in PADDING_MAY_BE_CUT
    # SigLIP alone looks at its padding; of another encoder that nobody has tried, padding stays, and is masked.
    mask = not config.model_type.startswith("siglip")
    tokenizer = transformers_tokenizer(folder, family.longest, positions_of(config), fixed=fixed, mask=mask)
    # SigLIP 2 was trained on lowercased captions with Gemma's tokenizer, which does not lowercase by itself.
    tokenizer.lower = config.model_type.startswith("siglip") and type(tokenizer.native).__name__.startswith("Gemma")
    return tokenizer


def _logit_scale(native: Any) -> nn.Parameter:
    if hasattr(native, "temperature"):
        return nn.Parameter(-native.temperature.detach().log())
    scale = _scalar(native.logit_scale)
    assert scale is not None
    return scale


def _scalar(parameter: nn.Parameter | None) -> nn.Parameter | None:
    """The parameter itself, or, where it has one element in a vector, a scalar with its value."""
    return nn.Parameter(parameter.detach().reshape(())) if parameter is not None and parameter.ndim else parameter


def prefixed_blocks(native: nn.Module, with_pooler: bool = True) -> list[list[str]]:
    """The encoder's blocks, by the names that its parameters have in a trunk that calls it `native`."""
    blocks = transformers_blocks(native)
    head = set(_pooling_head(native))
    named = [[f"native.{name}" for name in block] for block in blocks]
    if with_pooler:
        named[-1] += [f"native.{name}" for name, _ in native.named_parameters() if name.startswith("pooler.")]
    return [[name for name in block if name not in head] for block in named]


def _pooling_head(native: nn.Module) -> list[str]:
    """SigLIP's pooling or projection, which stands inside of its encoders."""
    return [f"native.{name}" for name, _ in native.named_parameters() if name.startswith("head.")]


def _preprocess(processor: Any, image_size: int | None, name: str) -> Preprocess:
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    own_shape = hasattr(processor, "max_num_patches")
    # Methods of a picklable object, not closures: loader workers may be spawned.
    call = _ProcessorCall(processor, {})
    if own_shape:
        return Preprocess(call, None, mean, std, finish=call)
    size = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else processor.size
    height = int(size.get("height", size.get("shortest_edge", 0)) if size is not None else 0) or image_size
    width = int(size.get("width", height) if size is not None else height or 0)
    if not height or height != width:
        raise ModelError(f"{name}: its input is {height} × {width} pixels; clipkit takes square ones")
    plain = (
        processor.do_rescale
        and abs(processor.rescale_factor - 1 / 255) < 1e-9
        and processor.do_normalize
        and not getattr(processor, "include_top", False)
        and not getattr(processor, "rescale_offset", False)
    )
    finish = None if plain else _ProcessorCall(processor, {"do_resize": False, "do_center_crop": False})
    return Preprocess(call, int(height), mean, std, finish)


class _ProcessorCall:
    def __init__(self, processor: Any, options: dict[str, bool]) -> None:
        self.processor = processor
        self.options = options

    def __call__(self, image: Image.Image) -> Inputs:
        inputs = self.processor(image, return_tensors="pt", **self.options)
        return {name: torch.as_tensor(value[0]) for name, value in inputs.items()}
