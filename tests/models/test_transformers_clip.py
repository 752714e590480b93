"""CLIP, compared with transformers."""

from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoTokenizer, CLIPModel

import clipkit
from clipkit.models.blocks import transformers_blocks
from clipkit.models.image_processors import read_processor

TEXTS = [
    "a red square",
    "two dogs running through a low lying body of water .",
    "a",
    "A  RED\nsquare",
    "x " * 100,
]


@torch.inference_mode()
def test_features_equal_transformers(tiny_clip: Path, images: list[Path]) -> None:
    model = clipkit.load(str(tiny_clip))
    native = CLIPModel.from_pretrained(tiny_clip).eval()
    opened = [Image.open(image).convert("RGB") for image in images]
    pixels = read_processor(tiny_clip)(opened, return_tensors="pt")["pixel_values"]
    image = F.normalize(native.get_image_features(pixels).pooler_output, dim=-1)
    torch.testing.assert_close(model.encode_image(images), image, rtol=0, atol=1e-5)
    tokens = AutoTokenizer.from_pretrained(tiny_clip)(
        TEXTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    text = F.normalize(native.get_text_features(**tokens).pooler_output, dim=-1)
    torch.testing.assert_close(model.encode_text(TEXTS), text, rtol=0, atol=1e-5)


def test_paths_images_and_arrays_have_equal_features(tiny_clip: Path, images: list[Path]) -> None:
    import numpy as np

    model = clipkit.load(str(tiny_clip))
    path = images[0]
    opened = Image.open(path)
    expected = model.encode_image([path])
    for other in ([str(path)], [opened], [np.asarray(opened)], path, str(path)):
        torch.testing.assert_close(model.encode_image(other), expected, rtol=0, atol=0)


def test_features_do_not_depend_on_the_batch(tiny_clip: Path, images: list[Path]) -> None:
    model = clipkit.load(str(tiny_clip))
    torch.testing.assert_close(model.encode_image(images, 1), model.encode_image(images, 64), rtol=0, atol=1e-6)
    torch.testing.assert_close(model.encode_text(TEXTS, 1), model.encode_text(TEXTS, 64), rtol=0, atol=1e-6)


def test_classify_is_a_softmax_of_scaled_cosines(tiny_clip: Path, images: list[Path]) -> None:
    model = clipkit.load(str(tiny_clip))
    probabilities = model.classify(images, TEXTS[:3])
    expected = (model.encode_image(images) @ model.encode_text(TEXTS[:3]).T * model.logit_scale.exp()).softmax(-1)
    torch.testing.assert_close(probabilities, expected.detach())
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(len(images)))


def test_saved_model_opens_with_transformers(tiny_clip: Path, images: list[Path], tmp_path: Path) -> None:
    model = clipkit.load(str(tiny_clip))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.save(tmp_path / "saved")
    native = CLIPModel.from_pretrained(tmp_path / "saved").eval()
    again = clipkit.load(str(tmp_path / "saved"))
    torch.testing.assert_close(again.encode_text(TEXTS), model.encode_text(TEXTS))
    torch.testing.assert_close(again.encode_image(images), model.encode_image(images))
    for name, value in native.state_dict().items():
        assert torch.equal(value, model.backend.native.state_dict()[name]), name


def test_blocks_hold_every_parameter_once_in_order(tiny_clip: Path) -> None:
    native = CLIPModel.from_pretrained(tiny_clip)
    for tower in (native.vision_model, native.text_model):
        blocks = transformers_blocks(tower)
        assert len(blocks) == 3
        assert sorted(chain(*blocks)) == sorted(name for name, _ in tower.named_parameters())
    assert "post_layernorm.weight" in transformers_blocks(native.vision_model)[-1]
    assert "pre_layrnorm.weight" in transformers_blocks(native.vision_model)[0]
