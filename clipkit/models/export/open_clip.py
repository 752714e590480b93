"""Export to open_clip, for CLIP and SigLIP models of transformers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from clipkit.errors import ModelError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.export.names import clip_rules, renamed, siglip_rules
from clipkit.models.export.tokenizers import is_clip_tokenizer
from clipkit.models.families import FAMILIES
from clipkit.models.from_open_clip import CONFIG_FILE, WEIGHTS
from clipkit.models.from_transformers import FromTransformers
from clipkit.models.layers import Layered
from clipkit.models.preprocess import Resize
from clipkit.models.publish.layout import Layout
from clipkit.models.tokenizer import TransformersTokenizer
from clipkit.models.weights import save_tensors
from clipkit.run_files import read_object

BESIDE = "."
"""Name of a tokenizer in the same folder; on the Hub, the configuration contains the repository's name instead."""

# transformers' name of an activation -> whether it is QuickGELU, and options of open_clip's GELU.
_ACTIVATIONS: dict[str, tuple[bool, dict[str, str] | None]] = {
    "quick_gelu": (True, None),
    "gelu": (False, None),
    "gelu_pytorch_tanh": (False, {"approximate": "tanh"}),
}
_FILTERS = ("bicubic", "bilinear")
_OPEN_CLIP_EPS = 1e-5


class OpenClip:
    """Format that `open_clip.create_model_from_pretrained("local-dir:FOLDER")` loads."""

    tolerance = 1e-5
    least_cosine = None
    crop_offset: Literal["round"] = "round"

    def write(self, model: DualEncoder, folder: Path) -> list[str]:
        backend: Any = model.backend
        if backend.library == "open_clip":
            backend.save(model, folder)
            return []
        if backend.library != "transformers":
            raise ModelError(
                f"{model.name}: open_clip has no architecture for a model of separate towers ({_reason(model)}); use "
                "--to onnx, or --to sentence-transformers if the input of each projection is the output of one layer"
            )
        family = FAMILIES[backend.native.config.model_type]
        if family.open_clip is None:
            supported = ", ".join(other.class_name for other in FAMILIES.values() if other.open_clip)
            raise ModelError(
                f"{model.name}: open_clip has no architecture for {family.class_name}, only for {supported}; "
                "use another format"
            )
        siglip = family.open_clip == "siglip"
        config, notes = _siglip_config(model, backend) if siglip else (_clip_config(model, backend), [])
        rules = siglip_rules() if siglip else clip_rules()
        save_tensors(renamed(backend.tensors(model), rules, "open_clip", model.name), folder / WEIGHTS)
        if "hf_tokenizer_name" in config["text_cfg"]:
            backend.tokenizer.save(folder)
        written = {"model_cfg": config, "preprocess_cfg": _preprocessing(model)}
        (folder / CONFIG_FILE).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        return notes

    def layout(self, model: DualEncoder, folder: Path) -> Layout:
        layout = replace(model.layout(), library="open_clip", class_name=None)
        tokenizer = model.text.tokenize
        if not isinstance(tokenizer, TransformersTokenizer):
            return layout
        named = "hf_tokenizer_name" in read_object(folder / CONFIG_FILE)["model_cfg"]["text_cfg"]
        beside = "str.lower" if tokenizer.lower else "str"
        return replace(layout, clean=beside if named else 'lambda text: unicodedata.normalize("NFC", text).lower()')

    def usage(self, folder: Path) -> str:
        return (
            f'model, preprocess = open_clip.create_model_from_pretrained("local-dir:{folder}")\n'
            f'tokenizer = open_clip.get_tokenizer("local-dir:{folder}")'
        )


def _reason(model: DualEncoder) -> str:
    layers = [", ".join(tower.trunk.layers) for tower in model.sides.values() if isinstance(tower.trunk, Layered)]
    return (
        f"the projections read the concatenated layers {' and '.join(layers)}"
        if layers
        else "separate image and text towers"
    )


def _clip_config(model: DualEncoder, backend: FromTransformers) -> dict[str, Any]:
    vision, text = backend.native.config.vision_config, backend.native.config.text_config
    (quick, image_options), (text_quick, text_options) = (_activation(tower, model.name) for tower in (vision, text))
    if quick != text_quick:
        raise ModelError(
            f"{model.name}: the towers use the activations {vision.hidden_act} and {text.hidden_act}; "
            "open_clip only supports QuickGELU in both towers or in neither; use --to transformers or onnx"
        )
    config: dict[str, Any] = {
        "embed_dim": backend.native.config.projection_dim,
        "vision_cfg": _vision(vision, model.name) | _norm(vision) | _options(image_options),
        "text_cfg": _text(text, backend, model.name) | _norm(text) | _options(text_options),
    }
    end, highest = text.eos_token_id, text.vocab_size - 1
    # Old configurations of CLIP have 2 here; transformers then also uses the highest ID as the end token.
    if not (end == highest or (end == 2 and backend.native.config.model_type == "clip")):
        config["text_cfg"] |= {"pool_type": "eos", "eos_id": end}
    return config | ({"quick_gelu": True} if quick else {})


