"""Safety checks of weight files before they are opened: complete, inside their folder, and without code."""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit.errors import ModelError, one_line
from clipkit.models.quiet import as_model_error
from clipkit.parsing import parse_json

# transformers' names of the weights; several files have an index with `.index.json` after the name.
_SAFETENSORS = "model.safetensors"
_PICKLE = "pytorch_model.bin"


def check_weights(folder: Path) -> None:
    """Check that the weights in `folder` can be opened safely: safetensors, or pickles that only hold tensors.

    Raises:
        ModelError: weights are missing or incomplete, lie outside of the folder, or would run code.
    """
    for name, check in ((_SAFETENSORS, check_safetensors), (_PICKLE, check_pickle)):
        whole, index = folder / name, folder / f"{name}.index.json"
        if whole.is_file() or index.is_file():
            for file in [whole] if whole.is_file() else _files_of_index(index):
                check(file)
            return
    raise ModelError(f"{folder}: has no weights; it needs {_SAFETENSORS} or {_PICKLE}")


def has_weights(folder: Path) -> bool:
    """Return whether the folder has weight files with transformers' names."""
    names = (_SAFETENSORS, _PICKLE)
    return any((folder / name).is_file() or (folder / f"{name}.index.json").is_file() for name in names)


def check_safetensors(file: Path) -> dict[str, tuple[int, ...]]:
    """Check that a safetensors file is complete. Return the shapes of its tensors.

    Raises:
        ModelError: it is incomplete or invalid.
    """
    from safetensors import safe_open

    incomplete = as_model_error(f"{file}: is not a complete safetensors file", "; download it again")
    with incomplete, safe_open(file, framework="pt") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118


def save_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors of any device and memory layout to a safetensors file."""
    from safetensors.torch import save_file

    save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, file, metadata)


def check_pickle(file: Path) -> None:
    """Check that a PyTorch checkpoint holds only tensors and plain values. No code of the file is run.

    Raises:
        ModelError: it is incomplete, or holds objects that need code to load.
    """
    read_pickle(file, device="meta")


def read_pickle(file: Path, device: str = "cpu") -> object:
    """Read a PyTorch checkpoint that holds only tensors and plain values.

    Raises:
        ModelError: as for `check_pickle`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other programs, which are refused below
            return torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message ends with the advice to open the file anyway.
        if "GLOBAL" in str(error):
            raise ModelError(
                f"{file}: holds objects other than tensors, which need code to load; it was not opened: get the "
                "weights as safetensors from a source you trust"
            ) from None
        raise ModelError(
            f"{file}: is not a PyTorch checkpoint that holds only tensors, so it was not opened; use another file"
        ) from None
    except Exception as error:  # torch.load raises many types
        raise ModelError(f"{file}: cannot be read ({one_line(error)}); download it again") from None


def _files_of_index(index: Path) -> list[Path]:
    try:
        names = set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: is not a valid weight index ({one_line(error)}); download it again") from None
    for name in sorted(names, key=str):
        # Only plain file names: paths may lead out of the folder.
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or "\\" in name:
            raise ModelError(
                f"{index}: refers to {name!r} outside of its folder, so it was not opened; download it again"
            )
        if not (index.parent / name).is_file():
            raise ModelError(f"{index}: refers to {name}, which is missing; download it")
    return [index.parent / name for name in sorted(names)]


def check_loaded(info: Mapping[str, Any], folder: Path, unneeded: tuple[str, ...] = ()) -> None:
    """Check that transformers loaded every weight with the shape required by the configuration.

    Otherwise it silently uses random numbers.

    Args:
        info: from `from_pretrained` with `output_loading_info` and `ignore_mismatched_sizes`.
        folder: with the weights.
        unneeded: prefixes of weights that are not used.

    Raises:
        ModelError: one is missing or has another shape.
    """
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(unneeded))
    if missing:
        raise ModelError(
            f"{folder}: the weight {missing[0]} is missing ({len(missing)} tensors in total); download "
            "the weights again"
        )
    mismatched = sorted(entry for entry in info["mismatched_keys"] if not entry[0].startswith(unneeded))
    if mismatched:
        name, saved, expected = mismatched[0]
        raise ModelError(
            f"{folder}: the weight {name} has shape {tuple(saved)}, but config.json expects {tuple(expected)} "
            f"({len(mismatched)} tensors differ); weights and config.json are of different models: download both again"
        )
