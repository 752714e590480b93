"""To sentence-transformers: one folder that `SentenceTransformer` opens, for captions and images alike."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from clipkit.errors import ModelError
from clipkit.models.absent import is_absent
from clipkit.models.composed import Composed
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.export.transformers import Transformers
from clipkit.models.from_transformers import FromTransformers
from clipkit.models.quiet import without_weight_bars
from clipkit.models.tokenizer import TransformersTokenizer

_CONFIG = "sentence_bert_config.json"
# Pillow's resizing is what CLIPs were trained with; the other one differs by up to 0.015 a pixel.
_PILLOW = {"backend": "pil"}
_TIMM = "TimmWrapperImageProcessor"
# transformers' own processors would convert them, but cut the middle of some a pixel apart from timm.
_RGB_ALONE = (
    "the image tower is timm's, whose preprocessing takes nothing but PIL images in RGB there: no paths, no grey ones; "
    'give Image.open(path).convert("RGB")'
)


class SentenceTransformers:
    """What `SentenceTransformer(FOLDER)` opens; its embeddings are of unit length."""

    tolerance = 1e-5

    def write(self, model: DualEncoder, folder: Path) -> list[str]:
        _check_installed()
        from sentence_transformers import SentenceTransformer

        with tempfile.TemporaryDirectory() as parts, without_weight_bars():
            modules = (
                _of_towers(model, Path(parts)) if isinstance(model.backend, Composed) else _of_whole(model, Path(parts))
            )
            built = SentenceTransformer(modules=modules, device="cpu", similarity_fn_name="cosine")
            built.save(str(folder), create_model_card=False, safe_serialization=True)
        for config in folder.rglob(_CONFIG):
            written = json.loads(config.read_text(encoding="utf-8"))
            if "image" in written.get("modality_config", {}):  # the library does not keep it by itself
                written["processor_kwargs"] = _PILLOW
                config.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        if isinstance(model.backend, Composed) and not is_absent(model.image):
            return [_RGB_ALONE]
        return []

    def encode(
        self, folder: Path, images: Sequence[Image.Image], captions: Sequence[str]
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]:
        from sentence_transformers import SentenceTransformer

        with without_weight_bars():
            opened = SentenceTransformer(str(folder), device="cpu", trust_remote_code=False)
        found = []
        timm = any(type(getattr(own, "processor", None)).__name__ == _TIMM for own in opened.modules())
        shown = [own.convert("RGB") for own in images] if timm else list(images)
        for modality, inputs in (("image", shown), ("text", list(captions))):
            if modality in opened.modalities:
                found.append(opened.encode(inputs, convert_to_tensor=True, show_progress_bar=False))
            else:
                found.append(torch.empty(0, 1))
        return found[0], found[1]

    def usage(self, folder: Path) -> str:
        return (
            f'model = sentence_transformers.SentenceTransformer("{folder}")\n'
            'model.encode(["a cat", "a dog"])  # or images, as PIL images: model.modalities says which it takes'
        )


def _check_installed() -> None:
    from importlib.util import find_spec

    if find_spec("sentence_transformers") is None:
        raise ModelError(
            "sentence-transformers is not installed, which has to open what is written for it; "
            "pip install clipkit-torch[sentence-transformers]"
        )


def _of_whole(model: DualEncoder, parts: Path) -> list[Any]:
    """A dual encoder of transformers, or one of open_clip's that can be said in its layout."""
    from sentence_transformers.base.modules import Normalize, Transformer

    Transformers().write(model, parts)
    _convert_to_rgb(parts / "preprocessor_config.json")
    if not isinstance(model.backend, FromTransformers):
        from clipkit.models.loading import load

        model = load(parts, device="cpu")
    tokenizer = model.text.tokenize
    assert isinstance(tokenizer, TransformersTokenizer)
    options: dict[str, dict[str, Any]] = {}
    if tokenizer.fixed:  # it looks at its padding
        options["text"] = {
            "padding": "max_length",
            "max_length": tokenizer.context_length,
            "truncation": True,
            "return_attention_mask": tokenizer.mask,
        }
    processor: Any = model.backend.processor if isinstance(model.backend, FromTransformers) else None
    if hasattr(processor, "max_num_patches"):  # its library calls it with 16 and 256, whatever the configuration says
        options["image"] = {"patch_size": processor.patch_size, "max_num_patches": processor.max_num_patches}
    whole = Transformer(
        str(parts),
        processor_kwargs=_PILLOW | {"model_max_length": tokenizer.context_length},
        processing_kwargs=options,
        do_lower_case=tokenizer.lower,
    )
    return [whole, Normalize()]


def _convert_to_rgb(preprocessing: Path) -> None:
    """Not every family's processor does it unasked; then a grey image would be an error."""
    config = json.loads(preprocessing.read_text(encoding="utf-8")) | {"do_convert_rgb": True}
    preprocessing.write_text(json.dumps(config), encoding="utf-8")


def _of_towers(model: DualEncoder, parts: Path) -> list[Any]:
    """Two towers with projections, or one: a route for each kind of input."""
    from sentence_transformers.base.modules import Normalize, Router

    model.backend.save(model, parts)
    routes: dict[str, list[Any]] = {}
    if not is_absent(model.text):
        routes["text"] = _text_route(model, parts / "text")
    if not is_absent(model.image):
        routes["image"] = _image_route(model, parts / "image")
    if len(routes) == 1:
        return [*next(iter(routes.values())), Normalize()]
    mappings: Any = {(None, modality): modality for modality in routes}
    return [Router(routes, default_route="text", route_mappings=mappings), Normalize()]


def _text_route(model: DualEncoder, folder: Path) -> list[Any]:
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    trunk: Any = model.text.trunk
    tokenizer = model.text.tokenize
    if not isinstance(tokenizer, TransformersTokenizer):
        native = getattr(tokenizer, "native", None)
        from clipkit.models.export.clip_bpe import for_transformers

        for_transformers(native, tokenizer.context_length, model.name).save_pretrained(folder)
    text = Transformer(str(folder), processor_kwargs={"model_max_length": tokenizer.context_length})
    mode = {"mean": "mean", "last": "lasttoken", "cls": "cls"}[trunk.pooling]
    pooling = Pooling(trunk.native.config.hidden_size, pooling_mode=mode)
    return [text, pooling, *_projection(model.text.head)]


def _image_route(model: DualEncoder, folder: Path) -> list[Any]:
    from sentence_transformers.base.modules import Transformer

    # transformers says itself that there is no classifier, and does not want to be told twice.
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.get("model_args", {}).pop("num_classes", None)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    image = Transformer(
        str(folder),
        modality_config={"image": {"method": "forward", "method_output_name": "pooler_output"}},
        module_output_name="sentence_embedding",
    )
    return [image, *_projection(model.image.head)]


def _projection(head: nn.Module) -> list[Any]:
    """clipkit's projection as modules of the library: a LayerNorm, then one linear map or two with a GELU between."""
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import LayerNorm

    made: list[Any] = []
    for layer in head.children():
        if isinstance(layer, nn.LayerNorm):
            norm = LayerNorm(layer.normalized_shape[0])
            norm.norm.load_state_dict(layer.state_dict())
            made.append(norm)
        elif isinstance(layer, nn.Linear):
            bias = layer.bias is not None
            dense = Dense(layer.in_features, layer.out_features, bias=bias, activation_function=nn.Identity())
            dense.linear.load_state_dict(layer.state_dict())
            made.append(dense)
        elif isinstance(layer, nn.GELU):
            made[-1].activation_function = nn.GELU()
    return made
