"""Weight files, looked at before anything opens them: whole, inside of their folder, and without code."""

import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clipkit.errors import ModelError, one_line


def check_weights(folder: Path, stem: str = "model", older: str = "pytorch_model") -> None:
    """See that the weights in `folder` can be opened safely: safetensors, or else pickles that hold tensors alone.

    Args:
        folder: the model's.
        stem: of the safetensors file, or of its index where there are several.
        older: of the pickle, likewise.

    Raises:
        ModelError: there are none, one is cut short, points out of the folder, or would run code; names the file.
    """
    for suffix, name in (("safetensors", stem), ("bin", older)):
        whole, index = folder / f"{name}.{suffix}", folder / f"{name}.{suffix}.index.json"
        if whole.is_file():
            files = [whole]
        elif index.is_file():
            files = _files_of_index(index)
        else:
            continue
        for file in files:
            check_safetensors(file) if suffix == "safetensors" else check_pickle(file)
        return
    raise ModelError(f"{folder}: has no weights; it needs {stem}.safetensors or {older}.bin")


def has_weights(folder: Path) -> bool:
    """Whether there are weights by the names that transformers gives them."""
    names = ("model.safetensors", "pytorch_model.bin")
    return any((folder / name).is_file() or (folder / f"{name}.index.json").is_file() for name in names)


def check_safetensors(file: Path) -> dict[str, tuple[int, ...]]:
    """See that a safetensors file is whole. Gives the shapes of its tensors.

    Raises:
        ModelError: it is not.
    """
    from safetensors import safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors has an exception of its own
        raise ModelError(f"{file}: is no whole safetensors file ({one_line(error)}); fetch it again") from None


def check_pickle(file: Path) -> None:
    """See that a file of `torch.save` holds tensors and plain values, by reading it as nothing else.

    Raises:
        ModelError: it is cut short, or holds something that only running code could bring back; none of it was run.
    """
    read_pickle(file, device="meta")


def read_pickle(file: Path, device: str = "cpu") -> object:
    """What `torch.save` wrote, tensors and plain values only.

    Raises:
        ModelError: as for `check_pickle`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle that is none of torch's, which is refused anyway
            return torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own words end with the advice to open it all the same.
        if "GLOBAL" in str(error):
            raise ModelError(
                f"{file}: holds more than tensors and would have to run code to open; it was not opened: get the "
                "weights as safetensors from someone you trust"
            ) from None
        raise ModelError(f"{file}: is no file of torch.save that holds tensors alone; it was not opened") from None
    except Exception as error:  # torch raises whatever its readers raise
        raise ModelError(f"{file}: cannot be read ({one_line(error)}); fetch it again") from None


def _files_of_index(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: is no index of weights ({one_line(error)}); fetch it again") from None
    for name in sorted(names, key=str):
        # A name and nothing else: whatever leads out of the folder is not the model's.
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or "\\" in name:
            raise ModelError(f"{index}: names {name!r}, which is not a file of its folder; it was not opened")
        if not (index.parent / name).is_file():
            raise ModelError(f"{index}: names {name}, which is not there; fetch it")
    return [index.parent / name for name in sorted(names)]


def check_loaded(info: Mapping[str, Any], folder: Path, unneeded: tuple[str, ...] = ()) -> None:
    """See that transformers found every weight, in the shape that the configuration gives it.

    Left alone it goes on with random numbers in place of those it did not find.

    Args:
        info: what `from_pretrained` gives with `output_loading_info` and `ignore_mismatched_sizes`.
        folder: where the weights are.
        unneeded: how the names begin of those that nobody uses.

    Raises:
        ModelError: one is missing or has another shape.
    """
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(unneeded))
    if missing:
        raise ModelError(f"{folder}: its weights lack {missing[0]} ({len(missing)} tensors in all); fetch them again")
    others = sorted(own for own in info["mismatched_keys"] if not own[0].startswith(unneeded))
    if others:
        name, saved, wanted = others[0]
        raise ModelError(
            f"{folder}: its weights hold {name} as {tuple(saved)}, and config.json asks for {tuple(wanted)} "
            f"({len(others)} tensors in all); they do not belong together: fetch both again"
        )
