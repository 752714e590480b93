"""Dual encoders of open_clip: architectures with pretrained weights, random ones, or a checkpoint of its trainer."""

import copy
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipkit.errors import ModelError, one_line
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.preprocess import Preprocess, TransformCall
from clipkit.models.quiet import without_root_messages
from clipkit.models.tokenizer import OpenClipTokenizer, refuse_code
from clipkit.models.towers import ImageTower, TextTower, timm_blocks, transformers_blocks
from clipkit.models.weights import check_safetensors, read_pickle

log = logging.getLogger("clipkit")

CONFIG_FILE = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
# In the order in which open_clip itself looks for them.
_WEIGHT_FILES = (WEIGHTS, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors")

_TOKENIZER_OPTIONS = {"clean", "strip_sep_token", "language"}


class Native(nn.Module):
    """A tower of open_clip as it is; of several outputs, as CoCa's have, the first is the pooled one."""

    def __init__(self, native: nn.Module) -> None:
        super().__init__()
        self.native = native

    def forward(self, **inputs: Tensor) -> Float[Tensor, "B W"]:
        tokens = inputs.get("input_ids")
        output = self.native(inputs["pixel_values"] if tokens is None else tokens)
        return output[0] if isinstance(output, tuple) else output


class CausalText(nn.Module):
    """open_clip's causal text transformer up to its pooled end token, for captions of any length.

    Attention looks only backward and the end token is what counts, so what follows it has no part. open_clip's own
    forward wants all of its context length.

    Args:
        native: open_clip's CLIP, which holds the parts of its text tower itself, or a TextTransformer.
        end: id of the end token; None where it is the highest of a caption.
    """

    def __init__(self, native: Any, end: int | None) -> None:
        super().__init__()
        self.token_embedding = native.token_embedding
        self.positional_embedding = native.positional_embedding
        self.transformer = native.transformer
        self.ln_final = native.ln_final
        self.attn_mask: Tensor
        self.register_buffer("attn_mask", native.attn_mask, persistent=False)
        self.end = end

    @property
    def native(self) -> nn.Module:
        """Itself."""
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As open_clip's towers have it."""
        self.transformer.grad_checkpointing = enable

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Float[Tensor, "B W"]:
        length = input_ids.shape[1]
        states = self.token_embedding(input_ids) + self.positional_embedding[:length]
        states = self.transformer(states, attn_mask=self.attn_mask[:length, :length])
        ends = input_ids if self.end is None else (input_ids == self.end).int()
        return self.ln_final(states)[torch.arange(len(states), device=states.device), ends.argmax(dim=1)]


class Projection(nn.Module):
    """Multiplication with a matrix (W, D), which open_clip keeps as a bare parameter."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, features: Float[Tensor, "B W"]) -> Float[Tensor, "B D"]:
        return features @ self.weight


class FromOpenClip:
    """The backend: keeps open_clip's own model, which shares every parameter with the towers, and its configuration."""

    library = "open_clip"
    class_name = None

    def __init__(self, native: Any, config: dict[str, Any], tokenizer: OpenClipTokenizer) -> None:
        self.native = native
        self.config = config
        self.tokenizer = tokenizer

    def tensors(self, model: DualEncoder) -> dict[str, Tensor]:
        """The weights by open_clip's names, with what the towers took out of its model."""
        tensors: dict[str, Tensor] = self.native.state_dict()
        if isinstance(model.image.head, Projection):
            tensors["visual.proj"] = model.image.head.weight.detach()
        tensors["logit_scale"] = model.logit_scale.detach().reshape(self.native.logit_scale.shape)
        if model.logit_bias is not None:
            tensors["logit_bias"] = model.logit_bias.detach().reshape(self.native.logit_bias.shape)
        return tensors

    def save(self, model: DualEncoder, folder: Path) -> None:
        """What `open_clip.create_model_from_pretrained("local-dir:FOLDER")` opens."""
        from open_clip.push_to_hf_hub import save_config_for_hf
        from safetensors.torch import save_file

        tensors = self.tensors(model)
        save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, folder / WEIGHTS)
        save_config_for_hf(self.native, folder / CONFIG_FILE, self.config)
        self.tokenizer.save(folder)


