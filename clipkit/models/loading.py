"""Loading of a dual encoder by its name."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipkit.errors import ModelError, one_line
from clipkit.models.adapters.files import is_adapter_folder, load_adapters
from clipkit.models.composed import LAYOUT_FILE, compose, load_composed
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.families import FAMILIES
from clipkit.models.from_modules import LAYOUT as MODULES
from clipkit.models.from_modules import PreprocessFunction, check_parts, load_weights
from clipkit.models.from_open_clip import CONFIG_FILE, load_open_clip, load_open_clip_folder
from clipkit.models.from_transformers import load_transformers
from clipkit.models.hub import local_folder
from clipkit.models.one_tower import check_side, keep_only
from clipkit.models.view_heads import load_view_heads
from clipkit.models.weights import has_weights
from clipkit.recipe import Side
from clipkit.run_files import RunFiles, read_object

_DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}


def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = torch.float32,
    only: Side | None = None,
    image_tower: nn.Module | None = None,
    text_tower: nn.Module | None = None,
    preprocess: PreprocessFunction | None = None,
    tokenizer: Callable[[list[str]], Any] | None = None,
) -> DualEncoder:
    """Load a dual encoder in evaluation mode.

    Args:
        name: one of these names:

            - a Hub repository: `org/name` or `org/name@revision`
            - an open_clip model: `open_clip:ARCH/TAG`, `open_clip:ARCH` (random weights) or
              `open_clip:ARCH?weights=FILE`
            - a folder in the layout of transformers, open_clip or clipkit
            - a folder with adapters in PEFT's layout
            - the folder of a clipkit run
        device: device of the model. Default: the GPU (CUDA, MPS, …) if there is one, otherwise the CPU.
        dtype: type of the weights, as a torch type, `fp32`, `bf16` or `fp16`. `auto`: float32 weights, with bfloat16
            autocast when a CUDA GPU encodes, which is several times as fast. Features are always float32.
        only: `image` or `text` loads only this tower, which is faster and needs less memory. The features are the same.
            But the model encodes only images or only texts, and cannot be saved.
        image_tower, text_tower, preprocess, tokenizer: parts of a model that `DualEncoder.from_modules` built. Such a
            model requires them, because its folder contains only the weights. Other models do not accept them.

    Raises:
        ModelError: the model is missing, invalid or unsupported, the device is unavailable, or the type is unknown.

    Example:
        >>> model = load("openai/clip-vit-base-patch32")   # doctest: +SKIP
    """
    weights = torch.float32 if dtype == "auto" else _dtype(dtype)
    target = _device(device)
    check_side(only)
    parts = {"image_tower": image_tower, "text_tower": text_tower, "preprocess": preprocess, "tokenizer": tokenizer}
    model, folder = _open(str(name), parts, only)
    if only is not None:
        model = keep_only(model, only)
    elif folder is not None:
        model.view_heads = load_view_heads(folder)
    if dtype == "auto" and _has_bfloat16(target):
        for tower in model.sides.values():
            tower.autocast = torch.bfloat16
    return model.to(device=target, dtype=weights).eval()


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    known = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(known, torch.dtype) or not known.is_floating_point:
        raise ModelError(
            f"dtype {dtype} is not supported; give auto, {', '.join(_DTYPES)} or the corresponding torch type"
        )
    return known


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        # Only an allocation shows that a device exists and works.
        return torch.empty(1, device=device).device
    except Exception as error:  # torch raises AssertionError, RuntimeError and others
        reason = one_line(error).partition(". ")[0]
        raise ModelError(f"device {device} is not available ({reason}); give cpu, or leave out device") from None


def _has_bfloat16(device: torch.device) -> bool:
    """Return whether the device is a CUDA GPU that supports bfloat16 in hardware."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _open(
    name: str, parts: Mapping[str, Any], only: Side | None = None, above: tuple[str, ...] = ()
) -> tuple[DualEncoder, Path | None]:
    """Return a model, and its folder if it has one.

    Args:
        name: as for `load`.
        parts: the arguments of `load` that `DualEncoder.from_modules` needs, by name.
        only: the only tower that is needed.
        above: adapter folders that load this model as their base model. They must not include `name`.
    """
    folder = None if name.startswith("open_clip:") else _folder(name)
    if folder is not None:
        layout = read_object(folder / LAYOUT_FILE)
        if layout.get("layout") == MODULES:
            check_parts(name, layout, parts)
            bias = 0.0 if layout.get("bias") else None
            model = DualEncoder.from_modules(**parts, embed_dim=layout.get("embed_dim"), bias=bias)
            load_weights(model, folder, name)
            model.name = name
            for tower in model.sides.values():
                tower.head_is_new = False
            return model, folder
    given = [part for part, value in parts.items() if value is not None]
    if given:
        raise ModelError(
            f"{name}: was not built from modules, so {given[0]} does not apply; leave out {given[0]}, or "
            "build the model with DualEncoder.from_modules"
        )
    if folder is None:
        return load_open_clip(name, only), None
    if is_adapter_folder(folder) and not has_weights(folder):
        if name in above:
            raise ModelError(
                f"{name}: adapter_config.json gives the folder of the adapters as the base model; set "
                "base_model_name_or_path to the model that the adapters were trained on"
            )
        # The whole base model is read: the hash that the adapters record covers both towers.
        return load_adapters(folder, name, lambda base: _open(base, {}, above=(*above, name))[0], compose), None
    return _open_folder(folder, name, only), folder


def _folder(name: str) -> Path:
    """Return the model folder of a folder, a run or a Hub repository."""
    folder = local_folder(name, FAMILIES)
    run = RunFiles(folder)
    if run.is_run:
        if not run.model.is_dir():
            raise ModelError(f"{name}: this run has not saved a model yet; finish the run with clipkit train --resume")
        folder = run.model
    return folder


def _open_folder(folder: Path, name: str, only: Side | None) -> DualEncoder:
    if (folder / LAYOUT_FILE).is_file():
        return load_composed(folder, name, only)
    model_type = read_object(folder / "config.json").get("model_type")
    # A repository with both layouts holds the same model twice; transformers' layout also contains its class.
    if (folder / CONFIG_FILE).is_file() and not (str(model_type) in FAMILIES and has_weights(folder)):
        return load_open_clip_folder(folder, name, only)
    if model_type is None:
        raise ModelError(
            f"{name}: contains no supported model; the folder needs {LAYOUT_FILE} (clipkit), {CONFIG_FILE} (open_clip) "
            "or config.json (transformers)"
        )
    return load_transformers(folder, name, str(model_type), only)
