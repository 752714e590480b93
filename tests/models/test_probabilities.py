"""Probabilities of texts for images, against transformers."""

from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

import clipkit
from clipkit.errors import ModelError
from clipkit.models.image_processors import read_processor
from clipkit.models.probabilities import probabilities
from tests.models.families import build

TEXTS = ["a cat", "a dog", "two dogs run"]


def logits_of_transformers(folder: Path, images: list[Image.Image]) -> torch.Tensor:
    native = transformers.AutoModel.from_pretrained(folder).eval()
    processor = read_processor(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    longest = native.config.text_config.max_position_embeddings
    texts = tokenizer(TEXTS, padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        return native(**processor(images, return_tensors="pt"), **texts).logits_per_image


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2"])
def test_classify_equals_the_probabilities_of_transformers(family: str, images: list[Path], tmp_path: Path) -> None:
    model = clipkit.load(build(family, tmp_path / "start"))
    if model.logit_bias is not None:
        with torch.no_grad():
            model.logit_scale.fill_(2.0), model.logit_bias.fill_(-1.5)
    model.save(tmp_path / "model")
    opened = [Image.open(path).convert("RGB") for path in images]
    logits = logits_of_transformers(tmp_path / "model", opened)
    model = clipkit.load(tmp_path / "model")
    softmax = model.classify(opened, TEXTS, probabilities="softmax")
    torch.testing.assert_close(softmax, logits.softmax(dim=1), rtol=0, atol=1e-5)
    automatic = model.classify(opened, TEXTS)
    if family == "clip":
        assert torch.equal(automatic, softmax)
    else:
        torch.testing.assert_close(automatic, logits.sigmoid(), rtol=0, atol=1e-5)
        assert torch.equal(model.classify(opened, TEXTS, probabilities="sigmoid"), automatic)


def test_sigmoid_needs_a_bias(tiny_clip: Path) -> None:
    similarities = torch.tensor([[0.1, 0.2]])
    model = clipkit.load(tiny_clip)
    with pytest.raises(ModelError, match="probabilities 'sigmoid'.*bias") as caught:
        model.probabilities(similarities, "sigmoid")
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="probabilities 'logistic'.*auto, sigmoid or softmax"):
        probabilities(similarities, 10.0, -1.0, "logistic")  # type: ignore[arg-type]
