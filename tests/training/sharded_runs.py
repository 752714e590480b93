"""Train recipes in turn in the processes of one launch, and write the bytes of the weights of each process to a file.

A run whose folder has checkpoints is resumed. test_shards starts it.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from clipkit.recipe import Recipe
from clipkit.report import run as report
from clipkit.training import shards
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


@contextmanager
def recorded_policies(policies: set[str]) -> Iterator[None]:
    """Context in which the offload policies that reach FSDP2 are added to `policies`."""

    def recorded(module: nn.Module, *, offload_policy: OffloadPolicy, **others: Any) -> Any:
        policies.add(type(offload_policy).__name__)
        return fully_shard(module, offload_policy=offload_policy, **others)

    shards.fully_shard = recorded  # type: ignore[assignment]
    try:
        yield
    finally:
        shards.fully_shard = fully_shard


def trained(file: str | Path) -> None:
    recipe = Recipe.from_yaml(file)
    policies: set[str] = set()
    with recorded_policies(policies):
        plan = make_plan(recipe)
    counts: dict[str, int] = {}
    counting(plan, counts)
    resume = RunFolder(recipe.output).checkpoints.is_dir()
    with claimed(RunFolder(recipe.output), plan.processes, resume=resume, overwrite=False) as folder:
        run(plan, folder, StopRequest(), resume)
    if isinstance(plan.weights, Shards):  # what the optimizer changed is what FSDP2 gathers
        for name, distributed in plan.weights._distributed.items():
            assert plan.weights._all[name].data_ptr() == distributed.to_local().data_ptr(), name
    at = f"{folder.path}-{plan.processes.index}-of-{plan.processes.count}.json"
    facts = {"sharded": plan.weights.is_sharded, "policies": sorted(policies)}
    Path(at).write_text(json.dumps(facts | counts))


if __name__ == "__main__":
    report.line_chart = not_drawn
    for file in sys.argv[1:]:
        trained(file)
