import math

import pytest
import torch

from clipkit.losses import sigmoid
from tests.losses.oracles import CAPTION_IDS, DUPLICATES, IMAGE_IDS, features, sigmoid_by_loops


@pytest.mark.parametrize("tile", [(4, 3), (1024, 1024)])
@pytest.mark.parametrize("duplicates", DUPLICATES)
def test_equals_the_definition_with_its_gradients(
    duplicates: str, tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipkit.losses.plain._CPU_TILE", tile)
    image, text = features(9, 5)
    log_scale = torch.tensor(2.3, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
    inputs = [image, text, log_scale, bias]
    given = {"image_ids": IMAGE_IDS, "caption_ids": CAPTION_IDS, "duplicates": duplicates}
    expected = sigmoid_by_loops(image, text, scale=log_scale.exp(), bias=bias, **given)
    ids = {"image_ids": torch.tensor(IMAGE_IDS), "caption_ids": torch.tensor(CAPTION_IDS), "duplicates": duplicates}
    loss = sigmoid(image, text, log_scale.exp(), bias, **ids)
    parts = sum(sigmoid(image, text, log_scale.exp(), bias, **ids, rows=rows) for rows in (slice(0, 4), slice(4, 9)))
    for found in (loss, parts):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            torch.autograd.grad(found, inputs),
            torch.autograd.grad(expected, inputs, retain_graph=True),
            rtol=1e-10,
            atol=1e-10,
        )


def test_equals_open_clip() -> None:
    from open_clip.loss import SigLipLoss

    image, text = features(40, 8, dtype=torch.float32)
    scale, bias = torch.tensor(10.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    inputs = [image, text, scale, bias]
    ours, theirs = sigmoid(image, text, scale, bias), SigLipLoss()(image, text, scale, bias)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), rtol=1e-4, atol=1e-6
    )


def test_chance_level() -> None:
    image, text = features(7, 4)
    assert sigmoid(image, text, 0.0, 0.0).item() == pytest.approx(7 * math.log(2), abs=1e-12)


def test_is_finite_for_bfloat16_at_extremes() -> None:
    image, text = features(30, 8, dtype=torch.float32)
    for bias in (-100.0, 100.0):
        loss = sigmoid(image.bfloat16(), text.bfloat16(), 100.0, bias)
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, [image, text]))
