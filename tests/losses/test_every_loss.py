"""Properties of every loss in the table: its definition by loops, slices of rows, order, extremes.

A new row is tested here as soon as `oracles.py` has its `NAME_by_loops`.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipkit import losses
from clipkit.catalogue import LOSSES, LossRow, Need
from clipkit.errors import BatchError
from tests.losses import oracles
from tests.losses.oracles import CAPTION_IDS, DUPLICATES, IMAGE_IDS, features

G = len(IMAGE_IDS)
Loss = Callable[..., Tensor]
# Values that each option is tested with.
VALUES: dict[str, tuple[Any, ...]] = {
    "duplicates": DUPLICATES,
    "label_smoothing": (0.0, 0.1),
    "margin": (0.6,),
    "mining": ("all", "semihard", "hard"),
    "distance": ("cosine", "euclidean"),
}


def arguments(row: LossRow, image: Tensor, scale: Tensor | float, image_ids: Any, caption_ids: Any) -> dict[str, Any]:
    """Return what the row says that the loss needs."""
    teacher = [own.detach()[: len(image)].to(image.dtype) for own in features(G, 6, seed=7)]
    values = {
        "image_ids": image_ids,
        "caption_ids": caption_ids,
        "scale": scale,
        "bias": -1.0,
        "negative_text_features": features(4, image.shape[1], seed=9)[0].detach().to(image.dtype),
        "teacher_image_features": teacher[0],
        "teacher_text_features": teacher[1],
        "teacher_scale": 20.0,
    }
    return {name: values[name] for need in row.needs for name in need.arguments}


def ours(name: str, options: dict[str, Any]) -> Loss:
    """Return the function (image, text, scale, ids…, rows) -> our loss."""

    def value(
        image: Tensor, text: Tensor, scale: Tensor | float, image_ids: Any, caption_ids: Any, rows: slice | None = None
    ) -> Tensor:
        given = arguments(LOSSES[name], image, scale, image_ids, caption_ids)
        return getattr(losses, name)(image, text, **given, **options, rows=rows)

    return value


def by_loops(name: str, options: dict[str, Any]) -> Loss:
    """Return the function (image, text, scale, ids…) -> the loss by its definition."""

    def value(image: Tensor, text: Tensor, scale: Tensor, image_ids: list[int], caption_ids: list[int]) -> Tensor:
        given = arguments(LOSSES[name], image, scale, image_ids, caption_ids)
        return getattr(oracles, f"{name}_by_loops")(image, text, **given, **options)

    return value


CASES: list[tuple[str, dict[str, Any]]] = [
    (row.name, dict(zip(options, values, strict=True)))
    for row in LOSSES.values()
    for options in [[option for option in row.options if option in VALUES]]
    for values in itertools.product(*(VALUES[option] for option in options))
]
NAMES = [f"{name} {' '.join(map(str, options.values()))}" for name, options in CASES]
every_loss = pytest.mark.parametrize(("name", "options"), CASES, ids=NAMES)
ONE_OF_EACH = list({name: (name, options) for name, options in CASES}.values())
WITH_IDS = [row.name for row in LOSSES.values() if Need.IDS in row.needs]
NEEDS_A_NEGATIVE = ["ntxent", "supcon", "dcl", "triplet", "contrastive"]


@pytest.fixture(autouse=True)
def small_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use several bands and tiles, the last ones partial."""
    monkeypatch.setattr("clipkit.losses.bands._HELD", 4 * G)
    monkeypatch.setattr("clipkit.losses.plain._CPU_TILE", (4, 3))


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    image, text = features(G, 5)
    return image, text, torch.tensor(2.0, dtype=torch.float64, requires_grad=True)


def gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if own is None else own for own, leaf in zip(found, leaves, strict=True)]


@every_loss
def test_equals_its_definition_with_its_gradients(name: str, options: dict[str, Any]) -> None:
    image, text, leaf = inputs()
    loss = ours(name, options)(image, text, leaf.exp(), torch.tensor(IMAGE_IDS), torch.tensor(CAPTION_IDS))
    expected = by_loops(name, options)(image, text, leaf.exp(), IMAGE_IDS, CAPTION_IDS)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    for mine, wanted, own in zip(
        *(gradients(value, [image, text, leaf]) for value in (loss, expected)), (image, text, None), strict=True
    ):
        if own is not None and options.get("distance") == "euclidean":  # ‖x − y‖ of unit vectors, along the sphere
            mine, wanted = (one - (one * own).sum(dim=1, keepdim=True) * own for one in (mine, wanted))
        torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-10)


