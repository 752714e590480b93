"""Export to transformers, for CLIP, MetaCLIP 2 and SigLIP models of open_clip."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from clipkit.errors import ModelError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.export.names import clip_rules, renamed, siglip_rules
from clipkit.models.export.tokenizers import as_transformers
from clipkit.models.families import FAMILIES
from clipkit.models.from_open_clip import FromOpenClip
from clipkit.models.image_processors import processor_class
from clipkit.models.publish.layout import Layout
from clipkit.models.tokenizer import OpenClipTokenizer
from clipkit.models.weights import save_tensors
from clipkit.run_files import read_object

# Options that may differ from open_clip's defaults: transformers supports them, or they only affect training.
_IMAGE_KEYS = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout"}
_TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type", "pad_id", "eos_id"}
_TEXT_KEYS |= {"hf_tokenizer_name", "tokenizer_kwargs", "hf_model_pretrained"}
_BOTH_KEYS = {"act_kwargs", "norm_kwargs", "output_tokens"}
_SIGLIP_IMAGE_KEYS = {"image_size", "timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj"}
_SIGLIP_TEXT_KEYS = _TEXT_KEYS | {"no_causal_mask", "proj_bias"}
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class Transformers:
    """Format that `from_pretrained` and `pipeline` of transformers load."""

    tolerance = 1e-5
    least_cosine = None
    crop_offset: Literal["floor"] = "floor"

    def write(self, model: DualEncoder, folder: Path) -> list[str]:
        backend: Any = model.backend
        if backend.library == "transformers":
            backend.save(model, folder)
            return []
        if backend.library != "open_clip":
            raise ModelError(
                f"{model.name}: transformers has no class for a model of separate image and text towers; "
                "use --to sentence-transformers or onnx"
            )
        siglip = bool(backend.config["vision_cfg"].get("timm_model_name"))
        config = _siglip_config(model, backend) if siglip else _clip_config(model, backend)
        tensors = backend.tensors(model)
        text_prefix = "text." if any(name.startswith("text.") for name in tensors) else ""
        rules = siglip_rules() if siglip else clip_rules(text_prefix)
        weights = renamed(tensors, rules, "transformers", model.name, (1,) if siglip else ())
        tokenizer = as_transformers(backend.tokenizer, model.name)
        if siglip:  # the tower attends to padding, so it has no mask
            tokenizer.model_input_names = ["input_ids"]
            tokenizer.init_kwargs["model_input_names"] = ["input_ids"]
        save_tensors(weights, folder / "model.safetensors", {"format": "pt"})
        config.architectures = [FAMILIES[config.model_type].class_name]
        config.save_pretrained(folder)
        _processor(model, backend.native.visual.preprocess_cfg).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return []

    def layout(self, model: DualEncoder, folder: Path) -> Layout:
        (class_name,) = read_object(folder / "config.json")["architectures"]
        tokenizer = model.text.tokenize
        return replace(
            model.layout(),
            library="transformers",
            class_name=class_name,
            pad_to=tokenizer.context_length if class_name.startswith("Siglip") else None,
            repairs=isinstance(tokenizer, OpenClipTokenizer),
        )

    def usage(self, folder: Path) -> str:
        return (
            f'model = transformers.AutoModel.from_pretrained("{folder}")\n'
            f'classify = transformers.pipeline("zero-shot-image-classification", model="{folder}")'
        )


def _clip_config(model: DualEncoder, backend: FromOpenClip) -> Any:
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg
    from transformers import CLIPConfig, MetaClip2Config

    config = backend.config
    _refuse_others(model.name, config, _IMAGE_KEYS | _BOTH_KEYS, _TEXT_KEYS | _BOTH_KEYS, "CLIPModel")
    if model.logit_bias is not None:
        raise ModelError(
            f"{model.name}: has a logit bias ({model.logit_bias.item():.3g}), which transformers' CLIPModel does not "
            "support; use --to onnx"
        )
    image, text = CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"])
    if not isinstance(image.layers, int):
        raise ModelError(
            f"{model.name}: the image tower is a ResNet, which transformers' CLIPModel does not support; use --to onnx"
        )
    quick = bool(config.get("quick_gelu"))
    width = config["embed_dim"]
    vision_config = {
        "hidden_size": image.width, "intermediate_size": int(image.width * image.mlp_ratio),
        "num_hidden_layers": image.layers, "num_attention_heads": image.width // image.head_width,
        "image_size": image.image_size, "patch_size": image.patch_size, "projection_dim": width,
        "hidden_act": _activation(quick, image.act_kwargs, model.name), "layer_norm_eps": _eps(image.norm_kwargs),
    }  # fmt: skip
    text_config = {
        "vocab_size": text.vocab_size, "max_position_embeddings": text.context_length, "projection_dim": width,
        "hidden_size": text.width, "intermediate_size": int(text.width * text.mlp_ratio),
        "num_hidden_layers": text.layers, "num_attention_heads": text.heads,
        "hidden_act": _activation(quick, text.act_kwargs, model.name), "layer_norm_eps": _eps(text.norm_kwargs),
        **_special_ids(backend, text),
    }  # fmt: skip
    match text.pool_type:
        case "argmax":
            return CLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=width)
        case "eos":  # MetaCLIP 2's end token is 2; for 2, CLIPModel would use the highest ID instead
            return MetaClip2Config(text_config=text_config, vision_config=vision_config, projection_dim=width)
    raise ModelError(
        f"{model.name}: the text pooling {text.pool_type!r} is not supported by transformers' CLIPModel; use --to onnx"
    )


def _special_ids(backend: FromOpenClip, text: Any) -> dict[str, int]:
    native = backend.tokenizer.native
    inner = getattr(native, "tokenizer", None)
    if inner is None:
        return {
            "bos_token_id": native.sot_token_id,
            "eos_token_id": native.eot_token_id,
            "pad_token_id": native.eot_token_id,
        }
    end = text.eos_id if text.pool_type == "eos" else text.vocab_size - 1
    begin = inner.bos_token_id if inner.bos_token_id is not None else inner.cls_token_id
    return {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": inner.pad_token_id}


def _siglip_config(model: DualEncoder, backend: FromOpenClip) -> Any:
    from open_clip.model import CLIPTextCfg
    from transformers import SiglipConfig

    config = backend.config
    name, trunk = model.name, backend.native.visual.trunk
    pool = getattr(trunk, "attn_pool", None)
    if (
        config["vision_cfg"].get("timm_pool") != "map"
        or pool is None
        or config["vision_cfg"].get("timm_proj") != "none"
    ):
        raise ModelError(
            f"{name}: the image tower {config['vision_cfg']['timm_model_name']} is not supported by transformers' dual "
            "encoders, which support only SigLIP's timm tower; use --to onnx"
        )
    _refuse_others(name, config, _SIGLIP_IMAGE_KEYS | {"patch_dropout"}, _SIGLIP_TEXT_KEYS | _BOTH_KEYS, "SiglipModel")
    text = CLIPTextCfg(**config["text_cfg"])
    if not (text.no_causal_mask and text.pool_type == "last" and text.proj_bias) or model.logit_bias is None:
        raise ModelError(
            f"{name}: has SigLIP's image tower, but not SigLIP's text tower or logit bias; SiglipModel needs all "
            "three, so use --to onnx"
        )
    block = trunk.blocks[0]
    vision_config = {
        "hidden_size": trunk.embed_dim, "intermediate_size": block.mlp.fc1.out_features,
        "num_hidden_layers": len(trunk.blocks), "num_attention_heads": block.attn.num_heads,
        "image_size": trunk.patch_embed.img_size[0], "patch_size": trunk.patch_embed.patch_size[0],
        "hidden_act": _timm_activation(block.mlp.act), "layer_norm_eps": trunk.norm.eps,
    }  # fmt: skip
    inner = backend.tokenizer.native.tokenizer
    text_config = {
        "vocab_size": text.vocab_size, "max_position_embeddings": text.context_length, "hidden_size": text.width,
        "intermediate_size": int(text.width * text.mlp_ratio), "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads, "projection_size": config["embed_dim"],
        "hidden_act": _activation(False, text.act_kwargs, name), "layer_norm_eps": _eps(text.norm_kwargs),
        "pad_token_id": inner.pad_token_id, "eos_token_id": inner.eos_token_id, "bos_token_id": inner.bos_token_id,
    }  # fmt: skip
    return SiglipConfig(text_config=text_config, vision_config=vision_config)


def _refuse_others(
    name: str, config: Mapping[str, Any], image_keys: set[str], text_keys: set[str], class_name: str
) -> None:
    """Raise ModelError if open_clip's configuration has an option that a transformers class does not support.

    `image_keys` and `text_keys` are the supported options of the two towers.
    """
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    if "multimodal_cfg" in config:
        raise ModelError(f"{name}: is a CoCa model, whose text decoder {class_name} does not support; use --to onnx")
    if config["text_cfg"].get("hf_model_name"):
        raise ModelError(
            f"{name}: the text tower is {config['text_cfg']['hf_model_name']}, which {class_name} does "
            "not support; use --to onnx"
        )
    for section, keys, defaults in (
        ("vision_cfg", image_keys, CLIPVisionCfg()),
        ("text_cfg", text_keys, CLIPTextCfg()),
    ):
        for key, value in config[section].items():
            if key not in keys and value != getattr(defaults, key, None):
                raise ModelError(
                    f"{name}: has {section}.{key} {value!r}, which transformers' {class_name} does not support; "
                    "use --to onnx"
                )


def _activation(quick: bool, options: Mapping[str, Any] | None, name: str) -> str:
    if not options:
        return "quick_gelu" if quick else "gelu"
    if quick or dict(options) != {"approximate": "tanh"}:
        raise ModelError(
            f"{name}: transformers does not support the options {options} of the activation; use --to onnx"
        )
    return "gelu_pytorch_tanh"


def _timm_activation(native: Any) -> str:
    return "gelu" if getattr(native, "approximate", "tanh") == "none" else "gelu_pytorch_tanh"


def _eps(options: Mapping[str, Any] | None) -> float:
    return float((options or {}).get("eps", 1e-5))


def _processor(model: DualEncoder, preprocess: Mapping[str, Any]) -> Any:
    size = model.image.preprocess.image_size
    resampling = _RESAMPLING.get(preprocess["interpolation"])
    if resampling is None or preprocess["resize_mode"] not in ("shortest", "squash"):
        raise ModelError(
            f"{model.name}: the resizing of images ({preprocess['interpolation']}, {preprocess['resize_mode']}) is not "
            "supported by the image processors of transformers; use --to onnx"
        )
    both = {
        "resample": resampling, "image_mean": list(model.image.preprocess.mean),
        "image_std": list(model.image.preprocess.std), "do_convert_rgb": True,
    }  # fmt: skip
    square = {"height": size, "width": size}
    if preprocess["resize_mode"] == "squash":
        return processor_class("Siglip")(size=square, **both)
    return processor_class("CLIP")(size={"shortest_edge": size}, crop_size=square, **both)
