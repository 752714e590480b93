"""Training step for custom training loops: exact gradients of a global batch.

The gradients do not depend on the micro-batch size and the number of processes.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from clipkit.data import Batch
from clipkit.errors import DataError, UserError
from clipkit.images import ImageLike, kind_of, open_image
from clipkit.models import DualEncoder
from clipkit.models.absent import check_present
from clipkit.models.preprocess import stack_inputs
from clipkit.processes import Processes
from clipkit.training.objectives.python_loss import value_of_loss
from clipkit.training.step import Encoder
from clipkit.training.step import Step as GradientStep

Inputs = Mapping[str, Tensor]


class Step:
    """Computes the gradients of a loss over a global batch.

    The gradients are those of one process with all pairs in one autograd graph. Each process encodes its rows in
    micro-batches, first without a graph (GradCache, Gao et al. 2021). The loss gets the features of all processes. All
    processes get the same gradients, so the model needs no wrapper such as DistributedDataParallel.

    Args:
        model: the model, on the device of the accelerator.
        loss: function that returns a scalar loss, e.g. from `clipkit.losses`. Its first arguments are image_features
            (G, D) and text_features (G, D). It gets scale, bias, image_ids, caption_ids and rows only if it has
            arguments with these names.
        accelerator: provides mixed precision and the processes; None: a new Accelerator in float32.
        batch_size: pairs in the global batch, G.
        micro_batch_size: pairs in one forward pass of a process; None: all rows of the process.
        seed: seed of dropout and other random layers.

    Raises:
        RecipeError: the loss has other required arguments.
        UserError: a batch size is invalid, or the model is on another device.

    Example:
        >>> step = Step(model, clipkit.losses.infonce, batch_size=64, micro_batch_size=8)   # doctest: +SKIP
        >>> loss = step(images, captions)                                                   # doctest: +SKIP
        >>> optimizer.step()                                                                # doctest: +SKIP
    """

    def __init__(
        self,
        model: DualEncoder,
        loss: Callable[..., Tensor],
        accelerator: Accelerator | None = None,
        *,
        batch_size: int,
        micro_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        accelerator = accelerator or Accelerator(cpu=model.device.type == "cpu", mixed_precision="no")
        check_present(model.name, image=model.image, text=model.text)
        self.model = model
        self.processes = Processes(accelerator)
        if batch_size < self.processes.count:
            raise UserError(
                f"batch_size is {batch_size}, fewer than the {self.processes.count} processes; use a larger batch_size"
            )
        if micro_batch_size is not None and micro_batch_size < 1:
            raise UserError(f"micro_batch_size is {micro_batch_size}; give at least 1, or None for all rows")
        if model.device.type != accelerator.device.type:
            raise UserError(
                f"the model is on {model.device}, but the accelerator uses {accelerator.device}; call "
                "model.to(accelerator.device)"
            )
        self.steps = 0
        """Number of calls so far; random states are a function of it."""
        encoders = {"image_features": Encoder(model.image), "text_features": Encoder(model.text)}
        value, rows = value_of_loss(loss), -(-batch_size // self.processes.count)
        self._gradients = GradientStep(
            *(model, encoders, value, self.processes, accelerator, batch_size, micro_batch_size or rows, seed)
        )

    @property
    def rows(self) -> slice:
        """Rows of the global batch that this process must pass to the step."""
        return self.processes.share(self._gradients.batch_size)

    def __call__(
        self,
        images: Sequence[ImageLike] | Inputs,
        captions: Sequence[str] | Inputs,
        *,
        image_ids: Iterable[int] | None = None,
        caption_ids: Iterable[int] | None = None,
    ) -> Tensor:
        """Add the gradients of the loss to the parameters, and return the loss of the global batch.

        The loss is the same on all processes.

        Args:
            images: images in this process's rows, or stacked outputs of `model.image.preprocess`, by name.
            captions: captions of these images, or their tokens by name.
            image_ids: IDs that are equal for pairs with the same image. None: all images are different.
            caption_ids: IDs that are equal for pairs with the same caption. None: equal strings get equal IDs, but each
                row of tokens gets a different ID.

        Raises:
            DataError: the number of images, captions or IDs differs from the number of rows, or an image is unreadable.
            TrainingError: a single pair does not fit into memory.
        """
        with self.processes.failing_together():
            batch = self._batch(images, captions, image_ids, caption_ids)
        # Gradients from before must not take part in the sum over processes, nor be lost after a lack of memory.
        before = [(parameter, parameter.grad) for parameter in self.model.parameters() if parameter.grad is not None]
        for parameter, _ in before:
            parameter.grad = None
        try:
            loss = self._gradients(batch, self.steps)
        except BaseException:
            for parameter, grad in before:
                parameter.grad = grad
            raise
        for parameter, grad in before:
            parameter.grad = grad if parameter.grad is None else grad.add_(parameter.grad)
        self.steps += 1
        return loss

    def _batch(self, images: Any, captions: Any, image_ids: Any, caption_ids: Any) -> Batch:
        if isinstance(captions, str) or not isinstance(captions, Mapping | Sequence):
            raise DataError(
                f"captions is {kind_of(captions)}; give a list of strings, or a dict of token tensors such as input_ids"
            )
        if not isinstance(images, Mapping):
            images = stack_inputs([self.model.image.preprocess(open_image(image)) for image in images])
        if not isinstance(captions, Mapping):
            if caption_ids is None:
                caption_ids = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) for text in captions]
            captions = self.model.text.tokenize(list(captions))
        own = torch.arange(self.rows.start, self.rows.stop)
        of_image, of_caption = (
            own if given is None else torch.as_tensor(list(given)) for given in (image_ids, caption_ids)
        )
        counts = [len(next(iter(inputs.values()))) for inputs in (images, captions)]
        if {*counts, len(of_image), len(of_caption)} != {len(own)}:
            raise DataError(
                f"got {counts[0]} images, {counts[1]} captions, {len(of_image)} image ids and {len(of_caption)} "
                f"caption ids; give {len(own)} of each, because this process has the rows {self.rows.start} to "
                f"{self.rows.stop - 1} of the global batch"
            )
        return Batch({"image_features": dict(images), "text_features": dict(captions)}, of_image, of_caption, own)
