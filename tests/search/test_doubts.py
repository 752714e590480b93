"""Doubts agree with naive loops, and the estimated share of wrong captions with the true one."""

import numpy as np
import pytest

from clipkit.search.doubts import doubts_of, doubts_of_exchanged, wrong_among


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def in_spreads(value: float, others: np.ndarray) -> float:
    low, middle = np.quantile(others, [0.25, 0.5])
    return (value - middle) / ((middle - low) / 0.6745)


def test_fit_and_agreement_are_those_of_loops() -> None:
    generator = np.random.default_rng(0)
    images, texts = (unit(generator.standard_normal((count, 8))) for count in (30, 40))
    image_of = np.sort(np.append(generator.integers(29, size=79), 29))
    text_of = generator.integers(40, size=80)
    found = doubts_of(images, texts, text_of, image_of)
    x, y = images.astype(float), texts.astype(float)
    for n, (text, image) in enumerate(zip(text_of, image_of, strict=True)):
        others = [y[text] @ y[text_of[m]] for m in range(80) if image_of[m] == image and m != n]
        assert found.fits[n] == pytest.approx(in_spreads(x[image] @ y[text], x @ y[text]), rel=1e-3, abs=1e-3)
        if others:
            similar = float(np.mean(sorted(others)[-2:]))
            assert found.agreements[n] == pytest.approx(in_spreads(similar, y @ y[text]), rel=1e-3, abs=1e-3)
            assert found.totals[n] == found.fits[n] + found.agreements[n]
        else:
            assert np.isnan(found.agreements[n])
            assert found.totals[n] == found.fits[n]


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_the_share_of_wrong_captions_is_estimated(share: float) -> None:
    generator = np.random.default_rng(1)
    topics = generator.standard_normal((1000, 16))
    image_of = np.repeat(np.arange(1000), 3)
    texts = unit(topics[image_of] + 0.5 * generator.standard_normal((3000, 16)))
    text_of = np.arange(3000)
    moved = generator.permutation(3000)[: int(share * 3000)]
    text_of[moved] = text_of[np.roll(moved, 1)]
    wrong = np.isin(np.arange(3000), moved)
    images = unit(topics)
    totals = doubts_of(images, texts, text_of, image_of).totals
    estimated, among = wrong_among(totals, doubts_of_exchanged(images, texts, text_of, image_of))
    assert estimated == pytest.approx(share, abs=0.015)
    if share:
        listed = among >= 0.8
        assert 0.8 <= wrong[listed].mean() <= 0.95
        assert listed[wrong].mean() > 0.85


def test_estimates_of_a_small_example_by_hand() -> None:
    share, among = wrong_among(np.array([6.0, 0.1, 5.0, 7.0]), np.array([-1.0, 0.0, 1.0, 2.0]))
    assert share == pytest.approx(1 / 4)  # at 2: a quarter of the captions, and all of the exchanged ones
    assert among.tolist() == pytest.approx([1 / 3, 1 / 2, 1 / 2, 1 / 4])
