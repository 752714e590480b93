"""Relevance maps: oracles by hand, every family, and single tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import clipkit
from clipkit.errors import ModelError
from clipkit.evaluation.explanation.integrated import integrated_maps
from clipkit.evaluation.explanation.maps import Method, blocks_of, gradient_maps, patch_maps
from clipkit.evaluation.explanation.seen import Seen
from clipkit.models import DualEncoder, compose
from clipkit.recipe import ModelRecipe
from tests.conftest import draw
from tests.models.families import FAMILIES, build


def unit(count: int, width: int) -> Tensor:
    return F.normalize(torch.randn(count, width), dim=-1)


@pytest.fixture(scope="module")
def clip(tiny_clip: Path) -> DualEncoder:
    return clipkit.load(str(tiny_clip))


def values_by_hand(block: Any, states: Tensor) -> Tensor:
    attention = block.self_attn
    return attention.out_proj(attention.v_proj(block.layer_norm1(states)))


@torch.no_grad()
def test_patches_are_the_value_path_of_the_last_block(clip: DualEncoder) -> None:
    seen = Seen.by(clip, draw("red", "circle"))
    texts = unit(2, 24)
    vision = clip.image.trunk.native
    states = vision(**seen.inputs, output_hidden_states=True).hidden_states[-2]
    expected = torch.zeros(2, 4, 4)
    for patch in range(16):
        values = values_by_hand(vision.encoder.layers[-1], states[:, 1 + patch])
        feature = F.normalize(clip.image.head(vision.post_layernorm(values)), dim=-1)[0]
        for text in range(2):
            expected[text, patch // 4, patch % 4] = texts[text] @ feature
    found = patch_maps(clip.image, blocks_of(clip.image, seen)[-1], seen, texts)
    assert torch.allclose(found, expected, atol=1e-6)


def test_gradient_is_that_of_the_output_of_attention_times_values(clip: DualEncoder) -> None:
    seen = Seen.by(clip, draw("blue", "cross"))
    text = unit(1, 24)
    vision = clip.image.trunk.native
    expected = torch.zeros(4, 4)
    for layer in vision.encoder.layers:
        states: list[Tensor] = []
        noise = torch.zeros(1, 17, 32, requires_grad=True)
        hooks = [
            layer.register_forward_pre_hook(lambda _, args: states.append(args[0].detach())),  # noqa: B023
            layer.self_attn.register_forward_hook(lambda _, __, out: (out[0] + noise, *out[1:])),  # noqa: B023
        ]
        (text @ F.normalize(clip.image(seen.inputs), dim=-1).T).sum().backward()
        for hook in hooks:
            hook.remove()
        assert noise.grad is not None
        with torch.no_grad():
            values = values_by_hand(layer, states[0])[0]
        for patch in range(16):
            expected[patch // 4, patch % 4] += sum(noise.grad[0, t] @ values[1 + patch] for t in range(17))
    found = gradient_maps(clip.image, blocks_of(clip.image, seen), seen, text)[0]
    assert torch.allclose(found, expected, atol=1e-6)


def _model(image_tower: nn.Module) -> DualEncoder:
    """Return a model whose texts are the colors red, green and blue."""
    colors = {"red": 0, "green": 1, "blue": 2}

    class Text(nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            return F.one_hot(input_ids[:, 0], 3).float() - 1 / 3

    return DualEncoder.from_modules(
        image_tower=image_tower,
        text_tower=Text(),
        preprocess=lambda image: (
            torch.tensor(list(image.resize((32, 32)).tobytes())).view(32, 32, 3).permute(2, 0, 1) / 255
        ),
        tokenizer=lambda texts: torch.tensor([[next((colors[w] for w in t.split() if w in colors), 0)] for t in texts]),
    )


class MeanColor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(8)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.pool(pixels).mean(dim=(2, 3)) - 0.5


def test_a_convolutional_tower_points_at_the_object_of_each_text() -> None:
    model = _model(MeanColor())
    image = Image.new("RGB", (32, 32), (128, 128, 128))
    image.paste((255, 60, 60), (0, 0, 8, 8))
    image.paste((60, 60, 255), (24, 16, 32, 24))
    shown = clipkit.explain(model, image, ["a red thing", "blue"], score=False)
    assert [divmod(int(one.map.argmax()), 4) for one in shown.texts] == [(0, 0), (2, 3)]
    hidden = clipkit.explain(model, image, ["a red thing", "blue"], method="occlusion")
    (row, column), (of_blue, last) = (divmod(int(one.map.argmax()), 7) for one in hidden.texts)
    assert row <= 1
    assert column <= 1
    assert of_blue in (3, 4, 5)
    assert last >= 5
    assert [word.word for word in shown.texts[0].words] == ["a", "red", "thing"]
    assert shown.texts[1].words == []


def test_layers_of_a_convolutional_tower_are_integrated_over_partly_shown_images() -> None:
    parts = [nn.Conv2d(3, 4, 2, 2), nn.ReLU(), nn.Conv2d(4, 5, 2, 2), nn.Tanh(), nn.Conv2d(5, 6, 2, 2), nn.GELU()]
    parts += [nn.Conv2d(6, 3, 2, 2), nn.Tanh()]

    class ImageModule(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.Sequential(*parts)

        def forward(self, pixels: Tensor) -> Tensor:
            return self.parts(pixels).mean(dim=(2, 3)) + 0.1

    model = _model(ImageModule())
    seen, texts = Seen.by(model, draw("red", "cross")), unit(2, 3)
    found = integrated_maps(model.image, seen, texts)
    pixels, generator = seen.inputs["pixel_values"], torch.Generator().manual_seed(0)
    mean = pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels)
    halves = [(torch.rand(7, 7, generator=generator) < 0.5).float() for _ in range(4)]
    halves += [1 - half for half in halves]
    cells = [[int((k + 0.5) / 32 * 7) for k in range(32)]] * 2
    shares: list[Any] = [(step + 0.5) / 4 for step in range(4)] + [half[np.ix_(*cells)] for half in halves]
    expected = torch.zeros(2, 2, 2)
    for last in range(2, 8):  # 8 × 8, 4 × 4 and 2 × 2 cells; the 16 × 16 cells of the first two are too fine
        below, above = nn.Sequential(*parts[: last + 1]), nn.Sequential(*parts[last + 1 :])
        change = (below(pixels) - below(mean)).detach()
        for row, text in enumerate(texts):
            gradient = torch.zeros_like(change)
            for share in shares:
                middle = below(share * pixels + (1 - share) * mean).detach().requires_grad_()
                cosine = F.normalize(above(middle).mean(dim=(2, 3)) + 0.1, dim=-1)[0] @ text
                gradient += torch.autograd.grad(cosine, middle)[0] / len(shares)
            of_layer = torch.zeros(2, 2)
            side = change.shape[2] // 2
            for c, y, x in np.ndindex(*change.shape[1:]):
                value = max(float(gradient[0, c, y, x]), 0.0) * float(change[0, c, y, x])
                of_layer[y // side, x // side] += value / side**2
            expected[row] += of_layer / of_layer.abs().sum()
    assert torch.allclose(found, expected, atol=1e-5)
    assert float(expected.abs().max()) > 0.1


@pytest.mark.parametrize("method", ["gradient", "patches", "occlusion"])
def test_maps_against_other_texts_are_differences(clip: DualEncoder, method: Method) -> None:
    image, texts = draw("red", "circle"), ["a red circle", "a blue cross", "green"]
    alone = [one.map for one in clipkit.explain(clip, image, texts, method=method, score=False).texts]
    shown = clipkit.explain(clip, image, texts[:2], method=method, against=texts, score=False)
    for one, expected in zip(
        shown.texts, (alone[0] - (alone[1] + alone[2]) / 2, alone[1] - (alone[0] + alone[2]) / 2), strict=True
    ):
        assert torch.allclose(one.map, expected, atol=1e-5)
    same = clipkit.explain(clip, image, "a red circle", method=method, against="a red circle", score=False)
    assert torch.allclose(same.texts[0].map, alone[0], atol=1e-5)
    assert shown.texts[0].cosine == same.texts[0].cosine


QUICK = ("align", "clip", "siglip2")


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_every_family_is_explained(family: str, tmp_path: Path) -> None:
    model = clipkit.load(str(build(family, tmp_path / family)))
    image = draw("red", "circle").resize((40, 24))
    shown = clipkit.explain(model, image, "a red square", score=False)
    assert torch.isfinite(shown.texts[0].map).all()
    assert shown.texts[0].map.numel() > (0 if family == "align" else 1)
    if family == "align":
        with pytest.raises(ModelError, match="patches"):
            clipkit.explain(model, image, "a red square", method="patches")
    else:
        patches = clipkit.explain(model, image, "a red square", method="patches", score=False)
        assert patches.texts[0].map.shape == shown.texts[0].map.shape


TIMM = {
    "timm:vit_tiny_patch16_224": 32, "timm:resnet10t": 64, "timm:swin_tiny_patch4_window7_224": 224,
    "timm:eva02_tiny_patch14_224": 28, "timm:convnext_atto": 64, "timm:vit_tiny_r_s16_p8_224": 64,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_towers_of_timm_are_explained(name: str) -> None:
    model = _with_timm(name)
    shown = clipkit.explain(model, draw("red", "circle", 64), ["red", "blue"], score=False)
    assert all(torch.isfinite(one.map).all() and one.map.numel() > 1 for one in shown.texts)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["ViT-B-32", "RN50", "coca_ViT-B-32", "convnext_base"])
def test_towers_of_open_clip_are_explained(arch: str) -> None:
    model = clipkit.load(f"open_clip:{arch}")
    shown = clipkit.explain(model, draw("red", "circle", 64), ["a red circle"], score=False)
    assert torch.isfinite(shown.texts[0].map).all()
    assert shown.texts[0].map.numel() > 1
    if "ViT" in arch:
        patches = clipkit.explain(model, draw("red", "circle", 64), "red", method="patches", score=False)
        assert patches.texts[0].map.shape == shown.texts[0].map.shape


def _with_timm(name: str) -> DualEncoder:
    text = {
        "name": "hf:bert", "pretrained": False, "tokenizer": "open_clip:ViT-B-32", "context_length": 16,
        "config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
    }  # fmt: skip
    image = {"name": name, "pretrained": False, "image_size": TIMM[name]}
    return compose(ModelRecipe.model_validate({"image": image, "text": text, "embed_dim": 32}))
