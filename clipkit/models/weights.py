"""Safety checks of weight files before they are opened.

A file must be complete, be inside its folder, and contain no code.
"""

import logging
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from clipkit.errors import ModelError, one_line
from clipkit.models.quiet import as_model_error
from clipkit.models.wrappers import check_merged, unknown_prefix, warn_unused
from clipkit.parsing import parse_json

log = logging.getLogger("clipkit")

# Names of transformers' weight files; weights in several files have an index file NAME.index.json.
_SAFETENSORS = "model.safetensors"
_PICKLE = "pytorch_model.bin"
_POINTER, _LARGEST_POINTER = b"version https://git-lfs", 1024


def check_weights(folder: Path) -> list[str]:
    """Check that the weights in `folder` can be opened safely.

    They must be safetensors files, or pickles that contain only tensors.

    Returns:
        The names of the tensors.

    Raises:
        ModelError: weights are missing or incomplete, are outside of the folder, or would run code.
    """
    adapters = (folder / "adapter_config.json").is_file()
    for name, check in ((_SAFETENSORS, check_safetensors), (_PICKLE, check_pickle)):
        whole, index = folder / name, folder / f"{name}.index.json"
        if whole.is_file() or index.is_file():
            names: list[str] = []
            for file in [whole] if whole.is_file() else _files_of_index(index):
                names += check(file)
                check_merged(names, file)
            if adapters:
                log.warning(
                    "%s: its adapters (adapter_config.json) are not applied; merge the adapters into the model", folder
                )
            return names
    if adapters:
        raise ModelError(
            f"{folder}: contains only adapters, without the weights of the model; merge the adapters into the "
            "model with PEFT's merge_and_unload(), and save the model"
        )
    raise ModelError(f"{folder}: has no weights; the folder needs the file {_SAFETENSORS} or {_PICKLE}")


def has_weights(folder: Path) -> bool:
    """Return whether the folder has weight files with transformers' names."""
    names = (_SAFETENSORS, _PICKLE)
    return any((folder / name).is_file() or (folder / f"{name}.index.json").is_file() for name in names)


def check_safetensors(file: Path) -> dict[str, tuple[int, ...]]:
    """Check that a safetensors file is complete, and return the shapes of its tensors by name.

    Raises:
        ModelError: the file is incomplete or invalid.
    """
    from safetensors import safe_open

    incomplete = as_model_error(f"{file}: is not a complete safetensors file", "; save or download the file again")
    refuse_pointer(file)
    with incomplete, safe_open(file, framework="pt") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118


def save_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors of any device and memory layout to a safetensors file."""
    from safetensors.torch import save_file

    save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, file, metadata)


def refuse_pointer(file: Path) -> None:
    """Raise ModelError for a Git LFS pointer, the small text file that Git stores instead of the weights."""
    if file.stat().st_size < _LARGEST_POINTER and file.read_bytes().startswith(_POINTER):
        raise ModelError(
            f"{file}: is a pointer of git-lfs without the weights; run `git lfs pull` in the folder of the file"
        )


def check_pickle(file: Path) -> list[str]:
    """Check that a PyTorch checkpoint contains only tensors and plain values, without running code of the file.

    Returns:
        The names of its tensors.

    Raises:
        ModelError: the file is incomplete, or contains objects that need code to load.
    """
    content = read_pickle(file, device="meta")
    parts = {str(name): part for name, part in content.items()} if isinstance(content, Mapping) else {}
    if not any(isinstance(part, Tensor) for part in parts.values()):
        found = f" (it has {', '.join(list(parts)[:5])})" if parts else ""
        raise ModelError(f"{file}: is not a state_dict{found}; save only model.state_dict(), or use save_pretrained")
    return list(parts)


def read_pickle(file: Path, device: str = "cpu") -> object:
    """Read a PyTorch checkpoint that contains only tensors and plain values.

    Raises:
        ModelError: the file is incomplete, or contains objects that need code to load.
    """
    refuse_pointer(file)
    if _is_torch_script(file):
        raise ModelError(
            f"{file}: is a TorchScript archive, which contains code that clipkit never runs; for OpenAI's CLIP, use "
            "open_clip:ARCH/openai or a repository such as openai/clip-vit-base-patch32; for another file that you "
            "trust, save torch.jit.load(file).state_dict() with torch.save"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about pickles of other programs, which are refused below
            return torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        # Torch's message is not shown: it advises to open the file anyway.
        if "GLOBAL" in str(error):
            raise ModelError(
                f"{file}: contains objects other than tensors, which need code to load, so the file was not opened; "
                "get the weights as safetensors from a source that you trust"
            ) from None
        raise ModelError(
            f"{file}: is not a PyTorch checkpoint that contains only tensors, so the file was not opened; use another "
            "file"
        ) from None
    except Exception as error:  # torch.load raises many types
        raise ModelError(f"{file}: cannot be read ({one_line(error)}); save or download the file again") from None


def _is_torch_script(file: Path) -> bool:
    """Return whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(PurePosixPath(name).name == "constants.pkl" for name in archive.namelist())


def _files_of_index(index: Path) -> list[Path]:
    try:
        names = set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: is not a valid weight index ({one_line(error)}); download the file again") from None
    for name in sorted(names, key=str):
        # Only plain file names: paths may lead out of the folder.
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or "\\" in name:
            raise ModelError(
                f"{index}: refers to {name!r} outside of its folder, so the weights were not opened; get the "
                "model from a source that you trust"
            )
        if not (index.parent / name).is_file():
            raise ModelError(f"{index}: refers to {name}, which is missing; download {name}")
    return [index.parent / name for name in sorted(names)]


def check_loaded(info: Mapping[str, Any], folder: Path, unneeded: tuple[str, ...] = ()) -> None:
    """Check that transformers loaded every weight, with the shape that the configuration requires.

    For a missing weight, transformers would use random numbers without an error.

    Args:
        info: loading info of `from_pretrained`, called with `output_loading_info` and `ignore_mismatched_sizes`.
        folder: folder with the weights.
        unneeded: prefixes of the names of weights that are not used and not checked.

    Raises:
        ModelError: a weight is missing or has a different shape.
    """
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(unneeded))
    if missing and (prefix := unknown_prefix(missing, info["unexpected_keys"])) is not None:
        raise ModelError(
            f"{folder}: the names of the weights begin with {prefix!r}, for example {prefix}{missing[0]}; save the "
            "state_dict of the model itself, not of an object that contains the model"
        )
    if missing:
        raise ModelError(
            f"{folder}: the weight {missing[0]} is missing ({len(missing)} tensors in total); use the weights that "
            "belong to config.json"
        )
    mismatched = sorted(entry for entry in info["mismatched_keys"] if not entry[0].startswith(unneeded))
    if mismatched:
        name, saved, expected = mismatched[0]
        raise ModelError(
            f"{folder}: the weight {name} has shape {tuple(saved)}, but config.json expects {tuple(expected)} "
            f"({len(mismatched)} tensors differ); use weights and config.json of the same model"
        )
    warn_unused((key for key in info["unexpected_keys"] if not key.startswith(unneeded)), folder)
