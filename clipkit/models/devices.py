"""Checks whether a device is an accelerator, and whether a tensor is distributed over processes."""

import torch


def is_accelerator(device: torch.device) -> bool:
    """Return whether the device is an accelerator, which computes while the CPU prepares the next inputs."""
    return device.type not in ("cpu", "meta")


def is_shard(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is distributed over processes by FSDP2 (a DTensor, whose import takes half a second)."""
    return hasattr(tensor, "device_mesh")
