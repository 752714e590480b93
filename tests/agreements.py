"""Agree with other processes beside an accelerator's group; test_processes starts it on several processes."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

from clipkit.processes import Processes


def main(out: Path) -> None:
    joined = Accelerator(cpu=True)
    beside: Any = SimpleNamespace(
        num_processes=joined.num_processes, process_index=joined.process_index, device=torch.device("cuda", 0)
    )
    processes = Processes(beside)
    index = processes.index
    used = []
    for name in ("all_reduce", "broadcast", "all_gather_into_tensor"):
        real = getattr(dist, name)

        def call(*given: Any, name: str = name, real: Any = real, **options: Any) -> Any:
            used.append(options["group"] not in (None, dist.group.WORLD))
            return real(*given, **options)

        setattr(dist, name, call)
    found: dict[str, Any] = {
        "smallest": processes.smallest(index + 3),
        "any": processes.any(False, index == 1),
        "of_main": processes.of_main(index + 7),
        "objects": processes.gather_objects(index),
    }
    found |= {"used": used, "group": Processes(beside)._cpu_group is processes._cpu_group}
    (out / f"{index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
