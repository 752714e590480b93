from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from clipkit.errors import ModelError
from clipkit.models import DualEncoder, load
from clipkit.models.absent import absent_text_tower
from clipkit.models.token_counts import token_counter
from clipkit.models.tokenizer import load_tokenizer

TEXTS = ["a dog", "Two cats sit, and a third one sleeps.", "naïve café"]


def agrees(model: DualEncoder) -> Callable[[list[str]], list[int]]:
    """Return the model's counter after checking that it equals the tokenizer's mask for captions that are not cut."""
    count = token_counter(model)
    assert count(TEXTS) == model.text.tokenize(TEXTS)["attention_mask"].sum(dim=1).tolist()
    return count


def test_counts_of_transformers_tokenizers(tiny_clip: Path) -> None:
    count = agrees(load(tiny_clip, device="cpu"))
    longer = count(["dog " * 300])[0]
    assert longer - count(["dog " * 200])[0] >= 100  # not cut


def test_counts_of_open_clip_tokenizers() -> None:
    count = agrees(load("open_clip:RN50", device="cpu"))
    assert count(["dog " * 300]) == [302]


def test_model_without_a_text_tower_is_refused(tiny_clip: Path) -> None:
    model = load(tiny_clip, device="cpu")
    model.text = absent_text_tower()
    with pytest.raises(ModelError, match="no text tower"):
        token_counter(model)


def test_a_tokenizer_without_a_limit_needs_a_context_length(tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog"]
    transformers.BertTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="model_max_length.*model.text.context_length") as refused:
        load_tokenizer(str(tmp_path), None)
    assert str(tmp_path) in str(refused.value)
    assert load_tokenizer(str(tmp_path), 16)(["a dog " * 20])["input_ids"].shape == (1, 16)
