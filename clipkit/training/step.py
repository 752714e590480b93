"""The training step."""

import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from clipkit.data import Batch
from clipkit.models import DualEncoder
from clipkit.training.objective import Objective
from clipkit.training.processes import Processes


def backward_step(
    model: DualEncoder,
    batch: Batch,
    batch_size: int,
    objective: Objective,
    processes: Processes,
    accelerator: Accelerator,
) -> Tensor:
    """Leave the gradient of the global batch's loss in every parameter, on every process, and return that loss.

    Each process encodes its own rows, all see all features, each counts the loss terms of its own rows, and the
    gradients are summed: the result is that of one process holding the whole batch.

    Args:
        model: its towers are run as they are, without a distributed wrapper.
        batch: this process's rows, `processes.share(batch_size)` of the global batch.
        batch_size: pairs in the global batch, G.
        objective: gathered features to this process's part of the loss.
        processes: who takes part.
        accelerator: mixed precision and the gradient scaler.
    """
    with accelerator.autocast():
        image, text = model.image(batch.image), model.text(batch.text)
    features = {
        "image": processes.gather(F.normalize(image.float(), dim=-1), batch_size),
        "text": processes.gather(F.normalize(text.float(), dim=-1), batch_size),
    }
    loss = objective(features, model.logit_scale.exp(), processes.share(batch_size))
    accelerator.backward(loss)
    processes.sum_gradients(model.parameters())
    return processes.sum(loss)
