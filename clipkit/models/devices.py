"""Checks of devices and tensors."""

import torch


def is_accelerator(device: torch.device) -> bool:
    """Return whether a device is an accelerator such as a GPU."""
    return device.type not in ("cpu", "meta")


def is_shard(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is a DTensor, which FSDP2 distributes over processes."""
    return hasattr(tensor, "device_mesh")  # importing DTensor takes half a second
