"""Share of an accelerator's peak speed that a training step reaches (model FLOPs utilization).

Only the floating-point operations of one forward and one backward pass of the towers are counted. The second forward
pass of GradCache or gradient checkpointing, the loss, the optimizer, and padding are not counted.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clipkit.data import Batch
from clipkit.embedding.shared import evaluating
from clipkit.models import Tower
from clipkit.models.cut import ACTIVATIONS, OUTSIDE
from clipkit.models.towers import TRUNK_FEATURES, TextTower
from clipkit.training.inputs import TowerInputs
from clipkit.training.plan import Plan
from clipkit.training.step import Encoder

# Dense matrix products in TFLOP/s by device name, from the vendors' data sheets: bf16 and fp16 with fp32 accumulation,
# TF32, fp32. The first match counts. Data sheets that state figures "with sparsity" state twice the dense ones.
_PEAKS: dict[str, tuple[float, float, float]] = {
    r"GB200\b": (2500, 1250, 80),
    r"\bB200\b": (2250, 1125, 75),
    r"\bH[12]00 NVL\b": (836, 418, 60),
    r"\bH100 PCIe\b": (756, 378, 51),
    r"\b(H100|H200|GH200)\b": (989, 494, 67),
    r"\bA100\b": (312, 156, 19.5),
    r"\bA40\b": (149.7, 74.8, 37.4),
    r"\bA10\b": (125, 62.5, 31.2),
    r"\bL40S\b": (362, 183, 91.6),
    r"\bL4\b": (121, 60, 30.3),
    r"\bT4\b": (65, 8.1, 8.1),
    r"\bRTX 4090$": (165, 82.6, 82.6),
    r"\bRTX 3090$": (71, 35.6, 35.6),
    r"\bMI300X\b": (1307, 654, 163),
}


def peak_of(device_name: str, precision: str) -> float | None:
    """Return the peak speed of a device in floating-point operations per second.

    The result is None for an unknown device, and for a part of a GPU (MIG).

    Args:
        device_name: name as `torch.cuda.get_device_name` returns it.
        precision: bf16, fp16 or fp32; fp32 uses TF32 if torch is set to do so.
    """
    if "MIG" in device_name:
        return None
    column = 0 if precision in ("bf16", "fp16") else 2 if torch.get_float32_matmul_precision() == "highest" else 1
    return next((1e12 * row[column] for name, row in _PEAKS.items() if re.search(name, device_name)), None)


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one tower for one row, as a polynomial in the number of tokens."""

    polynomial: NDArray[np.float64]
    """Coefficients, highest power first; only a constant for images, stored features and texts of a fixed length."""

    def operations(self, inputs: Mapping[str, Tensor]) -> float:
        """Return the operations for all rows of a batch, without padding."""
        if len(self.polynomial) == 1:
            return float(self.polynomial[0]) * len(next(iter(inputs.values())))
        lengths = inputs["attention_mask"].sum(dim=1).cpu().numpy()
        return float(np.polyval(self.polynomial, lengths).sum())


@dataclass(frozen=True)
class Throughput:
    """Converts the duration of a step to a share of the peak speed of this process's device."""

    peak: float | None
    """Operations per second; None: unknown."""
    works: Mapping[str, Work]
    """Operations of the towers, by the names of the batch's inputs; empty if the peak is unknown."""

    def share(self, batch: Batch, seconds: float) -> float | None:
        """Return the share of the peak speed that a step reached; None if the peak speed is unknown."""
        return None if self.peak is None else self.operations(batch) / seconds / self.peak

    def operations(self, batch: Batch) -> float:
        """Return the operations of one forward and backward pass of a batch."""
        return sum(work.operations(batch.inputs[name]) for name, work in self.works.items())


