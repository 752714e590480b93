"""Train recipes in turn in the processes of one launch, and write the bytes of the weights of each process to a file.

A run whose folder has checkpoints is resumed. test_shards starts it.
"""

import json
import sys
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from clipkit.recipe import Recipe
from clipkit.report import run as report
from clipkit.training.folder.run_folder import RunFolder, claimed
from clipkit.training.plan import Plan, make_plan
from clipkit.training.run import run
from clipkit.training.shards import Shards
from clipkit.training.stop import StopRequest
from tests.charts import not_drawn


def local_bytes(tensor: Tensor | None) -> int:
    """Return the bytes that this process has of a tensor."""
    if tensor is None:
        return 0
    return tensor.to_local().nbytes if isinstance(tensor, DTensor) else tensor.nbytes


def counting(plan: Plan, counts: dict[str, int]) -> None:
    """Count bytes before each update: of parameters, gradients and the optimizer's state."""
    clip, weights, optimizer = plan.weights.clip_gradients, plan.weights, plan.optimizer.optimizer
    original = [tower.trunk for tower in plan.model.sides.values()]

    def counted(*arguments: Any) -> Tensor:
        norm = clip(*arguments)
        parameters = {*plan.model.parameters(), *(one for trunk in whole for one in trunk.parameters())}
        counts["parameters"] = sum(map(local_bytes, parameters))
        gradients = [parameter.grad for parameter in {*parameters, *weights.trained.values()}]
        counts["gradients"] = sum(map(local_bytes, gradients))
        counts["optimizer"] = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
        return norm

    whole = getattr(plan.weights, "_whole", dict(enumerate(original))).values()
    weights.clip_gradients = counted  # type: ignore[method-assign]


def trained(file: str | Path) -> None:
    recipe = Recipe.from_yaml(file)
    plan, counts = make_plan(recipe), {}
    counting(plan, counts)
    resume = RunFolder(recipe.output).checkpoints.is_dir()
    with claimed(RunFolder(recipe.output), plan.processes, resume=resume, overwrite=False) as folder:
        run(plan, folder, StopRequest(), resume)
    if isinstance(plan.weights, Shards):  # what the optimizer changed is what FSDP2 gathers
        for name, distributed in plan.weights._distributed.items():
            assert plan.weights._all[name].data_ptr() == distributed.to_local().data_ptr(), name
    at = f"{folder.path}-{plan.processes.index}-of-{plan.processes.count}.json"
    Path(at).write_text(json.dumps({"sharded": plan.weights.is_sharded, **counts}))


if __name__ == "__main__":
    report.line_chart = not_drawn
    for file in sys.argv[1:]:
        trained(file)