@every_loss
def test_slices_of_rows_sum_to_the_whole_with_their_gradients(name: str, options: dict[str, Any]) -> None:
    image, text, leaf = inputs()
    ids = torch.tensor(IMAGE_IDS), torch.tensor(CAPTION_IDS)
    whole = ours(name, options)(image, text, leaf.exp(), *ids)
    cut = (slice(0, 2), slice(2, 3), slice(3, G))
    parts = sum(ours(name, options)(image, text, leaf.exp(), *ids, rows=rows) for rows in cut)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    leaves = [image, text, leaf]
    torch.testing.assert_close(gradients(parts, leaves), gradients(whole, leaves), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), ONE_OF_EACH, ids=[name for name, _ in ONE_OF_EACH])
@given(seed=st.integers(0, 200))
@settings(max_examples=10, deadline=None)
def test_a_common_permutation_changes_nothing(name: str, options: dict[str, Any], seed: int) -> None:
    if name == "distillation":
        return  # the teacher's rows would have to move too
    generator = torch.Generator().manual_seed(seed)
    image, text = features(G, 5, seed)
    ids = torch.randint(0, 6, (2, G), generator=generator)
    order = torch.randperm(G, generator=generator)
    loss = ours(name, options)
    moved = loss(image[order], text[order], 10.0, ids[0, order], ids[1, order])
    assert moved.item() == pytest.approx(loss(image, text, 10.0, *ids).item(), abs=1e-10)


@pytest.mark.parametrize(("name", "options"), CASES, ids=NAMES)
def test_chance_of_the_table_is_the_loss_at_equal_similarities(name: str, options: dict[str, Any]) -> None:
    row = LOSSES[name]
    if row.chance is None:
        pytest.skip("this loss has no such level")
    same = torch.eye(5, dtype=torch.float64)[torch.zeros(G).long()]  # equal to the bit, for semihard
    given = arguments(row, same, 7.0, torch.arange(G), torch.arange(G))
    if Need.NEGATIVES in row.needs:  # one for each pair, as in a run
        given["negative_text_features"] = same
    loss = getattr(losses, name)(same, same, **given, **options)
    assert loss.item() == pytest.approx(row.chance(G, options), abs=1e-9)


@pytest.mark.parametrize("name", WITH_IDS)
@given(seed=st.integers(0, 100), pair=st.integers(0, G - 1))
@settings(max_examples=15, deadline=None)
def test_raising_the_similarity_of_a_pair_lowers_the_loss(name: str, seed: int, pair: int) -> None:
    """With unit vectors as texts, the images are the rows of the similarity matrix."""
    similarity = 0.5 * torch.rand(G, G, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    higher = similarity.clone()
    higher[pair, pair] += 0.1
    eye = torch.eye(G, dtype=torch.float64)
    ids = torch.arange(G), torch.arange(G)
    options = {"margin": 1.5} if name == "triplet" else {}
    if name == "negclip":
        before, after = (losses.negclip(own, eye, torch.zeros(2, G).double(), 5.0) for own in (similarity, higher))
    elif name in ("ntxent", "supcon", "dcl"):
        # Images compete with images too: extra dimensions make them orthogonal to each other.
        wide = [torch.cat([own, torch.eye(G).double() * 3], dim=1) for own in (similarity, higher)]
        texts = torch.cat([eye, torch.zeros(G, G).double()], dim=1)
        before, after = (_cross_only(name, own, texts) for own in wide)
    else:
        before, after = (ours(name, options)(own, eye, 5.0, *ids) for own in (similarity, higher))
    assert after < before


def _cross_only(name: str, image: Tensor, text: Tensor) -> Tensor:
    # The features need not have unit length, because no sum has the similarity of an image with itself.
    return getattr(losses, name)(image, text, 1.0)


@pytest.mark.parametrize(("name", "options"), ONE_OF_EACH, ids=[name for name, _ in ONE_OF_EACH])
def test_gradients_are_right_by_finite_differences(name: str, options: dict[str, Any]) -> None:
    image, text = features(5, 3, seed=3)
    ids = torch.tensor([0, 1, 2, 0, 4]), torch.arange(5)
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y, s: ours(name, options)(x, y, s.exp(), *ids), (image, text, scale))


