"""Kinds of devices."""

import torch


def is_accelerator(device: torch.device) -> bool:
    """Return whether the device works while this process prepares its next inputs."""
    return device.type not in ("cpu", "meta")
