import math
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipkit.losses import infonce
from tests.losses.oracles import features, infonce_by_loops

tiles = import_module("clipkit.losses.tiles")

IMAGE_IDS = [0, 1, 2, 0, 4, 5, 1, 7, 0]
CAPTION_IDS = [0, 1, 2, 3, 1, 5, 6, 7, 3]
DUPLICATES = ("positive", "ignore", "negative")


@pytest.fixture(params=["tiled", "small"])
def small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles, of which the last are cut, even for a handful of pairs; and the path for small batches."""
    if request.param == "tiled":
        monkeypatch.setattr(tiles, "_CPU_TILE", (4, 3))
        monkeypatch.setattr(tiles, "_SMALL", 0)


def log_scale(scale: float) -> Tensor:
    return torch.tensor(math.log(scale), dtype=torch.float64, requires_grad=True)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("duplicates", DUPLICATES)
def test_equals_the_definition_with_its_gradients(scale: float, duplicates: str) -> None:
    image, text = features(9, 5)
    leaf = log_scale(scale)
    expected = infonce_by_loops(image, text, leaf.exp(), IMAGE_IDS, CAPTION_IDS, duplicates)
    loss = infonce(
        image,
        text,
        leaf.exp(),
        image_ids=torch.tensor(IMAGE_IDS),
        caption_ids=torch.tensor(CAPTION_IDS),
        duplicates=duplicates,
    )
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    inputs = [image, text, leaf]
    torch.testing.assert_close(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), rtol=1e-10, atol=1e-10
    )


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("duplicates", DUPLICATES)
def test_slices_of_rows_sum_to_the_whole_with_their_gradients(duplicates: str) -> None:
    image, text = features(9, 4)
    leaf = log_scale(20.0)
    ids = {"image_ids": torch.tensor(IMAGE_IDS), "caption_ids": torch.tensor(CAPTION_IDS), "duplicates": duplicates}
    whole = infonce(image, text, leaf.exp(), **ids)
    parts = sum(infonce(image, text, leaf.exp(), **ids, rows=rows) for rows in (slice(0, 2), slice(2, 3), slice(3, 9)))
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    inputs = [image, text, leaf]
    torch.testing.assert_close(
        torch.autograd.grad(parts, inputs), torch.autograd.grad(whole, inputs), rtol=1e-10, atol=1e-12
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


@given(pairs=st.integers(2, 12), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_chance_level_is_ln_of_the_batch(pairs: int, seed: int) -> None:
    image, text = features(pairs, 5, seed)
    ids = torch.randint(0, 4, (pairs,), generator=torch.Generator().manual_seed(seed))
    assert infonce(image, text, 0.0).item() == pytest.approx(math.log(pairs), abs=1e-12)
    assert infonce(image, text, 0.0, image_ids=ids, caption_ids=ids).item() == pytest.approx(math.log(pairs), abs=1e-12)


@given(pairs=st.integers(2, 10), seed=st.integers(0, 100), duplicates=st.sampled_from(DUPLICATES))
@settings(max_examples=30, deadline=None)
def test_a_common_permutation_changes_nothing(pairs: int, seed: int, duplicates: str) -> None:
    image, text = features(pairs, 5, seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(pairs, generator=generator)
    ids = torch.randint(0, 6, (2, pairs), generator=generator)

    def loss(order: Tensor) -> float:
        return infonce(
            image[order], text[order], 10.0, image_ids=ids[0, order], caption_ids=ids[1, order], duplicates=duplicates
        ).item()

    assert loss(order) == pytest.approx(loss(torch.arange(pairs)), abs=1e-12)


@given(pairs=st.integers(2, 8), pair=st.integers(0, 7), seed=st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_raising_one_pairs_own_similarity_lowers_the_loss(pairs: int, pair: int, seed: int) -> None:
    """In the similarity matrix itself: with unit vectors as texts, the images are its rows."""
    pair %= pairs
    similarity = torch.rand(pairs, pairs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    higher = similarity.clone()
    higher[pair, pair] += 0.1
    eye = torch.eye(pairs, dtype=torch.float64)
    assert infonce(higher, eye, 5.0) < infonce(similarity, eye, 5.0)


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


@pytest.mark.parametrize("pairs", [32, 200])
def test_is_finite_and_float32_for_bfloat16_at_the_largest_scale(pairs: int) -> None:
    image, text = features(pairs, 8, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = infonce(image.bfloat16(), text.bfloat16(), torch.tensor(100.0))
        exact = infonce(image.bfloat16().double(), text.bfloat16().double(), 100.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, [image, text]))


def test_ids_come_together() -> None:
    image, text = features(4, 3)
    with pytest.raises(ValueError, match="belong together"):
        infonce(image, text, 1.0, image_ids=torch.arange(4))