def load_open_clip(name: str) -> DualEncoder:
    """`open_clip:ARCH/TAG`, `open_clip:ARCH` (random weights) or `open_clip:ARCH?weights=FILE`, in evaluation mode.

    Raises:
        ModelError: there is no such architecture or tag, the weights do not fit, or their activation is another one.
    """
    import open_clip

    rest, asked, option = name.removeprefix("open_clip:").partition("?")
    architecture, slash, tag = rest.partition("/")
    file = option.removeprefix("weights=")
    if (asked and (slash or not file or file == option)) or (slash and not tag):
        raise ModelError(f"{name}: write open_clip:ARCH/TAG, open_clip:ARCH or open_clip:ARCH?weights=FILE")
    config = open_clip.get_model_config(architecture)
    if config is None:
        near = _nearest(architecture, open_clip.list_models())
        raise ModelError(f"{name}: open_clip has no architecture {architecture}{near}; `clipkit models` lists them")
    if tag:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if tag not in tags:
            raise ModelError(
                f"{name}: {architecture} has no weights {tag}{_nearest(tag, tags)}; it has {', '.join(tags) or 'none'}"
            )
        _match_activation(name, architecture, tag, config)
    weights = _Weights(Path(file).expanduser(), name) if file else None
    native = _create(name, architecture, tag or None, config, weights)
    tokenizer = _tokenizer_of(architecture, name, config)
    return _dual_encoder(native, config, tokenizer, f"open_clip:{architecture}", name)


def load_open_clip_folder(folder: Path, name: str) -> DualEncoder:
    """A folder with open_clip_config.json, as open_clip and clipkit write it.

    Raises:
        ModelError: something in it is missing or does not fit; names the file.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["model_cfg"]
        dict(config["text_cfg"], **config["vision_cfg"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / CONFIG_FILE}: is no configuration of open_clip ({one_line(error)})") from None
    found = [folder / file for file in _WEIGHT_FILES if (folder / file).is_file()]
    if not found:
        raise ModelError(f"{folder}: has no weights; it needs {WEIGHTS} or open_clip_pytorch_model.bin")
    refuse_code(folder / "tokenizer_config.json")
    native = _create(name, f"local-dir:{folder}", None, config, _Weights(found[0], name))
    tokenizer = _tokenizer_of(f"local-dir:{folder}", name, config)
    return _dual_encoder(native, config, tokenizer, None, name)


def _create(name: str, architecture: str, tag: str | None, config: dict[str, Any], weights: "_Weights | None") -> Any:
    """open_clip's model. What it takes to build it goes into `config`, with which it is saved."""
    import open_clip

    text = config["text_cfg"]
    if text.get("no_causal_mask") and not config.get("custom_text"):
        # Built as the plain class, CLIPA's text tower is no module of its own; open_clip converts the weights.
        config["custom_text"] = True
    if weights is not None and "logit_bias" in weights.shapes:
        config.setdefault("init_logit_bias", -10.0)  # of its trainer's --siglip, which no architecture's file mentions
    bias = {"init_logit_bias": config["init_logit_bias"]} if "init_logit_bias" in config else {}
    try:
        with without_root_messages():  # it warns of random weights, which come to be replaced
            if text.get("hf_model_name"):
                from transformers import AutoConfig

                AutoConfig.from_pretrained(text["hf_model_name"], trust_remote_code=False)  # or it would ask
            native = open_clip.create_model(
                architecture,
                pretrained=tag,
                load_weights=tag is not None,
                force_quick_gelu=bool(config.get("quick_gelu")),
                force_custom_text=bool(config.get("custom_text")),
                pretrained_text=False,
                **bias,
            ).eval()
    except Exception as error:  # open_clip raises whatever its builders raise
        raise ModelError(f"{name}: open_clip cannot build it ({one_line(error)})") from None
    if weights is not None:
        weights.load(native)
    return native


