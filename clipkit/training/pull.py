"""L2 penalty that keeps pretrained weights close to their initial values.

The method is L2-SP (Li et al. 2018, equation 3), as used by ProLIP.
"""

import hashlib
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from clipkit.errors import RecipeError
from clipkit.models import DualEncoder
from clipkit.training.rates import Kind
from clipkit.training.weights import Weights


class Pull:
    """Penalty w · Σ (θ − θ_start)² on the pretrained weights θ of the towers, except for frozen weights.

    L2-SP writes w as α / 2. If only the projection is trained, the penalty is that of ProLIP (Fahes et al. 2024), which
    writes w as λ. The scale, the bias and new weights have no penalty. Unlike weight decay, the penalty is added to the
    gradient before it is clipped and before AdamW estimates its moments.

    Args:
        model: the model with its initial weights.
        weight: weight w of the penalty.
        kind_of: function that returns the kind of a parameter (adapter, pretrained or new) from its name.

    Raises:
        RecipeError: no pretrained weight is trained.
    """

    def __init__(self, model: DualEncoder, weight: float, kind_of: Callable[[str], Kind]) -> None:
        self.weight = weight
        self._pulled = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name.startswith(("image.", "text.")) and kind_of(name) == "pretrained"
        }
        if not self._pulled:
            raise RecipeError(
                "optim.pull_to_start applies to pretrained weights, but no pretrained weights are trained; remove "
                "optim.pull_to_start, or set model.image.tune or model.text.tune"
            )
        self._weights = Weights(model)
        self._start = {name: parameter.detach().clone() for name, parameter in self._pulled.items()}

    def apply_to(self, weights: Weights) -> None:
        """Apply the penalty to the parameters in `weights` instead of those of the model.

        With `train.shard`, `weights` has only some rows of each parameter on each process.
        """
        self._weights = weights
        for name, start in self._start.items():
            self._pulled[name] = weights.trained[name]
            self._start[name] = weights.from_file(name, start).to(self._pulled[name].device, copy=True)

    def fingerprint(self) -> str:
        """Return a hash of the initial weights.

        A resumed run loads these weights from the base model again, because checkpoints do not contain them.
        """
        digest = hashlib.sha256()
        for name, value in self._start.items():
            digest.update(name.encode())
            digest.update(value.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def add_gradient(self, scale: float = 1.0) -> Float[Tensor, ""]:
        """Add the gradient of the penalty, 2 w (θ − θ_start), to the gradients of the loss.

        Call this method on every process after the gradients are summed over the processes. Parameters without a
        gradient are skipped, because they have not changed, so their penalty is zero.

        Args:
            scale: factor by which the gradients of the loss are scaled (mixed precision).

        Returns:
            The penalty.
        """
        gradients = {name: weight.grad for name, weight in self._pulled.items() if weight.grad is not None}
        if not gradients:
            return next(iter(self._start.values())).new_zeros(())
        differences = torch._foreach_sub(
            [self._pulled[name] for name in gradients], [self._start[name] for name in gradients]
        )
        torch._foreach_add_(list(gradients.values()), differences, alpha=2 * self.weight * scale)
        return self.weight * self._weights.sum_of_squares(dict(zip(gradients, differences, strict=True)))
