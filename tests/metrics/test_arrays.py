"""NumPy arrays and lists give the figures of tensors; anything else is one line."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clipkit import metrics

Convert = Callable[[Tensor], Any]
FORMS: dict[str, Convert] = {
    "arrays": lambda x: x.numpy(),
    "float64 and int32 arrays": lambda x: x.numpy().astype(np.float64 if x.is_floating_point() else np.int32),
    "lists": lambda x: x.tolist(),
    "reversed twice": lambda x: x.flip(0).numpy()[::-1].copy(),
}


def unit(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(shape[0])), dim=-1)


IMAGES, TEXTS, PLACES = unit(6, 8), unit(9, 8), torch.tensor([0, 0, 1, 2, 2, 3, 4, 5, 5])
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
CALLS: dict[str, Callable[[Convert], Any]] = {
    "retrieval": lambda c: metrics.retrieval(c(IMAGES), c(TEXTS), c(PLACES)),
    "retrieval by name": lambda c: metrics.retrieval(
        text_features=c(TEXTS), image_features=c(IMAGES), image_of_text=c(PLACES), ks=[1, 2]
    ),
    "pairs": lambda c: metrics.retrieval(c(IMAGES), c(TEXTS), c(torch.stack([PLACES, torch.arange(9)], dim=1))),
    "classification": lambda c: metrics.classification(c(IMAGES), c(LABELS)),
    "chance": lambda c: metrics.retrieval_chance(6, 9, c(PLACES)),
    "similarity": lambda c: metrics.similarity(c(IMAGES), c(TEXTS)).tolist(),
    "neighbors": lambda c: metrics.knn_scores(c(TEXTS), c(IMAGES), c(LABELS), 3, k=2).tolist(),
    "alignment": lambda c: metrics.alignment(c(IMAGES), c(TEXTS[:6])).tolist(),
    "uniformity": lambda c: metrics.uniformity(c(IMAGES)),
    "confusion": lambda c: metrics.confusion(c(LABELS), c(LABELS.flip(0)), 3).tolist(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("call", CALLS)
def test_arrays_give_the_figures_of_tensors(call: str, form: str) -> None:
    expected, found = CALLS[call](lambda tensor: tensor), CALLS[call](FORMS[form])
    if isinstance(expected, dict):
        assert found == pytest.approx(expected, abs=1e-6)
    else:
        assert np.asarray(found) == pytest.approx(np.asarray(expected), abs=1e-5)


def test_several_labels_and_calibration_from_arrays() -> None:
    labels = np.random.default_rng(0).random((6, 8)) > 0.5
    assert metrics.classification(IMAGES.numpy(), labels) == metrics.classification(IMAGES, torch.from_numpy(labels))  # type: ignore[arg-type]
    assert metrics.calibration_error(np.array([0.5, 1.0]), np.array([False, True])) == 0.25  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", TEXTS, PLACES), "image_features is a str"),
        ((IMAGES, [["a"]], PLACES), "text_features is a list"),
        ((IMAGES, TEXTS, {}), "image_of_text is a dict"),
        ((np.array([["a"]]), TEXTS, PLACES), "image_features is a ndarray"),
        ((IMAGES[:, :5].numpy(), TEXTS.numpy(), PLACES), r"\(6, 5\) and \(9, 8\)"),
        ((IMAGES[0].numpy(), TEXTS[0].numpy(), PLACES), r"\(8,\) and \(8,\)"),
        ((np.full((6, 8), np.nan), TEXTS, PLACES), "not finite"),
        ((IMAGES.numpy(), TEXTS.numpy(), np.array([0, 9])), "image"),
    ],
)
def test_other_inputs_are_one_line(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        metrics.retrieval(*arguments)
    assert "\n" not in str(raised.value)