@pytest.mark.parametrize(("name", "options"), ONE_OF_EACH, ids=[name for name, _ in ONE_OF_EACH])
@pytest.mark.parametrize("case", ["random", "perfect", "opposite", "collapsed"])
def test_is_finite_and_float32_for_bfloat16_at_extremes(name: str, options: dict[str, Any], case: str) -> None:
    image, text = (own.detach().float() for own in features(G, 5))
    text = {"random": text, "perfect": image.clone(), "opposite": -image, "collapsed": image[:1].expand(G, 5)}[case]
    image = image[:1].expand(G, 5).contiguous() if case == "collapsed" else image
    leaves = [own.bfloat16().requires_grad_() for own in (image, text)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ours(name, options)(*leaves, torch.tensor(100.0), torch.tensor(IMAGE_IDS), torch.tensor(CAPTION_IDS))
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert all(own.isfinite().all() for own in gradients(loss, leaves))


@every_loss
def test_an_anchor_without_a_negative_keeps_values_and_gradients_finite(name: str, options: dict[str, Any]) -> None:
    """The second pair shares its image with the first and its caption with the third."""
    image, text, leaf = inputs()
    image_ids, caption_ids = [0, 0, 1], [0, 1, 1]
    own = [part[:3] for part in (image, text)]
    loss = ours(name, options)(*own, leaf.exp(), torch.tensor(image_ids), torch.tensor(caption_ids))
    expected = by_loops(name, options)(*own, leaf.exp(), image_ids, caption_ids)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    found = gradients(loss, [image, text, leaf])
    assert all(one.isfinite().all() for one in found)
    if options.get("distance") != "euclidean" and expected.requires_grad:
        torch.testing.assert_close(found, gradients(expected, [image, text, leaf]), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_few_violations_among_many_are_summed_exactly() -> None:
    """In float32 too, although they are a small difference of large sums."""
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(0.7 + torch.randn(1800, 16, generator=generator), dim=-1) for _ in range(2))
    text = F.normalize(image + 0.02 * text, dim=-1)
    single, double = (
        losses.triplet(image.to(dtype), text.to(dtype), margin=0.01, mining="all")
        for dtype in (torch.float32, torch.float64)
    )
    assert single.item() == pytest.approx(double.item(), rel=1e-4)


def test_no_rows_count_nothing() -> None:
    image, text = features(4, 3)
    for name in ("triplet", "contrastive"):
        assert getattr(losses, name)(image, text, rows=slice(2, 2)).item() == 0


@pytest.mark.parametrize("name", NEEDS_A_NEGATIVE)
def test_a_batch_without_a_negative_is_refused_with_its_counts(name: str) -> None:
    image, text = features(4, 3)
    options = {} if name == "supcon" else {"duplicates": "positive"}
    own = {} if name in ("triplet", "contrastive") else {"scale": 1.0}
    with pytest.raises(BatchError, match=r"\b4 pairs .*\b1 .*images .*\b4 .*captions"):
        getattr(losses, name)(
            image, text, **own, image_ids=torch.zeros(4).long(), caption_ids=torch.arange(4), **options
        )
    with pytest.raises(BatchError, match="a batch of 1 pair has no negatives"):
        getattr(losses, name)(image[:1], text[:1], **own)


def test_a_batch_of_one_pair_works_for_the_other_losses() -> None:
    image, text = features(1, 3)
    assert losses.infonce(image, text, 5.0).item() == pytest.approx(0, abs=1e-12)
    assert losses.sigmoid(image, text, 0.0, 0.0).item() == pytest.approx(math.log(2))
    assert losses.cross_consistency(image, text).item() == pytest.approx(0, abs=1e-12)


def test_one_kind_of_ids_alone_is_refused() -> None:
    image, text = features(4, 3)
    for name in ("ntxent", "dcl", "supcon"):
        with pytest.raises(ValueError, match="only one of image_ids and caption_ids"):
            getattr(losses, name)(image, text, 1.0, image_ids=torch.arange(4))
    for name in ("triplet", "contrastive"):
        with pytest.raises(ValueError, match="only one of image_ids and caption_ids"):
            getattr(losses, name)(image, text, caption_ids=torch.arange(4))


def test_no_loss_stores_the_matrix_between_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """For 256 pairs autograd keeps no tensor as large as one 256 × 256 matrix."""
    monkeypatch.setattr("clipkit.losses.bands._HELD", 32 * 256)
    image, text = (own.detach().float().requires_grad_() for own in features(256, 8))
    for name in ("triplet", "contrastive", "ntxent", "cross_consistency"):
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            scale = [10.0] if name == "ntxent" else []
            getattr(losses, name)(image, text, *scale).backward()
        assert max(kept, default=0) < 256 * 256, name
