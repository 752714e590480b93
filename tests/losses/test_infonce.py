import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipkit.losses import infonce


def by_loops(image: Tensor, text: Tensor, scale: float) -> Tensor:
    """The definition, pair by pair."""
    pairs = len(image)
    total = torch.zeros((), dtype=image.dtype)
    for i in range(pairs):
        over_texts = sum(torch.exp(scale * image[i].dot(text[j])) for j in range(pairs))
        over_images = sum(torch.exp(scale * text[i].dot(image[j])) for j in range(pairs))
        own = torch.exp(scale * image[i].dot(text[i]))
        total = total - torch.log(own / over_texts) - torch.log(own / over_images)
    return total / (2 * pairs)


def features(pairs: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = (F.normalize(torch.randn(pairs, width, generator=generator, dtype=dtype), dim=-1) for _ in range(2))
    image, text = made
    return image.requires_grad_(), text.requires_grad_()


@pytest.mark.parametrize(("pairs", "width", "scale"), [(2, 3, 1.0), (5, 4, 14.3), (8, 16, 100.0)])
def test_equals_the_definition(pairs: int, width: int, scale: float) -> None:
    image, text = features(pairs, width)
    log_scale = torch.tensor(math.log(scale), dtype=torch.float64, requires_grad=True)
    expected = by_loops(image, text, log_scale.exp())
    expected_gradients = torch.autograd.grad(expected, [image, text, log_scale])
    loss = infonce(image, text, log_scale.exp())
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad(loss, [image, text, log_scale]), expected_gradients, rtol=1e-10, atol=1e-10
    )


def test_equals_open_clip() -> None:
    from open_clip.loss import ClipLoss

    image, text = features(16, 8, dtype=torch.float32)
    torch.testing.assert_close(infonce(image, text, 14.3), ClipLoss()(image, text, 14.3))


def test_slices_of_rows_sum_to_the_whole_with_their_gradients() -> None:
    image, text = features(7, 4)
    whole = infonce(image, text, 20.0)
    parts = [infonce(image, text, 20.0, rows=rows) for rows in (slice(0, 2), slice(2, 3), slice(3, 7))]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(sum(parts), [image, text]),
        torch.autograd.grad(whole, [image, text]),
        rtol=1e-10,
        atol=1e-12,
    )


@given(pairs=st.integers(2, 12), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_chance_level_is_ln_of_the_batch(pairs: int, seed: int) -> None:
    image, text = features(pairs, 5, seed)
    assert infonce(image, text, 0.0).item() == pytest.approx(math.log(pairs), abs=1e-12)


@given(pairs=st.integers(2, 10), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_a_common_permutation_changes_nothing(pairs: int, seed: int) -> None:
    image, text = features(pairs, 5, seed)
    order = torch.randperm(pairs, generator=torch.Generator().manual_seed(seed))
    assert infonce(image[order], text[order], 10.0).item() == pytest.approx(
        infonce(image, text, 10.0).item(), abs=1e-12
    )


def test_is_finite_and_float32_for_bfloat16_at_the_largest_scale() -> None:
    image, text = features(32, 8, dtype=torch.float32)
    loss = infonce(image.bfloat16(), text.bfloat16(), torch.tensor(100.0))
    assert loss.dtype == torch.float32
    assert loss.isfinite()
