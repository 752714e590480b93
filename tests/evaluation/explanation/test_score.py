"""Deletion, insertion and occlusion, and their averages over a dataset."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor

import clipkit
from clipkit.evaluation.explanation import score_explanations
from clipkit.evaluation.explanation.occlusion import CELLS, occlusion_maps
from clipkit.evaluation.explanation.score import center, curves, occlusion, rank_correlation, scored, windowed
from clipkit.evaluation.explanation.seen import Seen
from clipkit.models import DualEncoder
from tests.conftest import draw
from tests.models.families import build


@pytest.fixture(scope="module")
def clip(tiny_clip: Path) -> DualEncoder:
    return clipkit.load(str(tiny_clip))


@torch.no_grad()
def cosine(model: DualEncoder, seen: Seen, text: Tensor, hidden: list[tuple[int, int]]) -> float:
    """Cosine with the image's mean color in the hidden cells of a 7 × 7 grid, pixel by pixel."""
    pixels = seen.inputs["pixel_values"].clone()
    mean = pixels.mean(dim=(2, 3))[0]
    for y in range(32):
        for x in range(32):
            if (int((y + 0.5) / 32 * CELLS), int((x + 0.5) / 32 * CELLS)) in hidden:
                pixels[0, :, y, x] = mean
    return float(F.normalize(model.image({"pixel_values": pixels}), dim=-1)[0] @ text)


def test_curves_hide_and_show_the_most_relevant_cells_first(clip: DualEncoder) -> None:
    seen, text = Seen.by(clip, draw("red", "square", 32, 3)), F.normalize(torch.randn(24), dim=0)
    relevance = torch.rand(CELLS, CELLS)
    order = sorted(((y, x) for y in range(CELLS) for x in range(CELLS)), key=lambda c: -float(relevance[c]))
    deletion, insertion = curves(clip, seen, text, relevance)
    for step in (0, 3, 10):
        count = round(step * 49 / 10)
        assert deletion[step] == pytest.approx(cosine(clip, seen, text, order[:count]), abs=1e-5)
        assert insertion[step] == pytest.approx(cosine(clip, seen, text, order[count:]), abs=1e-5)
    scores = scored(clip, seen, text, relevance)
    assert scores.map.deletion == pytest.approx((sum(deletion) - (deletion[0] + deletion[-1]) / 2) / 10)


def test_occlusion_is_the_loss_of_cosine(clip: DualEncoder) -> None:
    seen, text = Seen.by(clip, draw("blue", "cross", 32, 3)), F.normalize(torch.randn(24), dim=0)
    lost = occlusion(clip, seen, text)
    whole = cosine(clip, seen, text, [])
    assert lost.shape == (5, 5)
    for y, x in ((0, 0), (3, 4)):
        hidden = [(b, a) for b in range(y, y + 3) for a in range(x, x + 3)]
        assert float(lost[y, x]) == pytest.approx(whole - cosine(clip, seen, text, hidden), abs=1e-5)
    other = F.normalize(torch.randn(24), dim=0)
    for map_, one in zip(occlusion_maps(clip, seen, torch.stack([text, other])), (text, other), strict=True):
        for y, x in ((0, 0), (3, 5)):
            windows = [
                [(b, a) for b in (top, top + 1) for a in (left, left + 1)]
                for top in range(6)
                for left in range(6)
                if y - top in (0, 1) and x - left in (0, 1)
            ]
            drops = [cosine(clip, seen, one, []) - cosine(clip, seen, one, hidden) for hidden in windows]
            assert float(map_[y, x]) == pytest.approx(np.mean(drops), abs=1e-5)
    cells = torch.rand(CELLS, CELLS)
    assert float(windowed(cells)[0, 4]) == pytest.approx(float(cells[:3, 4:].sum()))


def test_maps_without_information_do_not_agree_with_occlusion(clip: DualEncoder) -> None:
    """All windows have the same size: neither a constant map nor positive random maps gain by the border."""
    seen, text = Seen.by(clip, draw("blue", "cross", 32, 3)), F.normalize(torch.randn(24), dim=0)
    assert scored(clip, seen, text, torch.ones(CELLS, CELLS)).occlusion is None
    count = torch.ones(CELLS, CELLS) + 1e-3 * torch.rand(CELLS, CELLS)  # a cosine that drops with the hidden area
    found = [rank_correlation(windowed(torch.rand(CELLS, CELLS)), windowed(count)) for _ in range(200)]
    assert abs(np.mean([one or 0.0 for one in found])) < 0.1
    assert scored(clip, seen, text, torch.rand(CELLS, CELLS)).center_occlusion == rank_correlation(
        windowed(center()), occlusion(clip, seen, text)
    )


def test_rank_correlation_is_scipys() -> None:
    first, second = torch.tensor([1.0, 2, 2, 4, 0]), torch.tensor([3.0, 1, 2, 2, 2])
    assert rank_correlation(first, second) == pytest.approx(scipy.stats.spearmanr(first, second)[0], abs=1e-6)
    assert rank_correlation(first, torch.ones(5)) is None


def test_patches_of_siglip2_are_hidden_in_place(tmp_path: Path) -> None:
    model = clipkit.load(str(build("siglip2", tmp_path)))
    seen = Seen.by(model, draw("red", "circle").resize((40, 24)))
    rows, columns = seen.shape or (0, 0)
    keep = torch.ones(1, rows, columns, dtype=torch.bool)
    keep[0, 1, 2] = False
    changed = (seen.mixed(keep.float())["pixel_values"] != seen.inputs["pixel_values"]).any(dim=-1)[0]
    assert changed.nonzero().flatten().tolist() == [columns + 2]
    assert seen.pixels.shape == (8 * rows, 8 * columns, 3)


def test_scores_of_a_dataset_are_means_over_its_images(clip: DualEncoder, shapes: Path) -> None:
    result = score_explanations(clip, str(shapes / "captions.csv"), images=3)
    metrics: dict[str, Any] = result["metrics"]
    assert result["data"]["images"] == 3
    gain = metrics["deletion_auc"]["chance"] - metrics["deletion_auc"]["value"]
    assert metrics["deletion_gain_over_random"]["value"] == pytest.approx(gain)
    assert metrics["insertion_gain_over_center"]["low"] <= metrics["insertion_gain_over_center"]["high"]
    assert np.isfinite(metrics["occlusion_correlation"]["value"])
    assert np.isfinite(metrics["occlusion_correlation_gain_over_center"]["value"])
    json.dumps(result)
