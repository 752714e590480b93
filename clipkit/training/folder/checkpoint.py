"""Checkpoints: safetensors files, a JSON file and hashes. A checkpoint is written completely or not at all."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from clipkit.files import as_os_errors, to_disk

SUMS = "SHA256SUMS"
_STATE = "state.json"

Tensors = Mapping[str, Mapping[str, Tensor]]
"""Tensors, by the name of their file (model, optimizer, average), then by their name in this file."""


def write_checkpoint(folder: Path, step: int, tensors: Tensors, state: Mapping[str, Any]) -> Path:
    """Write a checkpoint to a temporary folder, flush it to disk, and rename it to `folder/step-NNNNNN`.

    Args:
        tensors: the tensors of each file.
        state: content of the JSON file.

    Returns:
        The folder of this checkpoint.

    Raises:
        OSError: the checkpoint could not be written; its incomplete files were removed.
    """
    final = checkpoint_of(folder, step)
    aside = folder / f".writing-{step:06d}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        with as_os_errors():
            for name, values in tensors.items():
                save_file({key: value.contiguous() for key, value in values.items()}, aside / f"{name}.safetensors")
        (aside / _STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        (aside / SUMS).write_bytes(_sums(aside))
        for file in aside.iterdir():
            to_disk(file)
        to_disk(aside)
        remove_checkpoint(final)
        aside.rename(final)
        to_disk(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return final


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of all checkpoints, ascending."""
    names = [path.name.removeprefix("step-") for path in folder.glob("step-*")]
    return sorted(int(name) for name in names if name.isdecimal())


def checkpoint_of(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return folder / f"step-{step:06d}"


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint atomically: if the process is killed, the checkpoint is either complete or removed."""
    leaving = checkpoint.with_name(f".removing-{checkpoint.name}")
    shutil.rmtree(leaving, ignore_errors=True)
    if checkpoint.exists():
        checkpoint.rename(leaving)
        shutil.rmtree(leaving, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove incomplete checkpoints that a killed run was writing or removing."""
    for path in [*folder.glob(".writing-*"), *folder.glob(".removing-*")]:
        shutil.rmtree(path, ignore_errors=True)


def damage(checkpoint: Path) -> str | None:
    """Describe the damage to a checkpoint: a missing, truncated or changed file.

    The result is None if the checkpoint is intact.
    """
    try:
        recorded = (checkpoint / SUMS).read_bytes()
        if recorded == _sums(checkpoint):
            return None
        for line in recorded.decode("ascii").splitlines():
            name = line[66:]
            if (checkpoint / name).name == name and _sum_line(checkpoint / name).decode() != line + "\n":
                return f"{name} has changed since it was written"
    except (OSError, ValueError) as error:
        return f"{SUMS}, or a file listed there, is missing or unreadable ({type(error).__name__})"
    return f"{SUMS} has changed since it was written"


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read the JSON content of an intact checkpoint."""
    state: dict[str, Any] = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    return state


def read_tensors(checkpoint: Path, name: str) -> dict[str, Tensor]:
    """Read the tensors of one file of an intact checkpoint."""
    return load_file(checkpoint / f"{name}.safetensors")


def _sums(folder: Path) -> bytes:
    """Return the content of SHA256SUMS: the hashes of the files, in the format of `sha256sum *`."""
    return b"".join(_sum_line(file) for file in sorted(folder.iterdir()) if file.name != SUMS)


def _sum_line(file: Path) -> bytes:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256")
    return f"{digest.hexdigest()}  {file.name}\n".encode()
