"""Tensors that threads of gloo free, or own during a fork; test_process_groups starts it on several processes."""

import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

from clipkit import collectives
from clipkit.processes import Processes

MAIN = threading.get_ident()


class Witness:
    """Attribute of a tensor that notes which thread frees it."""

    freed_by_main, freed_by_others = 0, 0

    def __del__(self) -> None:
        if threading.get_ident() == MAIN:
            Witness.freed_by_main += 1
        else:
            Witness.freed_by_others += 1


def main(out: Path) -> None:
    processes = Processes(Accelerator(cpu=True))
    for name in ("all_reduce", "broadcast", "all_gather_into_tensor", "reduce_scatter_tensor"):
        real = getattr(dist, name)

        def call(*given: Any, real: Any = real, **options: Any) -> Any:
            for tensor in given:
                if isinstance(tensor, torch.Tensor):
                    tensor.witness = Witness()  # type: ignore[attr-defined]
            return real(*given, **options)

        setattr(dist, name, call)
    for step in range(100):
        processes.any(step == 3)
        processes.of_main(step)
        processes.gather_objects(step)
        rows = torch.ones(1 + processes.index, 3, requires_grad=True)
        processes.gather(rows, 3).sum().backward()  # type: ignore[no-untyped-call]
        processes.start_sum(torch.ones(4))()
    owned = [in_a_fork(processes) for _ in range(30)]
    counts = (Witness.freed_by_main, Witness.freed_by_others, sum(owned))
    (out / f"{processes.index}.txt").write_text(" ".join(map(str, counts)))


def in_a_fork(processes: Processes) -> int:
    """Number of tensors that threads of gloo own at the moment of a fork right after an agreement."""
    processes.any(True)
    child = os.fork()
    if child == 0:
        os._exit(len(collectives._lent))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
