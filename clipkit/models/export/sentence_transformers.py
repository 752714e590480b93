"""Export to sentence-transformers."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from clipkit.errors import ModelError
from clipkit.extras import check_extra
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.export.tokenizers import as_transformers
from clipkit.models.export.transformers import Transformers
from clipkit.models.image_processors import pillow_option
from clipkit.models.layers import Layered
from clipkit.models.preprocess import PatchGrid
from clipkit.models.publish.layout import Layout
from clipkit.models.quiet import without_weight_bars
from clipkit.models.tokenizer import OpenClipTokenizer, TransformersTokenizer

_CONFIG = "sentence_bert_config.json"
# Processors of transformers would convert images to RGB, but would crop some of them one pixel apart from timm.
_RGB_ONLY = (
    "the image tower is a timm model, for which sentence-transformers accepts only PIL images in RGB (not "
    "paths, not gray images); open images with the function rgb() in README.md"
)


class SentenceTransformers:
    """Format that `SentenceTransformer(FOLDER)` loads, with unit-length embeddings."""

    tolerance = 1e-5
    least_cosine = None
    crop_offset: Literal["floor"] = "floor"

    def write(self, model: DualEncoder, folder: Path) -> list[str]:
        check_extra("sentence-transformers", ["sentence_transformers"], ModelError)
        from sentence_transformers import SentenceTransformer

        composed = model.backend.library == "clipkit"
        with tempfile.TemporaryDirectory() as parts, without_weight_bars():
            modules = (_tower_modules if composed else _whole_modules)(model, Path(parts))
            built = SentenceTransformer(modules=modules, device="cpu", similarity_fn_name="cosine")
            built.save(str(folder), create_model_card=False, safe_serialization=True)
        for config in folder.rglob(_CONFIG):
            written = json.loads(config.read_text(encoding="utf-8"))
            if "image" in written.get("modality_config", {}):  # the library does not save this setting
                # CLIP models were trained with Pillow's resizing; torchvision's differs by up to 0.015 per pixel.
                written["processor_kwargs"] = pillow_option()
                config.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        return [_RGB_ONLY] if composed and "image" in model.sides else []

    def layout(self, model: DualEncoder, folder: Path) -> Layout:
        repairs = "text" in model.sides and isinstance(model.text.tokenize, OpenClipTokenizer)
        return replace(model.layout(), library="sentence-transformers", class_name=None, repairs=repairs)

    def usage(self, folder: Path) -> str:
        return (
            f'model = sentence_transformers.SentenceTransformer("{folder}")\n'
            f'model.encode(["a cat", "a dog"])  # or images that are opened as in {folder / "README.md"}'
        )


def _whole_modules(model: DualEncoder, parts: Path) -> list[Any]:
    """Return sentence-transformers modules for a transformers or open_clip model.

    An open_clip model is first converted to transformers. `parts` is an empty folder for temporary files.
    """
    from sentence_transformers.base.modules import Normalize, Transformer

    Transformers().write(model, parts)
    _convert_to_rgb(parts / "preprocessor_config.json")
    if model.backend.library != "transformers":
        from clipkit.models.loading import load

        model = load(parts, device="cpu")
    tokenizer = model.text.tokenize
    assert isinstance(tokenizer, TransformersTokenizer)
    options: dict[str, dict[str, Any]] = {}
    if tokenizer.fixed:
        options["text"] = {
            "padding": "max_length",
            "max_length": tokenizer.context_length,
            "truncation": True,
            "return_attention_mask": tokenizer.mask,
        }
    grid = model.image.preprocess.steps
    if isinstance(grid, PatchGrid):  # sentence-transformers would use 16 and 256 instead of the configuration
        options["image"] = {"patch_size": grid.patch, "max_num_patches": grid.patches}
    whole = Transformer(
        str(parts),
        processor_kwargs=pillow_option() | {"model_max_length": tokenizer.context_length},
        processing_kwargs=options,
        do_lower_case=tokenizer.lower,
    )
    return [whole, Normalize()]


def _convert_to_rgb(preprocessing: Path) -> None:
    """Enable the conversion of images to RGB in preprocessor_config.json."""
    # Without this conversion, some model families raise an error for gray images.
    config = json.loads(preprocessing.read_text(encoding="utf-8")) | {"do_convert_rgb": True}
    preprocessing.write_text(json.dumps(config), encoding="utf-8")


def _tower_modules(model: DualEncoder, parts: Path) -> list[Any]:
    """Return sentence-transformers modules for a model of separate towers.

    With two towers, a router sends images to the image tower and texts to the text tower.
    `parts` is an empty folder for temporary files.
    """
    from sentence_transformers.base.modules import Normalize, Router

    model.backend.save(model, parts)
    routes: dict[str, list[Any]] = {}
    if "text" in model.sides:
        routes["text"] = _text_route(model, parts / "text")
    if "image" in model.sides:
        routes["image"] = _image_route(model, parts / "image")
    if len(routes) == 1:
        return [*next(iter(routes.values())), Normalize()]
    mappings: Any = {(None, modality): modality for modality in routes}
    return [Router(routes, default_route="text", route_mappings=mappings), Normalize()]


def _text_route(model: DualEncoder, folder: Path) -> list[Any]:
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    trunk: Any = model.text.trunk
    if isinstance(trunk, Layered):
        raise ModelError(
            f"{model.name}: the projections read several concatenated layers ({', '.join(trunk.layers)}), for which "
            "sentence-transformers has no module; use --to onnx"
        )
    tokenizer = model.text.tokenize
    if not isinstance(tokenizer, TransformersTokenizer):
        as_transformers(tokenizer, model.name).save_pretrained(folder)
    text = Transformer(str(folder), processor_kwargs={"model_max_length": tokenizer.context_length})
    mode = {"mean": "mean", "last": "lasttoken", "cls": "cls"}[trunk.pooling]
    pooling = Pooling(trunk.native.config.hidden_size, pooling_mode=mode)
    return [text, pooling, *_projection(model.text.head)]


def _image_route(model: DualEncoder, folder: Path) -> list[Any]:
    from sentence_transformers.base.modules import Transformer

    # transformers passes num_classes itself and raises an error for a second one.
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
    """Return the projection of a tower as sentence-transformers modules."""
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import LayerNorm

    modules: list[Any] = []
    for layer in head.children():
        if isinstance(layer, nn.LayerNorm):
            norm = LayerNorm(layer.normalized_shape[0])
            norm.norm.load_state_dict(layer.state_dict())
            modules.append(norm)
        elif isinstance(layer, nn.Linear):
            bias = layer.bias is not None
            dense = Dense(layer.in_features, layer.out_features, bias=bias, activation_function=nn.Identity())
            dense.linear.load_state_dict(layer.state_dict())
            modules.append(dense)
        elif isinstance(layer, nn.GELU):
            modules[-1].activation_function = nn.GELU()
    return modules
