"""Loading of transformers dual encoders, and saving in the layout of transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from clipkit.errors import ModelError
from clipkit.models.absent import absent_image_tower, absent_text_tower
from clipkit.models.blocks import prefixed, transformers_blocks
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.families import FAMILIES, Family, text_encoder
from clipkit.models.fit import check_fit
from clipkit.models.folder_config import check_config
from clipkit.models.image_processors import read_processor
from clipkit.models.preprocess import Inputs, PatchGrid, Pixels, Preprocess, Resize
from clipkit.models.quiet import as_model_error, without_weight_bars
from clipkit.models.tokenizer import TransformersTokenizer, transformers_tokenizer
from clipkit.models.towers import ImageTower, TextTower
from clipkit.models.trunks import Pooled
from clipkit.models.weights import check_loaded, check_weights
from clipkit.models.wrappers import key_mapping
from clipkit.run_files import read_object


class FromTransformers:
    """Backend that saves transformers models, from the original model, processor and tokenizer.

    The towers share the parameters of the original model.
    """

    library = "transformers"

    def __init__(self, native: Any, processor: Any, tokenizer: Any) -> None:
        self.native = native
        self.processor = processor
        self.tokenizer = tokenizer

    @property
    def class_name(self) -> str:
        return type(self.native).__name__

    def tensors(self, model: DualEncoder) -> dict[str, Tensor]:
        """Return all weights under the names of transformers, with the model's current logit scale and bias."""
        with torch.no_grad():
            if hasattr(self.native, "temperature"):  # ALIGN stores 1 / scale
                self.native.temperature.copy_(torch.exp(-model.logit_scale))
            for name in ("logit_scale", "logit_bias"):
                value, target = getattr(model, name), getattr(self.native, name, None)
                if target is not None and target is not value:
                    target.copy_(value.reshape(target.shape))
        tensors: dict[str, Tensor] = self.native.state_dict()
        return tensors

    def save(self, model: DualEncoder, folder: Path) -> None:
        """Write a folder that `AutoProcessor` and `from_pretrained` of the model class can load."""
        self.tensors(model)  # copies scale and bias
        with without_weight_bars():
            self.native.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        self.tokenizer.save(folder)


# Names of the encoder and the projection of each tower in all classes of `FAMILIES`.
_PARTS = {"image": ("vision_model", "visual_projection"), "text": ("text_model", "text_projection")}


def load_transformers(folder: Path, name: str, model_type: str, only: str | None = None) -> DualEncoder:
    """Load a transformers dual encoder from a folder, in float32 and evaluation mode.

    Args:
        folder: folder with config.json, weights, preprocessing and tokenizer.
        name: the model's name as the user gave it.
        model_type: `model_type` in config.json, e.g. `clip`.
        only: `image` or `text` loads only this tower; None: both towers.

    Raises:
        ModelError: the model type is not in `FAMILIES`, or a file is missing or invalid.
    """
    import transformers

    family = FAMILIES.get(model_type)
    if family is None:
        supported = ", ".join(sorted(row.class_name for row in FAMILIES.values()))
        raise ModelError(
            f"{name}: transformers models of type {model_type} are not supported; use a model of one of the classes "
            f"{supported}"
        )
    check_config(folder, name)
    names = check_weights(folder)
    native = _native(getattr(transformers, family.class_name), folder, name, names, only)
    processor = None if only == "text" else _processor(folder, name)
    tokenizer = None if only == "image" else _tokenizer(native, family, folder)
    image = None if only == "text" else _image_tower(native, family, processor, name)
    text = None if tokenizer is None else _text_tower(native, family, tokenizer)
    check_fit(image, text, name)
    backend = FromTransformers(native, processor, tokenizer)
    return DualEncoder(
        image or absent_image_tower(),
        text or absent_text_tower(),
        _logit_scale(native),
        _scalar(getattr(native, "logit_bias", None)),
        backend,
        name,
    )


def _without(model_class: Any, encoder: str) -> Any:
    """Return a subclass of a model class without one encoder, so that `from_pretrained` does not read its weights."""

    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, *args, **kwargs)  # on the meta device: no memory is allocated
        setattr(self, encoder, nn.Identity())

    ignored = {"_keys_to_ignore_on_load_unexpected": [rf"^{encoder}\."]}
    return type(
        model_class.__name__, (model_class,), {"__init__": build, "__module__": model_class.__module__, **ignored}
    )


def _image_tower(native: Any, family: Family, processor: Any, name: str) -> ImageTower:
    size = getattr(native.vision_model.config, "image_size", None)
    with as_model_error(f"{name}: its image preprocessing is not valid", "; correct preprocessor_config.json"):
        preprocess = _preprocess(processor, size, name)
    return ImageTower(
        family.image(native.vision_model),
        getattr(native, "visual_projection", nn.Identity()),
        _blocks(native.vision_model),
        preprocess,
        head_names=_pooling_head(native.vision_model),
    )


def _text_tower(native: Any, family: Family, tokenizer: TransformersTokenizer) -> TextTower:
    return TextTower(
        family.text(native.text_model),
        getattr(native, "text_projection", nn.Identity()),
        _blocks(native.text_model, with_pooler=family.text is Pooled),
        tokenizer,
        head_names=_pooling_head(native.text_model),
        padding_may_be_cut=not tokenizer.fixed,
    )


