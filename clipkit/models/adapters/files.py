"""Folders with adapters in the layout of PEFT: adapter_config.json and adapter_model.safetensors.

The weights file also contains all other trained parameters, e.g. the logit scale and a new projection, under the
names that the model's library gives them. A third file, clipkit_adapter.json, contains the hash of the frozen weights.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.errors import ModelError, one_line
from clipkit.models.adapters.attach import adapted_layers, is_of_adapter
from clipkit.models.adapters.low_rank import Adapter, LowRank, adapted_weight, row_norms
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.fingerprint import weights_hash
from clipkit.models.weights import check_safetensors, save_tensors
from clipkit.parsing import parse_json
from clipkit.recipe import ModelRecipe

CONFIG, WEIGHTS, IDENTITY = "adapter_config.json", "adapter_model.safetensors", "clipkit_adapter.json"
_PREFIX = "base_model.model."
_A, _B, _MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
_SCALARS = ("logit_scale", "logit_bias")

Load = Callable[[str], DualEncoder]
Compose = Callable[[ModelRecipe], DualEncoder]


def save_adapters(model: DualEncoder, folder: Path, recipe: ModelRecipe) -> None:
    """Write the adapters and all other trained parameters of a model, with the hash of the frozen weights.

    Args:
        model: model with adapters.
        folder: folder to create.
        recipe: model section of the recipe, which names the base model or both towers.
    """
    tensors, ranks, alphas = _adapter_tensors(model)
    others = _others(model)
    (rank, alpha), _ = Counter(zip(ranks.values(), alphas.values(), strict=True)).most_common(1)[0]
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": _located(recipe.name) if recipe.name else None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": max(recipe.image.lora.dropout, recipe.text.lora.dropout),
        "target_modules": sorted(ranks),
        "rank_pattern": {name: each for name, each in ranks.items() if each != rank},
        "alpha_pattern": {name: each for name, each in alphas.items() if each != alpha},
        "use_dora": any(name.endswith(_MAGNITUDE) for name in tensors),
        "bias": "none",
        "inference_mode": True,
    }
    identity: dict[str, Any] = {"version": 1, "sha256": _frozen_hash(model, set(others))}
    if recipe.name is None:
        identity["model"] = recipe.model_dump(mode="json") | {
            side: section.model_dump(mode="json") | {"name": _located(section.name)}
            for side, section in (("image", recipe.image), ("text", recipe.text))
        }
    folder.mkdir(parents=True)
    save_tensors({_PREFIX + name: value for name, value in (tensors | others).items()}, folder / WEIGHTS)
    for file, content in ((CONFIG, config), (IDENTITY, identity)):
        (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def is_adapter_folder(folder: Path) -> bool:
    """Return whether a folder contains adapters."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def load_adapters(folder: Path, name: str, load: Load, compose: Compose) -> DualEncoder:
    """Load a base model, and merge the adapters of a folder into its weights.

    Args:
        folder: folder with adapter_config.json and adapter_model.safetensors, written by clipkit or PEFT.
        name: name of the resulting model, as the user wrote it.
        load: function that loads a base model by its name.
        compose: function that builds a base model of separate towers from the model section of a recipe.

    Raises:
        ModelError: the base model is missing or has changed, or the adapters are damaged or of an unsupported kind.
    """
    from safetensors.torch import load_file

    config, identity = _read(folder / CONFIG), _read(folder / IDENTITY, {})
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{folder / CONFIG}: peft_type {config.get('peft_type')} is not supported; use LORA adapters")
    check_safetensors(folder / WEIGHTS)
    model = _base(folder, config, identity, load, compose)
    tensors = {key.removeprefix(_PREFIX): value for key, value in load_file(folder / WEIGHTS).items()}
    adapters = {key.removesuffix(_A) for key in tensors if key.endswith(_A)}
    others = {key: value for key, value in tensors.items() if ".lora_" not in key}
    parameters = _parameters(model)
    if "sha256" in identity and identity["sha256"] != _frozen_hash(model, set(others)):
        raise ModelError(
            f"{name}: the weights of the base model {model.name} are not the weights that the adapters were trained "
            "on; use the original weights of the base model"
        )
    modules = dict(_root(model).named_modules())
    with torch.no_grad():
        for layer in sorted(adapters):
            _merge(modules.get(layer), layer, tensors, config, folder)
        for key, value in others.items():
            if key == "temperature":  # 1 / scale, which is in the file only for PEFT
                continue
            target = getattr(model, key) if key in _SCALARS else parameters.get(key)
            if target is None or target.numel() != value.numel():
                raise ModelError(
                    f"{folder / WEIGHTS}: the weight {key} does not fit {model.name}; load the adapters with the base "
                    "model that they were trained on"
                )
            target.copy_(value.reshape(target.shape))
    model.name = name
    return model


def _base(
    folder: Path, config: Mapping[str, Any], identity: Mapping[str, Any], load: Load, compose: Compose
) -> DualEncoder:
    """Load the base model of a folder with adapters."""
    if "model" in identity:
        recipe = ModelRecipe(**identity["model"])
        base, file, key = f"{recipe.image.name} + {recipe.text.name}", IDENTITY, "model"
    else:
        base, file, key = str(config.get("base_model_name_or_path")), CONFIG, "base_model_name_or_path"
    try:
        return compose(recipe) if "model" in identity else load(base)
    except ModelError as error:
        raise ModelError(
            f"{folder}: contains only adapters, and the base model {base} cannot be loaded ({error}); if the "
            f"base model is elsewhere, change {key} in {folder / file}"
        ) from None


