"""Examples with relevance maps."""

from pathlib import Path

import torch
from PIL import Image

import clipkit
from clipkit.evaluation.example_maps import explained_mistakes


def test_the_margin_of_a_mistake_is_that_to_the_best_correct_image(tiny_clip: Path) -> None:
    model = clipkit.load(tiny_clip)
    images = [Image.new("RGB", (32, 32), color) for color in ("red", "green", "blue")]
    text = torch.nn.functional.normalize(model.encode_text(["a color"]), dim=1)
    features = torch.tensor([[0.1], [0.9], [0.8]]) * text  # image 1 is wrong; 0 and 2 are correct
    (found,) = explained_mistakes(model, [2], lambda _: {0, 2}, ["a color"], images, text, features)
    assert found["rank"] == 2
    assert [round(answer["score"], 3) for answer in found["answers"]] == [0.9, 0.8]