def _native(model_class: Any, folder: Path, name: str, names: list[str], only: str | None) -> Any:
    unneeded: tuple[str, ...] = ()
    if only is not None:
        encoder, projection = _PARTS["text" if only == "image" else "image"]
        model_class, unneeded = _without(model_class, encoder), (f"{projection}.",)
    advice = "; check config.json and the weights"
    with (
        as_model_error(f"{name}: cannot be loaded as a transformers {model_class.__name__}", advice),
        without_weight_bars(),
    ):
        native, info = model_class.from_pretrained(
            folder,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            local_files_only=True,
            key_mapping=key_mapping(names),
        )
    check_loaded(info, folder, unneeded)
    return native.eval()


def _processor(folder: Path, name: str) -> Any:
    with as_model_error(f"{name}: its image preprocessing cannot be read", "; add a preprocessor_config.json"):
        return read_processor(folder)


def _tokenizer(native: Any, family: Family, folder: Path) -> TransformersTokenizer:
    config = native.text_model.config
    encoder = text_encoder(config)
    uses_padding = encoder.padding == "used"
    tokenizer = transformers_tokenizer(
        folder, family.longest, encoder.positions(config), fixed=encoder.padding != "cut", mask=not uses_padding
    )
    # SigLIP 2 was trained on lowercased captions with Gemma's tokenizer, but only Siglip2Tokenizer lowercases them.
    # transformers before 5.4 may open both with a general class, so the class is read from the file.
    opened = type(tokenizer.native).__name__
    declared = str(read_object(folder / "tokenizer_config.json").get("tokenizer_class", opened))
    tokenizer.lower = uses_padding and declared.startswith(("Gemma", "Siglip2")) and opened != "Siglip2Tokenizer"
    return tokenizer


def _logit_scale(native: Any) -> nn.Parameter:
    if hasattr(native, "temperature"):
        return nn.Parameter(-native.temperature.detach().log())
    scale = _scalar(native.logit_scale)
    assert scale is not None
    return scale


def _scalar(parameter: nn.Parameter | None) -> nn.Parameter | None:
    """Return a parameter as a scalar; a vector with one element is reshaped."""
    return nn.Parameter(parameter.detach().reshape(())) if parameter is not None and parameter.ndim else parameter


def _blocks(native: nn.Module, with_pooler: bool = True) -> list[list[str]]:
    """Return the parameter names of an encoder with the prefix `native.` of its trunk, one list per block.

    Parameters of SigLIP's pooling head are left out. With `with_pooler`, the last block includes those of `pooler`.
    """
    head = set(_pooling_head(native))
    blocks = prefixed(transformers_blocks(native))
    if with_pooler:
        blocks[-1] += [f"native.{name}" for name, _ in native.named_parameters() if name.startswith("pooler.")]
    return [[name for name in block if name not in head] for block in blocks]


def _pooling_head(native: nn.Module) -> list[str]:
    """Return the parameter names of SigLIP's attention pooling or text projection, with the prefix `native.`.

    In transformers, they are inside the encoders, under the name `head`.
    """
    return [f"native.{name}" for name, _ in native.named_parameters() if name.startswith("head.")]


def _preprocess(processor: Any, image_size: int | None, name: str) -> Preprocess:
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    # Methods of a picklable object instead of closures: loader workers may be spawned.
    call = _ProcessorCall(processor, {})
    if hasattr(processor, "max_num_patches"):
        grid = PatchGrid(processor.patch_size, processor.max_num_patches, _interpolation(processor))
        return Preprocess(call, None, mean, std, finish=call, steps=grid)
    size = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else processor.size
    height = int(size.get("height", size.get("shortest_edge", 0)) if size is not None else 0) or image_size
    width = int(size.get("width", height) if size is not None else height or 0)
    if not height or height != width:
        raise ModelError(
            f"{name}: inputs of {height} × {width} pixels are not supported; use a model with square inputs"
        )
    only_scales = (
        processor.do_rescale
        and abs(processor.rescale_factor - 1 / 255) < 1e-9
        and processor.do_normalize
        and not getattr(processor, "include_top", False)
        and not getattr(processor, "rescale_offset", False)
    )
    if only_scales:
        return Preprocess(call, int(height), mean, std, steps=_resize(processor, int(height)), pixels=call.pixels)
    finish = _ProcessorCall(processor, {"do_resize": False, "do_center_crop": False})
    return Preprocess(call, int(height), mean, std, finish)


def _resize(processor: Any, image_size: int) -> Resize | None:
    if not getattr(processor, "do_resize", False) or processor.size is None or processor.resample is None:
        return None
    shortest = processor.size.get("shortest_edge")
    resized = shortest or processor.size.get("height")
    cropped = getattr(processor, "do_center_crop", False)
    if not cropped and (shortest or resized != image_size):
        return None
    return Resize("shortest" if shortest else "squash", resized, _interpolation(processor), "floor")


def _interpolation(processor: Any) -> str:
    return Image.Resampling(processor.resample).name.lower()


class _ProcessorCall:
    def __init__(self, processor: Any, options: dict[str, bool]) -> None:
        self.processor = processor
        self.options = options

    def __call__(self, image: Image.Image) -> Inputs:
        inputs = self.processor(image, return_tensors="pt", **self.options)
        return {name: torch.as_tensor(value[0]) for name, value in inputs.items()}

    def pixels(self, image: Image.Image) -> Pixels:
        """Return the resized and cropped image as uint8 pixels, before scaling and normalization."""
        array = self.processor(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
        return np.ascontiguousarray(np.moveaxis(np.asarray(array), 0, -1))