def _tokenizer_of(architecture: str, name: str, config: dict[str, Any]) -> Any:
    import open_clip

    options = config["text_cfg"].get("tokenizer_kwargs", {})
    if unknown := sorted(set(options) - _TOKENIZER_OPTIONS):
        raise ModelError(f"{name}: its tokenizer has the option {unknown[0]}, which clipkit does not take; remove it")
    from_hub = {"trust_remote_code": False} if config["text_cfg"].get("hf_tokenizer_name") else {}
    try:
        with without_root_messages():
            return open_clip.get_tokenizer(architecture, **from_hub)
    except Exception as error:  # open_clip raises whatever its builders raise
        raise ModelError(f"{name}: its tokenizer cannot be had ({one_line(error)})") from None


def _match_activation(name: str, architecture: str, tag: str, config: dict[str, Any]) -> None:
    """Give the model the activation that its weights were trained with, or refuse where its name says another one."""
    import open_clip

    wanted = bool(open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu", False))
    if wanted and not config.get("quick_gelu", False):
        config["quick_gelu"] = True
        log.info(
            "%s: these weights were trained with QuickGELU, so the model has it, though its name does not say so", name
        )
    plain = architecture.removesuffix("-quickgelu")
    if config.get("quick_gelu", False) and not wanted and plain != architecture and plain in open_clip.list_models():
        raise ModelError(
            f"{name}: its weights were trained with GELU, {architecture} has QuickGELU; take open_clip:{plain}/{tag}"
        )


class _Weights:
    """A file of weights, looked at before a model is built for it.

    Raises:
        ModelError: it is missing, cut short, or holds something else; names it.
    """

    def __init__(self, file: Path, name: str) -> None:
        self.file = file
        self.name = name
        if not file.is_file():
            raise ModelError(f"{name}: there is no file {file}; paths are relative to the working directory")
        self.shapes = {key.removeprefix("module."): shape for key, shape in self._read().items()}

    def _read(self) -> dict[str, tuple[int, ...]]:
        if self.file.suffix == ".safetensors":
            return check_safetensors(self.file)
        content = read_pickle(self.file, device="meta")
        inner = content.get("state_dict", content) if isinstance(content, Mapping) else {}
        shapes = {key: tuple(value.shape) for key, value in inner.items() if isinstance(value, Tensor)}
        if not shapes:
            raise ModelError(
                f"{self.file}: holds no weights; it needs a state_dict, as epoch_N.pt of open_clip's trainer has it"
            )
        return shapes

    def load(self, native: Any) -> None:
        """Put them into open_clip's model."""
        from open_clip.factory import load_checkpoint

        for key, value in native.state_dict().items():
            saved = self.shapes.get(key, self.shapes.get(key.removeprefix("text.")))
            # open_clip would stretch positions to another size without a word.
            if key.endswith("positional_embedding") and saved is not None and saved != tuple(value.shape):
                raise ModelError(
                    f"{self.file}: does not fit {self.name} ({key} is {saved} in the file, {tuple(value.shape)} in the "
                    "model: another image size or context length)"
                )
        try:
            with without_root_messages():
                load_checkpoint(native, str(self.file), strict=True, weights_only=True)
        except Exception as error:  # torch and open_clip raise whatever their readers raise
            raise ModelError(f"{self.file}: does not fit {self.name} ({one_line(error)})") from None


def _dual_encoder(native: Any, config: Any, tokenizer: Any, source: str | None, name: str) -> DualEncoder:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = copy.deepcopy(config)
    backend_tokenizer, text = _text_tower(native, tokenizer, source)
    preprocess_cfg = PreprocessCfg(**native.visual.preprocess_cfg)
    size = preprocess_cfg.size
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ModelError(f"{name}: its input is {height} × {width} pixels; clipkit takes square ones")
    transform = TransformCall(image_transform_v2(preprocess_cfg, is_train=False))
    preprocess = Preprocess(transform, int(height), tuple(preprocess_cfg.mean), tuple(preprocess_cfg.std))
    image = _image_tower(native.visual, preprocess)
    scale = (
        native.logit_scale if native.logit_scale.ndim == 0 else nn.Parameter(native.logit_scale.detach().reshape(()))
    )
    bias = native.logit_bias
    if bias is not None and bias.ndim:
        bias = nn.Parameter(bias.detach().reshape(()))
    return DualEncoder(image, text, scale, bias, FromOpenClip(native, config, backend_tokenizer), name)


def _image_tower(visual: Any, preprocess: Preprocess) -> ImageTower:
    if hasattr(visual, "trunk"):  # timm's model with open_clip's head on top
        return _timm_tower(visual, preprocess)
    if isinstance(getattr(visual, "proj", None), nn.Parameter):
        # Taken out of the trunk, which skips it where it is None, so that a frozen trunk can run once.
        head = Projection(visual.proj)
        visual.proj = None
        return ImageTower(Native(visual), head, _prefixed(transformers_blocks(visual)), preprocess)
    # CLIP's ResNet: four stages, and an attention pool that is the projection too.
    stages: dict[str, list[str]] = {}
    for parameter, _ in visual.named_parameters():
        part = parameter.partition(".")[0]
        stages.setdefault(part if part.startswith(("layer", "attnpool")) else "layer1", []).append(
            f"native.{parameter}"
        )
    pool = stages.pop("attnpool", [])
    return ImageTower(Native(visual), nn.Identity(), list(stages.values()), preprocess, head_names=pool)


def _timm_tower(visual: Any, preprocess: Preprocess) -> ImageTower:
    blocks = _prefixed(timm_blocks(visual.trunk))
    names: list[str] = []
    if not any(True for _ in visual.head.parameters()):  # the projection is the trunk's own, or its pooling is all
        for prefix in ("native.head.", "native.attn_pool."):
            names = names or [name for block in blocks for name in block if name.startswith(prefix)]
        blocks = [[name for name in block if name not in names] for block in blocks]
    return ImageTower(Native(visual.trunk), visual.head, [b for b in blocks if b], preprocess, head_names=names)


def _text_tower(native: Any, tokenizer: Any, source: str | None) -> tuple[OpenClipTokenizer, TextTower]:
    text = getattr(native, "text", native)
    context_length = int(getattr(tokenizer, "context_length", None) or text.context_length)
    inner = getattr(tokenizer, "tokenizer", None)
    padding = int(inner.pad_token_id) if inner is not None else 0
    pooling = getattr(text, "pool_type", getattr(text, "text_pool_type", None))
    causal = getattr(text, "attn_mask", None) is not None and getattr(text, "cls_emb", None) is None
    if causal and pooling in ("argmax", "eos"):
        end = getattr(text, "eos_id", getattr(text, "text_eos_id", None)) if pooling == "eos" else None
        trunk: nn.Module = CausalText(text, end)
        own = OpenClipTokenizer(tokenizer, source, context_length, padding)
        projection = text.text_projection
        head = (
            projection
            if isinstance(projection, nn.Module)
            else Projection(projection)
            if projection is not None
            else None
        )
        return own, TextTower(trunk, head or nn.Identity(), transformers_blocks(trunk), own)
    masked = hasattr(text, "pooler")  # a text encoder of transformers, which masks by the padding's id
    own = OpenClipTokenizer(tokenizer, source, context_length, padding if masked else None)
    names = [f"native.{name}" for name, _ in text.named_parameters() if name.startswith(("proj.", "text_projection"))]
    blocks = [[name for name in block if name not in names] for block in _prefixed(transformers_blocks(text))]
    return own, TextTower(Native(text), nn.Identity(), blocks, own, head_names=names)


def _prefixed(blocks: list[list[str]]) -> list[list[str]]:
    return [[f"native.{name}" for name in block] for block in blocks]


def _nearest(given: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(given, known, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""
