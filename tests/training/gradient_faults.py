"""Run steps while one process fails in its backward pass; test_gradient_sum starts it on several processes."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from clipkit.processes import Processes
from clipkit.training import gradient_sum
from clipkit.training.step import Abandoned, Step
from tests.collectives import recorded
from tests.training.exactness import build, encoders, global_batch, slice_of, value

PAIRS = 14
FORWARD = {3: 9, 100: 4}  # how often the forward pass asks at most whether to stop
FAULTS = ("none", "out of memory in the first tower", "out of memory in the second tower", "stop")


def out_of_memory_once(parameter: nn.Parameter) -> None:
    """Raise an error when the gradient of a parameter arrives for the first time."""

    def raise_once(gradient: Tensor) -> None:
        handle.remove()
        raise torch.OutOfMemoryError("CUDA out of memory")

    handle = parameter.register_hook(raise_once)


def main(out: Path) -> None:
    accelerator = Accelerator(cpu=True)
    processes = Processes(accelerator)
    last = processes.index == processes.count - 1
    gradient_sum._BUCKET = 200
    calls: list[str] = []
    recorded(calls)
    found = {}
    for fault in FAULTS:
        for micro in (3, 100):
            calls.clear()
            model = build(torch.float64, 0.0)
            left = iter(range(FORWARD[micro]))
            batch = slice_of(global_batch(PAIRS, torch.float64), processes.share(PAIRS))

            def step(stop: Callable[[], bool], model: Any = model, micro: int = micro, batch: Any = batch) -> Tensor:
                run = Step(
                    model, encoders("infonce", model), value("infonce", model), processes, accelerator, PAIRS, micro,
                    seed=1, stop_requested=stop,
                )  # fmt: skip
                return run(batch, step=7)

            if last and fault.startswith("out of memory"):
                # Micro-batches run the text tower first, one pass the image tower.
                first = model.text.trunk.words if micro == 3 else model.image.trunk.layers[0]
                second = model.image.trunk.layers[0] if micro == 3 else model.text.trunk.words
                out_of_memory_once((first if "first" in fault else second).weight)
            abandoned = False
            try:
                stops = last and fault == "stop"
                loss = step(lambda stops=stops, left=left: stops and next(left, None) is None)
            except Abandoned:
                abandoned = True
                assert all(parameter.grad is None for parameter in model.parameters())
                loss = step(lambda: False)
            gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            found[(fault, micro)] = (gradients | {"loss": loss}, list(calls), abandoned)
    torch.save((processes.count, found), out / f"{processes.index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