def _merge(
    module: nn.Module | None, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path
) -> None:
    """Merge the adapter of one layer into the weight of this layer."""
    weight: Tensor | None = getattr(module, "in_proj_weight", getattr(module, "weight", None))
    down, up = tensors[name + _A], tensors.get(name + _B)
    magnitude = tensors.get(name + _MAGNITUDE, tensors.get(f"{name}{_MAGNITUDE}.weight"))
    shape = None if up is None else (len(up), down.shape[-1])
    if up is None or weight is None or shape != weight.shape or (config.get("use_dora") and magnitude is None):
        raise ModelError(
            f"{folder / WEIGHTS}: the adapter of {name} does not fit the base model; use the base model that "
            "the adapters were trained on"
        )
    rank = down.shape[0]
    alpha = _by_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", 8))
    scaling = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    weight.copy_(adapted_weight(weight, down.to(weight), up.to(weight), scaling, magnitude))


def _by_pattern(pattern: Mapping[str, float] | None, name: str, default: float) -> float:
    """Return the value that a PEFT pattern, e.g. alpha_pattern, gives to a module.

    `pattern` maps a regular expression for the end of a module name to a value. `default` is used if none matches.
    """
    return next((value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", name)), default)


def _adapter_tensors(model: DualEncoder) -> tuple[dict[str, Tensor], dict[str, int], dict[str, float]]:
    """Return the adapter tensors by their PEFT names, and the rank and alpha of each layer."""
    names = {module: name for name, module in _root(model).named_modules()}
    layers = [(names[layer], weight, adapter) for layer, weight, adapter in adapted_layers(model)]
    has_magnitudes = any(part.magnitude is not None for *_, adapter in layers for part in adapter.low_ranks)
    tensors: dict[str, Tensor] = {}
    ranks, alphas = {}, {}
    for name, weight, adapter in layers:
        down, up, scaling = _whole(adapter, weight.detach())
        tensors |= {name + _A: down, name + _B: up}
        if has_magnitudes:  # PEFT then needs magnitudes of all layers, also of those without DoRA
            tensors[name + _MAGNITUDE] = torch.cat([_magnitudes(*each) for each in adapter.slices(weight)])
        ranks[name], alphas[name] = len(down), scaling * len(down)
    return tensors, ranks, alphas


def _whole(adapter: Adapter, weight: Tensor) -> tuple[Tensor, Tensor, float]:
    """Combine the adapters of a fused weight, e.g. of q, k and v, into one (A, B, scaling).

    The new A concatenates all A matrices. The new B is block diagonal and contains all B matrices.
    """
    parts = adapter.low_ranks
    up = weight.new_zeros(len(weight), sum(part.lora_B.shape[1] for part in parts))
    row = column = 0
    for part, rows in adapter.slices(weight):
        if part is not None:
            rank = part.lora_B.shape[1]
            up[row : row + len(rows), column : column + rank] = part.lora_B.detach()
            column += rank
        row += len(rows)
    return torch.cat([part.lora_A.detach() for part in parts]), up, parts[0].scaling


@torch.no_grad()
def _magnitudes(part: LowRank | None, rows: Tensor) -> Tensor:
    """Return the DoRA magnitudes of one slice of a weight, e.g. of the rows of q in a fused weight.

    Without a DoRA adapter, these are the norms of the rows, with which DoRA changes nothing.
    """
    if part is not None and part.magnitude is not None:
        return part.magnitude.detach()
    return row_norms(rows if part is None else part(rows))


def _others(model: DualEncoder) -> dict[str, Tensor]:
    """Return the logit scale, the logit bias and all trained parameters except adapters.

    The keys are the parameter names in the model's library.
    """
    trained = {name: each.detach() for name, each in _parameters(model).items() if each.requires_grad}
    native = dict(_root(model).named_parameters())
    for name in _SCALARS:
        if (value := getattr(model, name)) is not None:
            trained[name] = value.detach().reshape(native[name].shape if name in native else value.shape)
    if "temperature" in native:
        trained["temperature"] = torch.exp(-model.logit_scale.detach()).reshape(native["temperature"].shape)
    return trained


def _parameters(model: DualEncoder) -> dict[str, nn.Parameter]:
    """Return all parameters of a model except adapters and projection heads for views.

    The keys are the parameter names in the model's library, or in the dual encoder if its towers are separate models.
    """
    native = {id(parameter): name for name, parameter in _root(model).named_parameters()}
    return {
        native.get(id(parameter), name): parameter
        for name, parameter in model.named_parameters()
        if not is_of_adapter(name) and not name.startswith("view_heads.")
    }


def _frozen_hash(model: DualEncoder, trained: set[str]) -> str:
    kept = {*trained, *_SCALARS}
    return weights_hash((name, each) for name, each in _parameters(model).items() if name not in kept)


def _root(model: DualEncoder) -> nn.Module:
    """Return the transformers or open_clip model inside a dual encoder, or the dual encoder if there is none."""
    return getattr(model.backend, "native", model)


def _located(name: str | None) -> str | None:
    """Return a model name with absolute local paths, so that the name is valid in every working directory."""
    path, question_mark, option = (name or "").partition("?weights=")
    if question_mark:
        return f"{path}?weights={Path(option).expanduser().resolve()}"
    return str(Path(name).expanduser().resolve()) if name and Path(name).expanduser().is_dir() else name


def _read(file: Path, default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    if default is not None and not file.is_file():
        return default
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read ({one_line(error)}); save the adapters again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{file}: is not a JSON object; save the adapters again")
    return content
