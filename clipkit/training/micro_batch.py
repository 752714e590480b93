"""How many pairs fit into memory with their graph."""

import os
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

from clipkit.models import DualEncoder
from clipkit.models.memory import graph_bytes
from clipkit.processes import Processes

Inputs = dict[str, Tensor]


def find_micro_batch_size(
    model: DualEncoder, image: Inputs, text: Inputs, rows: int, processes: Processes, accelerator: Accelerator
) -> int:
    """The largest micro-batch that fits on every process, at most `rows`.

    On a GPU by trying; on a CPU, which kills instead of raising, from measured bytes a pair and half of the memory
    that is available.

    Args:
        model: the model.
        image: inputs of two pictures.
        text: inputs of two captions of the greatest length.
        rows: the largest slice that a process gets.
        processes: who has to agree.
        accelerator: mixed precision.
    """
    # BatchNorm that learns its statistics would learn them from the measuring too.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    if model.device.type == "cpu":
        # One tower at a time has a graph, so the larger one counts.
        with accelerator.autocast():
            needed = max(graph_bytes(model.image, image), graph_bytes(model.text, text))
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        fitting = int(available_memory() / 2 / local // max(1, needed // 2))
    else:
        fitting = _by_trying(model, image, text, rows, accelerator)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return processes.smallest(max(1, min(rows, fitting)))


def available_memory() -> int:
    """Bytes that this machine, or the control group that the process is in, still has."""
    free = psutil.virtual_memory().available
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(0, free)


def _by_trying(model: DualEncoder, image: Inputs, text: Inputs, rows: int, accelerator: Accelerator) -> int:
    size = rows
    while size > 1:
        try:
            for tower, inputs in ((model.image, image), (model.text, text)):
                repeated = {
                    name: value[:1].expand(size, *value.shape[1:]).contiguous() for name, value in inputs.items()
                }
                with accelerator.autocast():
                    features = tower(repeated)
                if features.requires_grad:
                    features.sum().backward()
            return size
        except torch.OutOfMemoryError:
            size //= 2
        finally:
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
    return 1
