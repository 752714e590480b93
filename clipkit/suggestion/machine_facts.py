"""Facts about the machine that a recipe depends on: device, memory, cores."""

import os
from dataclasses import dataclass

import psutil
import torch

_CPU_CORE, _GPU = 5e10, 5e13
"""Assumed floating-point operations per second during training: of one CPU core, and of a GPU."""


@dataclass(frozen=True)
class MachineFacts:
    """Properties of this machine that a recipe depends on."""

    device: str
    """cpu, or the name of the GPU."""
    has_gpu: bool
    memory: int
    """Memory in bytes: of the GPU if there is one, otherwise of the machine."""
    cores: int

    @property
    def operations(self) -> float:
        """Estimated floating-point operations per second during training."""
        return _GPU if self.has_gpu else _CPU_CORE * self.cores


def machine_facts() -> MachineFacts:
    """Return the device, memory and number of cores of this machine.

    Example:
        >>> machine_facts().cores > 0
        True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return MachineFacts(properties.name, True, properties.total_memory, cores)
    return MachineFacts("cpu", False, int(psutil.virtual_memory().total), cores)
