"""Size of the micro-batch: the number of pairs whose autograd graph fits into memory."""

import os
from collections.abc import Iterator

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from clipkit.data.shared_memory import available_memory
from clipkit.errors import RecipeError
from clipkit.models import DualEncoder, Tower
from clipkit.models.compiled import uncompiled
from clipkit.models.devices import is_shard
from clipkit.models.memory import graph_bytes
from clipkit.processes import Processes
from clipkit.recipe import ModelRecipe, Recipe
from clipkit.training.inputs import TowerInputs

Inputs = dict[str, Tensor]


def micro_batch_size_of(
    recipe: Recipe,
    model: DualEncoder,
    inputs: TowerInputs,
    processes: Processes,
    accelerator: Accelerator,
    resumed: int | None,
) -> int:
    """Return the micro-batch size of the recipe. If it is `auto`, return the largest size that fits into memory.

    Args:
        resumed: micro-batch size of the interrupted run, which is used again for bit-identical results. None: use the
            recipe.

    Raises:
        RecipeError: micro-batches would change the statistics that BatchNorm learns.
    """
    batch_size, requested = recipe.train.batch_size, recipe.train.micro_batch_size
    rows = -(-batch_size // processes.count)
    if requested != "auto" or resumed is not None:
        size = min(resumed or int(requested), rows)
    else:
        examples = inputs.example(2)
        encoded = [(encoder.tower, examples[name]) for name, encoder in inputs.encoders.items()]
        size = find_micro_batch_size(model, encoded, rows, processes, accelerator)
    if learns_batch_norm(model, recipe.model) and (processes.count > 1 or size < rows):
        raise RecipeError(
            f"BatchNorm would learn its statistics from {size} rows at a time instead of the whole batch of "
            f"{batch_size}; use one process and set train.micro_batch_size: {batch_size}, use a smaller "
            "train.batch_size, or use a tower with LayerNorm (e.g. timm:convnext_atto or a ViT)"
        )
    return size


def learns_batch_norm(model: DualEncoder, recipe: ModelRecipe) -> bool:
    """Return whether training updates the statistics of a BatchNorm layer.

    These statistics depend on the rows in one forward pass.
    """
    return any(True for _ in scratch_batch_norms(model, recipe))


def scratch_batch_norms(model: DualEncoder, recipe: ModelRecipe) -> Iterator[nn.Module]:
    """Yield the BatchNorm layers of towers that are trained from scratch."""
    for tower, section in ((model.image, recipe.image), (model.text, recipe.text)):
        if recipe.name is None and not section.pretrained:
            yield from (m for m in tower.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


def find_micro_batch_size(
    model: DualEncoder, encoded: list[tuple[Tower, Inputs]], rows: int, processes: Processes, accelerator: Accelerator
) -> int:
    """Return the largest micro-batch size, up to `rows`, that fits into memory on every process.

    On a GPU, the size is halved until a forward and backward pass fits. On a CPU, the system would kill a process that
    runs out of memory. There, the size is half of the available memory divided by the measured bytes per pair. Sharded
    trunks on a GPU are measured in the same way, because a failed process would leave the other processes waiting.

    Args:
        encoded: for each kind of features, the tower and its inputs for two images or for the two longest captions.
        rows: largest number of pairs of one process in a global batch.
    """
    # BatchNorm would learn statistics from these measurements, so restore them afterwards.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    is_sharded = any(is_shard(parameter) for parameter in model.parameters())
    if model.device.type == "cpu" or is_sharded:
        # If the whole slice fits, the graphs of all features are in memory together.
        with accelerator.autocast():
            needed = sum(graph_bytes(tower, inputs) for tower, inputs in encoded)
        fitting = int(_free_memory(model.device) / 2 // max(1, needed // 2))
    else:
        with uncompiled(model):
            fitting = _by_trying(model, encoded, rows, accelerator)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return processes.smallest(max(1, min(rows, fitting)))


def _free_memory(device: torch.device) -> float:
    """Return the memory that this process may use on a device, in bytes.

    On a CPU, the processes of one machine get equal shares of the available memory.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what PyTorch keeps counts as used
        return float(torch.cuda.mem_get_info(device)[0])
    return available_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def memory_in_use() -> int:
    """Return the peak GPU memory of this process in bytes or, without a GPU, its current memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return int(psutil.Process().memory_info().rss)


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
