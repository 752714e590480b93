"""A trunk that is cut computes the features and gradients of the whole trunk, whatever its structure."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from clipkit import load
from clipkit.models.blocks import transformers_blocks
from clipkit.models.cut import ACTIVATIONS, OUTSIDE, Cut, NoCutError
from clipkit.models.find_cut import find_cut
from clipkit.models.towers import ImageTower, TextTower
from clipkit.models.trunks import ImageTrunk, TextTrunk, mean_of_tokens
from clipkit.models.tuning import tune
from tests.models.families import FAMILIES, SENTENCES, build

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 50}
DECODER = SMALL | {"num_key_value_heads": 2, "pad_token_id": 0}
ENCODERS: dict[str, Any] = {
    "bert": lambda: transformers.BertConfig(**SMALL),
    "distilbert": lambda: transformers.DistilBertConfig(dim=16, hidden_dim=24, n_layers=3, n_heads=2, vocab_size=50),
    "mpnet": lambda: transformers.MPNetConfig(**SMALL),
    "modernbert": lambda: transformers.ModernBertConfig(**SMALL, pad_token_id=0, attn_implementation="sdpa"),
    "qwen2": lambda: transformers.Qwen2Config(**DECODER),
}
TOKENS = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 1, 1, 1], [14, 15, 1, 1, 1, 1]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]),
}


def train_last(trunk: nn.Module, blocks: list[list[str]], count: int) -> None:
    trunk.requires_grad_(False)
    for name in {name for block in blocks[-count:] for name in block}:
        trunk.get_parameter(name).requires_grad_(True)


def gradients(trunk: nn.Module, features: Tensor) -> list[Tensor]:
    trained = [parameter for parameter in trunk.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad((features**3).sum(), trained))


def check_same(trunk: nn.Module, cut: Cut, inputs: dict[str, Tensor]) -> None:
    """Compare both ways, on inputs that the search did not see."""
    with torch.no_grad():
        stored = cut.below(inputs)
    if cut.of_tokens:
        stored[ACTIVATIONS] = stored[ACTIVATIONS] * stored["attention_mask"].unsqueeze(-1)
    whole, parts = trunk(**inputs), cut.above(stored)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-10)
    for one, other in zip(gradients(trunk, parts), gradients(trunk, whole), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * max(1.0, float(other.norm())))


@pytest.mark.parametrize("name", ENCODERS)
def test_text_encoders(name: str) -> None:
    native = transformers.AutoModel.from_config(ENCODERS[name]()).eval().double()
    trunk = TextTrunk(native, "last" if name == "qwen2" else "mean")
    train_last(trunk, [[f"native.{part}" for part in block] for block in transformers_blocks(native)], 1)
    cut = find_cut(trunk, TOKENS, may_cut_padding=True)
    assert cut.of_tokens
    others = {name: value[:, :5].flip(0).clone() for name, value in TOKENS.items()}
    check_same(trunk, cut, others)


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        pytest.param("efficientnet_lite0", marks=pytest.mark.slow),
        pytest.param("convnext_atto", marks=pytest.mark.slow),
    ],
)
def test_image_towers_of_timm(name: str) -> None:
    from clipkit.models.timm_towers import timm_blocks

    size = {"img_size": 32} if "vit" in name else {}
    native = timm.create_model(name, num_classes=0, **size).eval().double()
    trunk = ImageTrunk(native)
    train_last(trunk, [[f"native.{part}" for part in block] for block in timm_blocks(native)], 2)
    cut = find_cut(trunk, {"pixel_values": torch.randn(2, 3, 32, 32).double()})
    check_same(trunk, cut, {"pixel_values": torch.randn(3, 3, 32, 32).double()})
    lower = {part for module in cut.skipped for part in module.modules()}
    assert not any(p.requires_grad for module in lower for p in module.parameters())


@pytest.mark.parametrize(
    "family", ["clip", *(pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES if n != "clip")]
)
def test_families(family: str, tmp_path: Path) -> None:
    model = load(build(family, tmp_path / "model"), device="cpu").double()
    tune(model.image, "last:1")
    tune(model.text, "last:1")
    pixels = {name: v.double() if v.is_floating_point() else v for name, v in images(model.image, 3).items()}
    check_same(model.image.trunk, find_cut(model.image.trunk, pixels), pixels)
    tokens = model.text.tokenize(SENTENCES)
    cut = find_cut(model.text.trunk, tokens, model.text.padding_may_be_cut)
    assert cut.of_tokens == ("attention_mask" in tokens and isinstance(model.text, TextTower))
    check_same(model.text.trunk, cut, tokens)


def images(tower: ImageTower, count: int) -> dict[str, Tensor]:
    from PIL import Image

    from clipkit.models.preprocess import stack_inputs

    noise = torch.randint(0, 256, (count, 40, 50, 3), dtype=torch.uint8).numpy()
    return stack_inputs([tower.preprocess(Image.fromarray(pixels)) for pixels in noise])


class Block(nn.Sequential):
    def forward(self, states: Tensor, places: Tensor | int) -> Tensor:
        return states + super().forward(states) + places


class Stack(nn.Module):
    """Trunk of three blocks with residual connections; options add what makes a cut inexact."""

    def __init__(
        self, jump: bool = False, positions: bool = False, early: bool = False, layers: bool = False, map: bool = False
    ) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(Block(nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU()) for _ in range(3))
        self.positions = nn.Linear(4, 6) if positions else None
        self.bias = nn.Parameter(torch.randn(6))
        self.jump, self.early, self.layers = jump, early, layers
        self.map = nn.Linear(24, 5) if map else None

    def forward(self, pixel_values: Tensor, scale: Tensor) -> Tensor:
        first = states = self.stem(pixel_values) + (self.bias if self.early else 0)
        places = 0 if self.positions is None else self.positions(scale)[:, None]
        pooled = [states.amax(1)]
        for block in self.blocks:
            states = block(states, places)
            pooled.append(states.mean(1))
        if self.layers:
            wide = torch.cat(pooled, dim=1)
            return wide if self.map is None else self.map(wide)
        return (states + (first if self.jump else 0)).mean(1) * (1 if self.early else self.bias)


def stack(trained: tuple[str, ...] = ("blocks.2.",), **options: bool) -> tuple[Stack, dict[str, Tensor]]:
    trunk = Stack(**options).double()
    for name, parameter in trunk.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    return trunk, {"pixel_values": torch.randn(2, 5, 4).double(), "scale": torch.randn(2, 4).double()}


def test_modules_above_the_cut_get_what_they_need() -> None:
    trunk, inputs = stack(positions=True)
    cut = find_cut(trunk, inputs)
    assert cut.module is trunk.blocks[2]
    assert trunk.positions not in cut.skipped  # blocks above the cut use its output, which inputs determine
    check_same(trunk, cut, inputs)


@pytest.mark.parametrize("map", [False, True])
def test_pooled_layers_below_the_cut_are_stored_too(map: bool) -> None:
    trunk, inputs = stack(layers=True, map=map)
    cut = find_cut(trunk, inputs)
    assert cut.module is trunk.blocks[2]
    stored = cut.below(inputs)
    assert stored[OUTSIDE].shape == (2, 18)  # of the stem and of two blocks
    check_same(trunk, cut, {name: torch.randn(3, *value.shape[1:]).double() for name, value in inputs.items()})


def test_pooled_layers_of_a_text_encoder() -> None:
    class Layers(nn.Module):
        def __init__(self, native: nn.Module) -> None:
            super().__init__()
            self.native = native

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            output = self.native(input_ids, attention_mask, output_hidden_states=True)
            return torch.cat([mean_of_tokens(states, attention_mask) for states in output.hidden_states[1:]], dim=1)

    native = transformers.AutoModel.from_config(ENCODERS["bert"]()).eval().double()
    trunk = Layers(native)
    train_last(trunk, [[f"native.{part}" for part in block] for block in transformers_blocks(native)], 1)
    cut = find_cut(trunk, TOKENS, may_cut_padding=True)
    assert cut.of_tokens
    assert cut.below(TOKENS)[OUTSIDE].shape == (3, 32)
    check_same(trunk, cut, {name: value[:, :5].flip(0).clone() for name, value in TOKENS.items()})


def test_a_parameter_used_only_at_the_end_does_not_move_the_cut() -> None:
    trunk, inputs = stack(("blocks.2.", "bias"))
    assert find_cut(trunk, inputs).module is trunk.blocks[2]


def test_a_trained_weight_inside_a_block_cuts_before_the_block() -> None:
    trunk, inputs = stack(("blocks.2.1.weight",))  # as LoRA does
    assert find_cut(trunk, inputs).module is trunk.blocks[2]


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({"jump": True}, ("blocks.2.",)),  # the output of a frozen module is used at the end
        ({"early": True}, ("blocks.2.", "bias")),  # a trained parameter is used before the cut
        ({}, ("stem", "blocks.")),  # everything is trained
    ],
)
def test_trunks_that_cannot_be_cut_are_refused(options: dict[str, bool], trained: tuple[str, ...]) -> None:
    trunk, inputs = stack(trained, **options)
    with pytest.raises(NoCutError):
        find_cut(trunk, inputs)


def test_dropout_below_the_cut_is_refused() -> None:
    trunk, inputs = stack()
    trunk.blocks[0].append(nn.Dropout(0.1))
    with pytest.raises(NoCutError, match="dropout"):
        find_cut(trunk.train(), inputs)


def test_the_trunk_stays_as_it_was() -> None:
    trunk, inputs = stack()
    before = trunk(**inputs)
    cut = find_cut(trunk, inputs)
    cut.above(cut.below(inputs))
    assert torch.equal(trunk(**inputs), before)
    assert all("forward" not in vars(module) for module in trunk.modules())
