"""Sections `ceilings` and `loss`: what the card can do, and what the losses need."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor

from clipkit import losses
from gpu_sections.common import Report, Settings, Timing, attempt, free, memory, short, timed

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
BIAS = -10.0


def section_ceilings(settings: Settings, report: Report) -> None:
    """Measure matrix products and copies."""
    device, side = settings.device, 256 if settings.small else 8192
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
    ):
        what = f"matrix product, {name}"
        with attempt(report, what, device):
            torch.manual_seed(0)
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
            timing = timed(lambda a=a, b=b: a @ b, device, warm=3)
            report(what, side=side, **timing.figures, tflops=short(2 * side**3 / timing.median / 1e12))
    torch.set_float32_matmul_precision("highest")
    size = 1 << (20 if settings.small else 31)
    with attempt(report, "copy on the card", device):
        source, target = (torch.randint(0, 256, (size,), dtype=torch.uint8, device=device) for _ in range(2))
        timing = timed(lambda: target.copy_(source), device, warm=3)
        report("copy on the card", **timing.figures, tb_per_second=short(2 * size / timing.median / 1e12))
    with attempt(report, "copy from pinned memory", device):
        pinned = torch.empty(size // 4, dtype=torch.uint8, pin_memory=not settings.small)
        target = torch.empty_like(pinned, device=device)
        timing = timed(lambda: target.copy_(pinned, non_blocking=True), device)
        report("copy from pinned memory", **timing.figures, gb_per_second=short(size / 4 / timing.median / 1e9))


def section_loss(settings: Settings, report: Report) -> None:
    """Measure value and gradients of two losses, and their error."""
    device, width = settings.device, 64 if settings.small else 512
    ours: dict[str, Loss] = {
        "infonce": lambda x, y, s: losses.infonce(x, y, s),
        "sigmoid": lambda x, y, s: losses.sigmoid(x, y, s, torch.full_like(s, BIAS)),
    }
    theirs: dict[str, Loss] = {
        "infonce": lambda x, y, s: ClipLoss()(x, y, s),
        "sigmoid": lambda x, y, s: SigLipLoss()(x, y, s, torch.full_like(s, BIAS)),
    }
    for name in ours:
        with attempt(report, f"{name}, error", device):
            _errors(settings, report, name, ours[name], theirs[name], width)
    counts = (64, 256) if settings.small else (1024, 4096, 16_384, 32_768, 65_536, 131_072)
    for name in ours:
        for pairs in counts:
            what, mine = f"{name}, {pairs} pairs", None
            with attempt(report, what, device, code="clipkit"):
                mine = _timed_loss(ours[name], pairs, width, device)
                report(what, code="clipkit", pairs=pairs, **mine.figures, **memory(device))
            with attempt(report, what, device, code="clipkit, with ids"):
                ids = torch.arange(pairs, device=device)
                same = getattr(losses, name)
                bias = [] if name == "infonce" else [BIAS]
                timing = _timed_loss(
                    lambda x, y, s, same=same, bias=bias, ids=ids: same(x, y, s, *bias, image_ids=ids, caption_ids=ids),
                    pairs, width, device,
                )  # fmt: skip
                report(what, code="clipkit, with ids", pairs=pairs, **timing.figures, **memory(device))
            if pairs > 65_536:
                continue
            for code, autocast in (("open_clip, fp32", False), ("open_clip, bf16 autocast", True)):
                if autocast and name != "infonce":
                    continue
                with attempt(report, what, device, code=code):
                    timing = _timed_loss(theirs[name], pairs, width, device, autocast)
                    ratio = {} if mine is None else {"open_clip_over_clipkit": short(timing.median / mine.median)}
                    report(what, code=code, pairs=pairs, **timing.figures, **memory(device), **ratio)


def _features(pairs: int, width: int, device: torch.device) -> list[Tensor]:
    """Return two sets of features that are similar within each pair, and the scale."""
    torch.manual_seed(0)
    image = torch.randn(pairs, width, device=device)
    text = 0.2 * image + torch.randn(pairs, width, device=device)
    both = [F.normalize(side, dim=-1).requires_grad_() for side in (image, text)]
    return [*both, torch.tensor(50.0, device=device).requires_grad_()]


def _timed_loss(loss: Loss, pairs: int, width: int, device: torch.device, autocast: bool = False) -> Timing:
    inputs = _features(pairs, width, device)

    def work() -> None:
        for value in inputs:
            value.grad = None
        with torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext():
            value = loss(*inputs)
        value.backward()

    free(device)
    return timed(work, device, budget=0.3, warm=1 if pairs > 16_384 else 3)


def _errors(settings: Settings, report: Report, name: str, ours: Loss, theirs: Loss, width: int) -> None:
    """Report the errors of the value and of the gradients against the definition in float64."""
    device, pairs = settings.device, 128 if settings.small else 4096
    rounded = _features(pairs, width, device)
    exact = [value.detach().double().requires_grad_() for value in rounded]
    logits = exact[2] * exact[0] @ exact[1].T
    labels = torch.arange(pairs, device=device)
    if name == "infonce":
        reference = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    else:
        signs = 2 * torch.eye(pairs, device=device, dtype=torch.float64) - 1
        reference = -F.logsigmoid(signs * (logits + BIAS)).sum() / pairs
    reference.backward()
    for code, loss, autocast in (
        ("clipkit", ours, False),
        ("open_clip, fp32", theirs, False),
        ("open_clip, bf16 autocast", theirs, True),
    ):
        inputs = [value.detach().clone().requires_grad_() for value in rounded]
        with torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext():
            value = loss(*inputs)
        value.backward()
        gradients = {
            f"{part}_gradient_error": short(float((one.grad - two.grad).norm() / two.grad.norm()))
            for part, one, two in zip(("image", "text", "scale"), inputs, exact, strict=True)
            if one.grad is not None and two.grad is not None
        }
        report(
            f"{name}, error", code=code, pairs=pairs, value=short(value.item()),
            value_error=short(abs(value.item() - reference.item()) / abs(reference.item())), **gradients,
        )  # fmt: skip
