"""Loading of open_clip models: pretrained or with random weights, and checkpoints of open_clip's trainer."""

import copy
import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clipkit.errors import ModelError, one_line
from clipkit.models.absent import absent_image_tower, absent_text_tower
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.fit import check_fit
from clipkit.models.hub import OPEN_CLIP_WEIGHTS
from clipkit.models.open_clip_towers import image_tower, text_tower
from clipkit.models.open_clip_weights import Weights, weights_of_tag
from clipkit.models.projections import Projection
from clipkit.models.quiet import as_model_error, without_root_messages
from clipkit.models.tokenizer import refuse_code
from clipkit.models.weights import save_tensors
from clipkit.parsing import parse_json

log = logging.getLogger("clipkit")

CONFIG_FILE = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"

# Parts of open_clip's configuration: one that a tower has, and the smallest one.
_CONFIGS = {"image": "vision_cfg", "text": "text_cfg"}
_LAYER = {"width": 8, "layers": 1, "heads": 1, "context_length": 1}
_SMALL = {
    "vision_cfg": {"width": 8, "layers": 1, "head_width": 8, "image_size": 8, "patch_size": 8},
    "text_cfg": _LAYER | {"vocab_size": 1},
    "multimodal_cfg": _LAYER,
}

_TOKENIZER_OPTIONS = {"clean", "strip_sep_token", "language"}


class FromOpenClip:
    """Backend that saves open_clip models, from the original open_clip model and its configuration.

    The towers share the parameters of the original model.
    """

    library = "open_clip"
    class_name = None

    def __init__(self, native: Any, config: dict[str, Any], tokenizer: Any) -> None:
        self.native = native
        self.config = config
        self.tokenizer = tokenizer

    def tensors(self, model: DualEncoder) -> dict[str, Tensor]:
        """Return all weights under open_clip's names, including those that were moved into the towers."""
        tensors: dict[str, Tensor] = self.native.state_dict()
        if isinstance(model.image.head, Projection):
            tensors["visual.proj"] = model.image.head.weight.detach()
        tensors["logit_scale"] = model.logit_scale.detach().reshape(self.native.logit_scale.shape)
        if model.logit_bias is not None:
            tensors["logit_bias"] = model.logit_bias.detach().reshape(self.native.logit_bias.shape)
        return tensors

    def save(self, model: DualEncoder, folder: Path) -> None:
        """Write a folder that `open_clip.create_model_from_pretrained("local-dir:FOLDER")` can load."""
        from open_clip.push_to_hf_hub import save_config_for_hf

        save_tensors(self.tensors(model), folder / WEIGHTS)
        save_config_for_hf(self.native, folder / CONFIG_FILE, self.config)
        self.tokenizer.save(folder)


def load_open_clip(name: str, only: str | None = None) -> DualEncoder:
    """Load an open_clip model by its name, in evaluation mode.

    Args:
        name: `open_clip:ARCH/TAG`, `open_clip:ARCH` (random weights) or `open_clip:ARCH?weights=FILE`.
        only: `image` or `text` loads only this tower, if the weight file permits it; None: both towers.

    Raises:
        ModelError: the architecture or tag does not exist, the weights do not fit the architecture, or they need
            another activation function than the architecture has.
    """
    import open_clip

    rest, question_mark, option = name.removeprefix("open_clip:").partition("?")
    architecture, slash, tag = rest.partition("/")
    file = option.removeprefix("weights=")
    if (question_mark and (slash or not file or file == option)) or (slash and not tag):
        raise ModelError(
            f"{name}: is not a valid name; give open_clip:ARCH/TAG, open_clip:ARCH or open_clip:ARCH?weights=FILE"
        )
    config = open_clip.get_model_config(architecture)
    if config is None:
        near = _nearest(architecture, open_clip.list_models())
        raise ModelError(
            f"{name}: open_clip has no architecture {architecture}{near}; `clipkit models` lists all architectures"
        )
    if tag:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if tag not in tags:
            raise ModelError(
                f"{name}: {architecture} has no pretrained tag {tag}{_nearest(tag, tags)}; available tags: "
                f"{', '.join(tags) or 'none'}"
            )
        _match_activation(name, architecture, tag, config)
    weights = Weights(Path(file).expanduser(), name) if file else None
    if tag and only:
        weights = weights_of_tag(architecture, tag, only, name)
    native = _create(name, architecture, tag or None, config, weights, only)
    tokenizer = None if only == "image" else _tokenizer_of(architecture, name, config)
    return _dual_encoder(native, config, tokenizer, f"open_clip:{architecture}", name, only)