def throughput_of(plan: Plan, inputs: TowerInputs) -> Throughput:
    """Look up the peak speed of the device, and count the operations of the towers for one row.

    If the peak speed is unknown, nothing is counted.
    """
    device = plan.accelerator.device
    peak = peak_of(torch.cuda.get_device_name(device), plan.precision) if device.type == "cuda" else None
    return Throughput(peak, {} if peak is None else works_of(inputs))


def works_of(inputs: TowerInputs) -> dict[str, Work]:
    """Count the operations of all towers of an objective, by the names of the batch's inputs."""
    examples = inputs.example(1)
    with evaluating(inputs.model):
        return {name: work_of(encoder, examples[name]) for name, encoder in inputs.encoders.items()}


def work_of(encoder: Encoder, inputs: Mapping[str, Tensor]) -> Work:
    """Count the operations of one tower.

    If the padding of texts may be cut, the number of operations is a polynomial of degree 2 in the number of tokens,
    because matrix products are linear and attention is quadratic. The polynomial is fitted to counts at three lengths.

    Args:
        inputs: inputs of one row.
    """
    tower = encoder.tower
    if not isinstance(tower, TextTower) or not tower.padding_may_be_cut or "attention_mask" not in inputs:
        return Work(np.array([_operations(encoder, inputs)]))
    device = inputs["attention_mask"].device
    longest = inputs if ACTIVATIONS in inputs else tower.tokenize(["a " * tower.tokenize.context_length])
    tokens = {name: value.to(device) for name, value in longest.items()}
    context = tokens["input_ids"].shape[1]
    lengths = sorted({max(1, context // 4), max(1, context // 2), context})
    counted = [_operations(encoder, _cut(tokens, length)) for length in lengths]
    return Work(np.polyfit(lengths, counted, len(lengths) - 1) if len(lengths) > 1 else np.array([*counted, 0.0]))


def _cut(tokens: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    return {name: value if name == OUTSIDE else value[:, :length] for name, value in tokens.items()}


def _operations(encoder: Encoder, inputs: Mapping[str, Tensor]) -> float:
    """Return the number of operations of a forward pass and of a backward pass through the trained parts."""
    tower = encoder.tower
    head_passes = 3 if any(parameter.requires_grad for parameter in tower.head.parameters()) else 1
    if TRUNK_FEATURES in inputs:
        return head_passes * _counted(tower.head, inputs[TRUNK_FEATURES])[0]
    if ACTIVATIONS in inputs:
        # Nearly all parameters above the cut are trained: a forward and backward pass takes 3 times the operations.
        return 3 * _counted(tower, inputs)[0]
    ready = tower.ready(dict(inputs))
    trunk, features = _counted(tower.trunk, **ready)
    head = 0 if encoder.of_trunk else _counted(tower.head, features)[0]
    return _passes(tower) * trunk + head_passes * head


@torch.no_grad()
def _counted(module: nn.Module, *inputs: Tensor | Mapping[str, Tensor], **named: Tensor) -> tuple[int, Tensor]:
    """Return the number of operations of a forward pass, and its output.

    The module must be in evaluation mode and must not be compiled.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused layers of nn.MultiheadAttention would not be counted
    try:
        # Torch 2.6 counts no fused attention of CPUs.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            output: Tensor = module(*inputs, **named)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops(), output


def _passes(tower: Tower) -> float:
    """Return the operations of a trunk's forward and backward pass, divided by those of the forward pass.

    The result is 3 if the whole trunk is trained, and 1 if it is frozen. The backward pass computes the gradients of
    the trained weights, and the gradients of the inputs of each block after the first trained block.
    """
    parameters = dict(tower.trunk.named_parameters())
    shares = []
    for block in tower.blocks:
        sizes = [(parameters[name].numel(), parameters[name].requires_grad) for name in block if name in parameters]
        shares.append(sum(size for size, trained in sizes if trained) / max(1, sum(size for size, _ in sizes)))
    first = next((index for index, share in enumerate(shares) if share > 0), len(shares))
    return 1 + (sum(shares) + len(shares) - first) / max(1, len(shares))
