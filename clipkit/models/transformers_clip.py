"""CLIP as transformers has it: `CLIPModel`, its Pillow image processor, its tokenizer."""

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from clipkit.errors import ModelError, one_line
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.preprocess import Preprocess
from clipkit.models.quiet import without_weight_bars
from clipkit.models.tokenizer import transformers_tokenizer
from clipkit.models.towers import ImageTower, TextTower, transformers_blocks


class _Pooled(nn.Module):
    """A transformers encoder that gives its pooled output."""

    def __init__(self, native: nn.Module) -> None:
        super().__init__()
        self.native = native

    def forward(self, **inputs: Tensor) -> Float[Tensor, "B W"]:
        return self.native(**inputs).pooler_output


class TransformersClip:
    """The backend: keeps the native objects, which share every parameter with the towers."""

    kind = "transformers"

    def __init__(self, native: Any, processor: Any, tokenizer: Any) -> None:
        self.native = native
        self.processor = processor
        self.tokenizer = tokenizer

    def save(self, model: DualEncoder, folder: Path) -> None:
        """What `CLIPModel.from_pretrained` and `AutoProcessor` open."""
        with without_weight_bars():
            self.native.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        self.tokenizer.save(folder)


def load_transformers_clip(folder: Path, name: str) -> DualEncoder:
    """The `CLIPModel` saved in `folder`, in float32 and evaluation mode."""
    import torch
    from transformers import CLIPImageProcessorPil, CLIPModel

    try:
        with without_weight_bars():
            native = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
        processor = CLIPImageProcessorPil.from_pretrained(folder)
    except Exception as error:  # transformers raises whatever its readers raise
        raise ModelError(f"{name}: cannot be opened as a transformers CLIPModel ({one_line(error)})") from None
    tokenizer = transformers_tokenizer(folder, None, native.config.text_config.max_position_embeddings)
    image = ImageTower(
        _Pooled(native.vision_model),
        native.visual_projection,
        _prefixed(native.vision_model),
        _preprocess(processor, native.config.vision_config.image_size),
    )
    text = TextTower(_Pooled(native.text_model), native.text_projection, _prefixed(native.text_model), tokenizer)
    return DualEncoder(image, text, native.logit_scale, None, TransformersClip(native, processor, tokenizer), name)


def _prefixed(native: nn.Module) -> list[list[str]]:
    return [[f"native.{name}" for name in block] for block in transformers_blocks(native)]


def _preprocess(processor: Any, image_size: int) -> Preprocess:
    # A method of a picklable object, not a closure: loader workers may be spawned.
    return Preprocess(_ProcessorCall(processor), image_size, tuple(processor.image_mean), tuple(processor.image_std))


class _ProcessorCall:
    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, picture: Any) -> Tensor:
        return self.processor(picture, return_tensors="pt")["pixel_values"][0]
