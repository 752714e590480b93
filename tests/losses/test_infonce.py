"""Properties of InfoNCE alone; test_every_loss.py has those that all losses share."""

import math

import pytest
import torch
import torch.nn.functional as F

from clipkit.losses import infonce
from tests.losses.oracles import CAPTION_IDS, IMAGE_IDS, features, infonce_by_loops


@pytest.fixture(params=["tiled", "small", "dense"])
def small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use several tiles, the last ones partial, even for a handful of pairs; or the paths for small batches."""
    if request.param == "tiled":
        monkeypatch.setattr("clipkit.losses.plain._CPU_TILE", (4, 3))
        monkeypatch.setattr("clipkit.losses.tiles._SMALL", 0)
    if request.param == "dense":
        monkeypatch.setattr("clipkit.losses.dense.is_small", lambda features: True)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_both_directions_in_one_pass_equal_the_definition(scale: float) -> None:
    image, text = features(9, 5)
    leaf = torch.tensor(math.log(scale), dtype=torch.float64, requires_grad=True)
    given = {"scale": leaf.exp(), "image_ids": IMAGE_IDS, "caption_ids": CAPTION_IDS, "duplicates": "negative"}
    expected = infonce_by_loops(image, text, **given)
    loss = infonce(image, text, leaf.exp())
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    inputs = [image, text, leaf]
    torch.testing.assert_close(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), rtol=1e-10, atol=1e-10
    )


def test_rows_far_below_the_tiles_largest_logit_keep_their_precision() -> None:
    """Logits from -100 to 100 in one tile: a common shift would make whole rows vanish in float32."""
    image = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [-1.0, 0.02]]), dim=-1)
    image = torch.cat([image] * 40).requires_grad_()
    text = (-image.detach().roll(1, 0)).requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in (image, text)]
    for scale in (100.0, 30.0):
        loss = infonce(image, text, scale)
        logits = scale * exact[0] @ exact[1].T
        labels = torch.arange(len(image))
        expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
        ours, theirs = torch.autograd.grad(loss, [image, text]), torch.autograd.grad(expected, exact)
        torch.testing.assert_close([g.double() for g in ours], list(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pairs", [16, 300])
def test_equals_open_clip(pairs: int) -> None:
    from open_clip.loss import ClipLoss

    image, text = features(pairs, 8, dtype=torch.float32)
    ours, theirs = infonce(image, text, 14.3), ClipLoss()(image, text, 14.3)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, [image, text]), torch.autograd.grad(theirs, [image, text]), rtol=1e-4, atol=1e-6
    )


@pytest.mark.usefixtures("small_tiles")
def test_repeating_the_batch_adds_ln_2_and_leaves_each_pairs_gradient() -> None:
    image, text = features(6, 4)
    ids = torch.arange(6)
    once = infonce(image, text, 12.0, image_ids=ids, caption_ids=ids)
    twice = infonce(
        torch.cat([image, image]), torch.cat([text, text]), 12.0, image_ids=ids.repeat(2), caption_ids=ids.repeat(2)
    )
    assert (twice - once).item() == pytest.approx(math.log(2), abs=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(twice, [image, text]), torch.autograd.grad(once, [image, text]), rtol=1e-10, atol=1e-12
    )


def test_a_row_without_a_negative_gives_nothing() -> None:
    image, text = features(4, 3)
    same = torch.zeros(4, dtype=torch.long)
    loss = infonce(image, text, 50.0, image_ids=same, caption_ids=torch.arange(4), duplicates="ignore")
    assert loss.item() == pytest.approx(0, abs=1e-12)
    gradients = torch.autograd.grad(loss, [image, text])
    assert all(torch.allclose(gradient, torch.zeros_like(gradient), atol=1e-10) for gradient in gradients)