def load_open_clip_folder(folder: Path, name: str, only: str | None = None) -> DualEncoder:
    """Load a folder with open_clip_config.json, which open_clip or clipkit wrote.

    Args:
        folder: the folder.
        name: the model's name as the user gave it.
        only: `image` or `text` loads only this tower; None: both towers.

    Raises:
        ModelError: a file is missing or invalid, or does not fit the model.
    """
    try:
        config = parse_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))["model_cfg"]
        dict(config["text_cfg"], **config["vision_cfg"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder / CONFIG_FILE}: is not an open_clip configuration ({one_line(error)}); use the "
            "configuration that was saved with the weights"
        ) from None
    files = [folder / file for file in OPEN_CLIP_WEIGHTS if (folder / file).is_file()]
    if not files:
        raise ModelError(f"{folder}: has no weights; the folder needs {WEIGHTS} or open_clip_pytorch_model.bin")
    refuse_code(folder / "tokenizer_config.json")
    native = _create(name, f"local-dir:{folder}", None, config, Weights(files[0], name), only)
    tokenizer = None if only == "image" else _tokenizer_of(f"local-dir:{folder}", name, config)
    return _dual_encoder(native, config, tokenizer, None, name, only)


def _create(
    name: str, architecture: str, tag: str | None, config: dict[str, Any], weights: Weights | None, only: str | None
) -> Any:
    """Build the open_clip model, and load its weights.

    Settings that the model needs are added to `config`. If only one tower is loaded, the other tower and CoCa's decoder
    are tiny, and their weights are not read. But both towers are loaded if the weights are random, or have the names of
    another library.
    """
    import open_clip

    text = config["text_cfg"]
    if text.get("no_causal_mask") and not config.get("custom_text"):
        # CLIPA's text tower is a separate module only in the custom-text class; open_clip converts the weights.
        config["custom_text"] = True
    if weights is not None and "logit_bias" in weights.shapes:
        config.setdefault("init_logit_bias", -10.0)  # comes from --siglip of its trainer; no architecture file has it
    options = {"init_logit_bias": config["init_logit_bias"]} if "init_logit_bias" in config else {}
    alone = only if only and weights is not None and weights.has_tower(only) else None
    if alone is not None:
        options |= {part: small for part, small in _SMALL.items() if part in config and part != _CONFIGS[alone]}
    # open_clip warns about random weights, which are replaced below.
    with (
        as_model_error(f"{name}: open_clip cannot build the model", "; check the configuration of the model"),
        without_root_messages(),
    ):
        if text.get("hf_model_name") and only != "image":
            from transformers import AutoConfig

            AutoConfig.from_pretrained(text["hf_model_name"], trust_remote_code=False)  # otherwise it asks the user
        native = open_clip.create_model(
            architecture,
            pretrained=tag,
            load_weights=tag is not None and alone is None,
            force_quick_gelu=bool(config.get("quick_gelu")),
            force_custom_text=bool(config.get("custom_text") or alone),
            pretrained_text=False,
            **options,
        ).eval()
    if weights is not None and alone is not None:
        weights.load_tower(native, alone)
    elif weights is not None:
        weights.load(native)
    return native


def _tokenizer_of(architecture: str, name: str, config: dict[str, Any]) -> Any:
    import open_clip

    options = config["text_cfg"].get("tokenizer_kwargs", {})
    if unknown := sorted(set(options) - _TOKENIZER_OPTIONS):
        raise ModelError(
            f"{name}: the tokenizer option {unknown[0]} is not supported; remove {unknown[0]} from tokenizer_kwargs"
        )
    from_hub = {"trust_remote_code": False} if config["text_cfg"].get("hf_tokenizer_name") else {}
    with (
        as_model_error(f"{name}: its tokenizer cannot be loaded", "; add the files of the tokenizer"),
        without_root_messages(),
    ):
        return open_clip.get_tokenizer(architecture, **from_hub)


def _match_activation(name: str, architecture: str, tag: str, config: dict[str, Any]) -> None:
    """Set the activation function in `config` to the one that the weights were trained with.

    Raises:
        ModelError: the name of the architecture requests another activation function.
    """
    import open_clip

    trained_with_quick = bool(open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu", False))
    if trained_with_quick and not config.get("quick_gelu", False):
        config["quick_gelu"] = True
        log.info("%s: uses QuickGELU, because the weights were trained with QuickGELU", name)
    plain = architecture.removesuffix("-quickgelu")
    quick_by_name = plain != architecture and plain in open_clip.list_models()
    if config.get("quick_gelu", False) and not trained_with_quick and quick_by_name:
        raise ModelError(
            f"{name}: {architecture} uses QuickGELU, but the weights {tag} were trained with GELU; use "
            f"open_clip:{plain}/{tag}"
        )


def _dual_encoder(
    native: Any, config: Any, tokenizer: Any, source: str | None, name: str, only: str | None
) -> DualEncoder:
    config = copy.deepcopy(config)
    backend_tokenizer, text = (None, None) if only == "image" else text_tower(native, tokenizer, source)
    image = None if only == "text" else image_tower(native.visual, name)
    check_fit(image, text, name)
    image, text = image or absent_image_tower(), text or absent_text_tower()
    scale = (
        native.logit_scale if native.logit_scale.ndim == 0 else nn.Parameter(native.logit_scale.detach().reshape(()))
    )
    bias = native.logit_bias
    if bias is not None and bias.ndim:
        bias = nn.Parameter(bias.detach().reshape(()))
    return DualEncoder(image, text, scale, bias, FromOpenClip(native, config, backend_tokenizer), name)


def _nearest(given: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(given, known, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""