def _siglip_config(model: DualEncoder, backend: FromTransformers) -> tuple[dict[str, Any], list[str]]:
    """Return the open_clip configuration of a SigLIP model, and sentences about known differences from the model."""
    vision, text = backend.native.config.vision_config, backend.native.config.text_config
    quick, options = _activation(text, model.name)
    if quick or _activation(vision, model.name)[0]:
        raise ModelError(
            f"{model.name}: uses QuickGELU, but open_clip's SigLIP supports only GELU; use --to transformers or onnx"
        )
    architecture, activation = _timm_architecture(vision, model.name)
    notes = []
    if activation != vision.hidden_act:
        notes.append(
            f"the image tower uses the activation {vision.hidden_act}, but open_clip replaces this tower by timm's "
            f"{architecture}, which uses {activation}"
        )
    config = {
        "embed_dim": vision.hidden_size,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": vision.image_size, "timm_model_name": architecture, "timm_model_pretrained": False,
            "timm_pool": "map", "timm_proj": "none",
        },
        "text_cfg": _text(text, backend, model.name)
        | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
        | _norm(text)
        | _options(options),
    }  # fmt: skip
    return config, notes


def _timm_architecture(vision: Any, name: str) -> tuple[str, str]:
    """Return the names of the timm model and of its activation for a SigLIP image tower.

    The timm model has the same layers and sizes as the tower, and the same activation if possible.

    Raises:
        ModelError: timm has no such model.
    """
    import timm

    candidates = []
    for architecture in timm.list_models(f"vit_*_patch{vision.patch_size}_siglip_{vision.image_size}"):
        with torch.device("meta"):
            native: Any = timm.create_model(architecture, num_classes=0, global_pool="map")
        block = native.blocks[0]
        if (native.embed_dim, len(native.blocks), block.attn.num_heads, block.mlp.fc1.out_features) == (
            vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads, vision.intermediate_size,
        ):  # fmt: skip
            approximate = getattr(block.mlp.act, "approximate", "tanh")
            candidates.append((architecture, "gelu" if approximate == "none" else "gelu_pytorch_tanh"))
    if not candidates:
        raise ModelError(
            f"{name}: timm, which open_clip uses for SigLIP's image tower, has no SigLIP tower with "
            f"{vision.num_hidden_layers} layers of width {vision.hidden_size}, patches of {vision.patch_size} and "
            f"images of {vision.image_size} pixels; use another format"
        )
    return max(candidates, key=lambda candidate: candidate[1] == vision.hidden_act)


def _vision(vision: Any, name: str) -> dict[str, Any]:
    heads, width = vision.num_attention_heads, vision.hidden_size
    return {
        "image_size": vision.image_size, "layers": vision.num_hidden_layers, "width": width,
        "head_width": width // heads, "patch_size": vision.patch_size,
    } | _mlp(vision)  # fmt: skip


def _text(text: Any, backend: FromTransformers, name: str) -> dict[str, Any]:
    tokenizer = backend.tokenizer
    if tokenizer.context_length != text.max_position_embeddings:
        raise ModelError(
            f"{name}: the tokenizer truncates captions to {tokenizer.context_length} tokens, but the text "
            f"tower has {text.max_position_embeddings} positions; open_clip needs equal numbers, so use another "
            "format"
        )
    config: dict[str, Any] = {
        "context_length": tokenizer.context_length, "vocab_size": text.vocab_size, "width": text.hidden_size,
        "heads": text.num_attention_heads, "layers": text.num_hidden_layers,
    } | _mlp(text)  # fmt: skip
    if not is_clip_tokenizer(tokenizer.native):
        config["hf_tokenizer_name"] = BESIDE
        if tokenizer.lower:
            config["tokenizer_kwargs"] = {"clean": "lower"}
    return config


def _mlp(config: Any) -> dict[str, float]:
    """Return the option mlp_ratio (hidden width / width) of a tower for open_clip; {} for the default, 4."""
    # open_clip computes the hidden width from the ratio and rounds down, so a ratio may have to be slightly larger.
    width, hidden = config.hidden_size, config.intermediate_size
    ratio = hidden / width
    return {} if ratio == 4 else {"mlp_ratio": ratio if int(width * ratio) == hidden else (hidden + 0.5) / width}


def _norm(config: Any) -> dict[str, Any]:
    return {} if config.layer_norm_eps == _OPEN_CLIP_EPS else {"norm_kwargs": {"eps": config.layer_norm_eps}}


def _options(options: dict[str, str] | None) -> dict[str, Any]:
    return {} if options is None else {"act_kwargs": options}


def _activation(config: Any, name: str) -> tuple[bool, dict[str, str] | None]:
    if config.hidden_act not in _ACTIVATIONS:
        supported = ", ".join(_ACTIVATIONS)
        raise ModelError(
            f"{name}: open_clip does not support the activation {config.hidden_act}, only {supported}; use another "
            "format"
        )
    return _ACTIVATIONS[config.hidden_act]


def _preprocessing(model: DualEncoder) -> dict[str, Any]:
    """Return the image preprocessing of a transformers model as settings for open_clip.

    Raises:
        ModelError: open_clip does not support this preprocessing.
    """
    preprocess = model.image.preprocess
    steps = preprocess.steps
    if not isinstance(steps, Resize) or steps.size != preprocess.image_size or steps.interpolation not in _FILTERS:
        raise ModelError(
            f"{model.name}: open_clip does not support the image preprocessing in preprocessor_config.json; use "
            "another format"
        )
    return {
        "size": steps.size,
        "mode": "RGB",
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": steps.interpolation,
        "resize_mode": steps.mode,
        "fill_color": 0,
    }
