"""Inputs of a model in Python."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clipkit
from clipkit.errors import UserError
from clipkit.models import DualEncoder
from tests.conftest import draw


@pytest.fixture(scope="module")
def model(tiny_clip: Path) -> DualEncoder:
    return clipkit.load(str(tiny_clip))


def test_single_several_and_no_inputs(model: DualEncoder, tmp_path: Path) -> None:
    images = [draw("red", "circle"), draw("blue", "cross")]
    images[0].save(tmp_path / "a.png")
    features = model.encode_image(images)
    for one in (images[0], np.asarray(images[0]), tmp_path / "a.png", str(tmp_path / "a.png")):
        torch.testing.assert_close(model.encode_image(one), features[:1])
    for several in (tuple(images), iter(images), np.stack([np.asarray(image) for image in images])):
        if isinstance(several, np.ndarray):  # an array is one image
            with pytest.raises(UserError, match=r"shape \(2, 32, 32, 3\)"):
                model.encode_image(several)
        else:
            torch.testing.assert_close(model.encode_image(several), features)
    texts = model.encode_text(["a dog", "a cat"])
    torch.testing.assert_close(model.encode_text("a dog"), texts[:1])
    torch.testing.assert_close(model.encode_text(text for text in ("a dog", "a cat")), texts)
    assert model.encode_image([]).shape == model.encode_text([]).shape == (0, 24)
    assert model.classify([], ["a dog", "a cat"]).shape == (0, 2)
    assert (model.encode_image([]) @ texts.T).shape == (0, 2)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda model: model.encode_image(torch.zeros(3, 8, 8)), "a Tensor is not an image; give a path"),
        (lambda model: model.encode_image([3]), "an int is not an image"),
        (lambda model: model.encode_image(None), "None is not an image"),
        (lambda model: model.encode_image([draw("red", "circle")], batch_size=0), "batch_size 0"),
        (lambda model: model.encode_text(["a", None]), "is None, not a string"),
        (lambda model: model.encode_text(7), "an int is not a text"),
        (lambda model: model.encode_text("a", batch_size=-1), "batch_size -1"),
        (lambda model: model.classify(draw("red", "circle"), []), "at least one text"),
    ],
)
def test_invalid_inputs_are_refused(ask: Callable[[DualEncoder], Any], message: str, model: DualEncoder) -> None:
    with pytest.raises(UserError, match=message):
        ask(model)
