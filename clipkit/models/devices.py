"""Kinds of devices."""

import torch


def is_accelerator(device: torch.device) -> bool:
    """Return whether the device is an accelerator: it computes while the CPU prepares the next inputs."""
    return device.type not in ("cpu", "meta")
