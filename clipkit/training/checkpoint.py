"""Checkpoints: safetensors and JSON, complete or absent."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clipkit.errors import OutputError


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
) -> None:
    """Write `folder/step-NNNNNN` aside and rename it, then drop all but the `keep` newest."""
    final = folder / f"step-{step:06d}"
    aside = folder / f".writing-{step:06d}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(_learned(model), aside / "model.safetensors")
    save_file(_flat(optimizer), aside / "optimizer.safetensors")
    (aside / "state.json").write_text(json.dumps(state | {"step": step}) + "\n", encoding="utf-8")
    for file in aside.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put weights and optimiser back as they were, and return the state that was saved beside them."""
    try:
        learned = load_file(folder / "model.safetensors")
        flat = load_file(folder / "optimizer.safetensors")
        state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        missing = [name for name in _learned(model) if name not in learned]
        if missing:
            raise ValueError(f"{missing[0]} is not in it")
        model.load_state_dict(learned, strict=False)
    except Exception as error:  # safetensors has an exception of its own
        raise OutputError(
            f"{folder}: cannot be resumed from ({error}); remove it to go on from the one before"
        ) from None
    indices: dict[int, dict[str, Tensor]] = {}
    for name, value in flat.items():
        index, _, key = name.partition(".")
        indices.setdefault(int(index), {})[key] = value
    current = optimizer.state_dict()
    optimizer.load_state_dict({"state": indices, "param_groups": current["param_groups"]})
    return state


def _learned(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that learn, and buffers, which may change as BatchNorm's do."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value.contiguous() for name, value in model.state_dict().items() if name not in frozen}


def _flat(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value.contiguous() for index, own in state.items() for key, value in own.items()}
