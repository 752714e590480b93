"""Sums over tiles by Triton's kernels: in its interpreter on a CPU, and on a GPU."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit import losses
from tests.forked import ENVIRONMENT, python


@pytest.mark.parametrize("cases", [[], pytest.param(["all"], marks=pytest.mark.slow)], ids=len)
def test_every_loss_by_the_kernels_equals_itself_in_float64(cases: list[str]) -> None:
    pytest.importorskip("triton")
    environment = ENVIRONMENT | {"TRITON_INTERPRET": "1"}
    done = python("-m", "tests.losses.interpreted", *cases, environment=environment)
    assert done.returncode == 0, done.stderr


def results(features: list[Tensor], scale: float, options: dict[str, Any], dtype: torch.dtype) -> list[Tensor]:
    """Return InfoNCE and its gradients on the GPU."""
    leaves = [one.to("cuda", dtype).requires_grad_() for one in [*features, torch.tensor(scale)]]
    loss = losses.infonce(*leaves, **options)
    return [loss, *torch.autograd.grad(loss, leaves)]


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"rows": slice(100, 2777)}, {"duplicates": "ignore"}], ids=str)
@pytest.mark.parametrize("scale", [1.0, 30.0, 100.0])
def test_on_a_gpu_equals_float64_with_the_same_bits_twice(scale: float, options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    image, noise = (F.normalize(torch.randn(3000, 200, generator=generator), dim=-1) for _ in range(2))
    features = [image, F.normalize(image + 0.5 * noise, dim=-1)]
    if "duplicates" in options:
        options = {**options, "image_ids": torch.arange(3000).cuda() // 3, "caption_ids": torch.arange(3000).cuda()}
    found, again = (results(features, scale, options, torch.float32) for _ in range(2))
    exact = results(features, scale, options, torch.float64)
    assert all(map(torch.equal, found, again))
    for ours, wanted in zip(found, exact, strict=True):
        assert (ours - wanted).abs().max() < 2e-5 * (wanted.abs().max() + scale / 3000)


@pytest.mark.gpu
def test_on_a_gpu_memory_grows_with_the_pairs_and_nothing_waits() -> None:
    image, text = (F.normalize(torch.randn(40_000, 64, device="cuda"), dim=-1).requires_grad_() for _ in range(2))
    losses.infonce(image[:1000], text[:1000], torch.tensor(10.0, device="cuda"))
    scale = torch.tensor(10.0, device="cuda", requires_grad=True)
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses.infonce(image, text, scale).backward()
        losses.sigmoid(image, text, scale, scale).backward()
        losses.ntxent(image, text, scale).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() < 1.5e9  # the matrix alone has 6.4 GB
