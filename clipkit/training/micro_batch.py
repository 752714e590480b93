"""How many pairs fit into memory with their graph."""

import os
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

from clipkit.models import DualEncoder, Tower
from clipkit.models.memory import graph_bytes
from clipkit.processes import Processes

Inputs = dict[str, Tensor]


def find_micro_batch_size(
    model: DualEncoder, encoded: list[tuple[Tower, Inputs]], rows: int, processes: Processes, accelerator: Accelerator
) -> int:
    """The largest micro-batch that fits on every process, at most `rows`.

    On a GPU by trying; on a CPU, which kills instead of raising, from measured bytes a pair and half of the memory
    that is available.

    Args:
        model: the model.
        encoded: for all that a step encodes the tower, and inputs of two images or of two captions of the greatest
            length.
        rows: the largest slice that a process gets.
        processes: who has to agree.
        accelerator: mixed precision.
    """
    # BatchNorm that learns its statistics would learn them from the measuring too.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    if model.device.type == "cpu":
        # Where the whole slice fits, the graphs of all encodings are there together.
        with accelerator.autocast():
            needed = sum(graph_bytes(tower, inputs) for tower, inputs in encoded)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        fitting = int(available_memory() / 2 / local // max(1, needed // 2))
    else:
        fitting = _by_trying(model, encoded, rows, accelerator)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return processes.smallest(max(1, min(rows, fitting)))


def memory_in_use() -> int:
    """Bytes: the largest that were allocated on the GPU so far, or what this process has in memory now."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return int(psutil.Process().memory_info().rss)


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


def _by_trying(model: DualEncoder, encoded: list[tuple[Tower, Inputs]], rows: int, accelerator: Accelerator) -> int:
    size = rows
    while size > 1:
        try:
            held = []
            for tower, inputs in encoded:
                repeated = {
                    name: value[:1].expand(size, *value.shape[1:]).contiguous() for name, value in inputs.items()
                }
                with accelerator.autocast():
                    features = tower(repeated)
                held.append(features)
            for features in held:
                if features.requires_grad:
                    features.sum().backward()
            return size
        except torch.OutOfMemoryError:
            size //= 2
        finally:
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
    return 1
