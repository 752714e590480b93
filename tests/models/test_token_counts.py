from collections.abc import Callable
from pathlib import Path

import pytest

from clipkit.errors import ModelError
from clipkit.models import DualEncoder, load
from clipkit.models.absent import absent_text_tower
from clipkit.models.token_counts import token_counter

TEXTS = ["a dog", "Two cats sit, and a third one sleeps.", "naïve café"]


def agrees(model: DualEncoder) -> Callable[[list[str]], list[int]]:
    """Its counter, which says of captions that are not cut what the tokenizer's mask says."""
    count = token_counter(model)
    assert count(TEXTS) == model.text.tokenize(TEXTS)["attention_mask"].sum(dim=1).tolist()
    return count


def test_of_transformers(tiny_clip: Path) -> None:
    count = agrees(load(tiny_clip, device="cpu"))
    longer = count(["dog " * 300])[0]
    assert longer - count(["dog " * 200])[0] >= 100  # not cut


def test_of_open_clip() -> None:
    count = agrees(load("open_clip:RN50", device="cpu"))
    assert count(["dog " * 300]) == [302]


def test_a_model_without_text_has_none(tiny_clip: Path) -> None:
    model = load(tiny_clip, device="cpu")
    model.text = absent_text_tower()
    with pytest.raises(ModelError, match="reads no captions"):
        token_counter(model)
