"""Dual encoders of a user's modules: features, training, saving and loading; parts that do not fit are named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from torchvision import transforms

import clipkit
from clipkit.errors import ModelError
from clipkit.recipe import Recipe
from clipkit.training.plan import make_plan
from clipkit.training.rates import kind_of
from tests.conftest import read_lines

PREPROCESS = transforms.Compose(
    [
        transforms.Resize(16),
        transforms.CenterCrop(16),
        transforms.ToTensor(),
        transforms.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
    ]
)


class Words(nn.Module):
    """Mean of embeddings, which shares one table under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(256, 12)
        self.same = self.table

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.same(input_ids).mean(dim=1)


class Masked(Words):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weights = attention_mask[..., None] / attention_mask.sum(dim=1)[:, None, None]
        return (self.table(input_ids) * weights).sum(dim=1)


def pixels() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.GELU(), nn.Flatten(), nn.Linear(64, 10))


def tokens(texts: list[str]) -> Tensor:
    return torch.tensor([list(text.encode()[:20].ljust(20)) for text in texts])


def masked_tokens(texts: list[str]) -> dict[str, Tensor]:
    rows = [torch.tensor(list(text.encode()[:20])) for text in texts]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def build(**changes: Any) -> clipkit.DualEncoder:
    parts: dict[str, Any] = {
        "image_tower": pixels(),
        "text_tower": Words(),
        "preprocess": PREPROCESS,
        "tokenizer": tokens,
        "embed_dim": 6,
    }
    return clipkit.DualEncoder.from_modules(**parts | changes)


def test_features_are_those_of_the_modules_and_their_projections(shapes: Path) -> None:
    model = build(text_tower=Masked(), tokenizer=masked_tokens)
    image = Image.open(shapes / "images" / "00.png").convert("RGB")
    native: Any = model.image.trunk.native
    with torch.no_grad():
        expected = F.normalize(model.image.head(native(PREPROCESS(image)[None])), dim=-1)
        torch.testing.assert_close(model.encode_image(image), expected)
        one = F.normalize(model.text.head(model.text.trunk(**masked_tokens(["a dog"]))), dim=-1)
    torch.testing.assert_close(model.encode_text(["a dog", "a much longer text"])[:1], one)
    assert (model.image.preprocess.image_size, model.image.preprocess.mean) == (16, (0.5, 0.4, 0.3))
    whole = build(embed_dim=None, image_tower=nn.Sequential(nn.Flatten(), nn.Linear(768, 12)))
    assert whole.encode_image(image).shape == (1, 12)


def test_weights_alone_are_saved_and_loaded(tmp_path: Path) -> None:
    model = build(bias=-10.0)
    model.save(tmp_path / "m")
    assert {file.name for file in (tmp_path / "m").iterdir()} == {"clipkit.json", "weights.safetensors"}
    with safe_open(tmp_path / "m" / "weights.safetensors", "pt") as file:
        assert sum("Embedding" in key or "table" in key or "same" in key for key in file.keys()) == 1  # noqa: SIM118
    parts: dict[str, Any] = {"preprocess": PREPROCESS, "tokenizer": tokens}
    loaded = clipkit.load(tmp_path / "m", image_tower=pixels(), text_tower=Words(), **parts)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    with pytest.raises(ModelError, match=r"Words.* use clipkit.load\(…, image_tower=…, text_tower=…\)"):
        clipkit.load(tmp_path / "m", **parts)
    other = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.GELU(), nn.Flatten(), nn.Linear(64, 11))
    with pytest.raises(ModelError, match="image.head.0.bias"):
        clipkit.load(tmp_path / "m", image_tower=other, text_tower=Words(), **parts)
    deeper = nn.Sequential(*pixels(), nn.Linear(10, 10))
    with pytest.raises(ModelError, match="no weight image.trunk.native.4.weight"):
        clipkit.load(tmp_path / "m", image_tower=deeper, text_tower=Words(), **parts)


def test_parts_do_not_apply_to_other_models(tiny_clip: Path) -> None:
    with pytest.raises(ModelError, match="tokenizer does not apply"):
        clipkit.load(tiny_clip, tokenizer=tokens)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_tower": 5}, ["image_tower", "an int"]),
        ({"embed_dim": None}, ["10", "12", "embed_dim"]),
        ({"preprocess": lambda image: image}, ["preprocess", "an Image"]),
        ({"preprocess": lambda image: 1 / 0}, ["preprocess", "division"]),
        ({"preprocess": transforms.Compose([transforms.Resize(16), transforms.ToTensor()])}, ["97 × 64", "64 × 97"]),
        ({"preprocess": transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()])}, ["image_tower fails"]),
        ({"tokenizer": lambda texts: [len(text) for text in texts]}, ["tokenizer returned"]),
        ({"tokenizer": lambda texts: masked_tokens(texts)["input_ids"]}, ["attention_mask"]),
        ({"tokenizer": "bert"}, ["tokenizer", "a str"]),
        ({"text_tower": nn.Embedding(256, 12)}, ["text_tower", "(2, 20, 12)"]),
    ],
)
def test_parts_that_do_not_fit_are_named(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelError) as raised:
        build(**changes)
    assert all(word in str(raised.value) for word in words), raised.value


def test_it_trains_in_place_and_is_loaded_from_its_run(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    model, parts = build(), {"preprocess": PREPROCESS, "tokenizer": tokens}
    native: Any = model.image.trunk.native
    before = native[0].weight.clone()
    values = recipe({"train.micro_batch_size": 3}).model_dump(mode="json", exclude={"model"})
    clipkit.train(values, model=model)
    assert not torch.equal(native[0].weight, before)
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 4
    loaded = clipkit.Run(tmp_path / "run").model(image_tower=pixels(), text_tower=Words(), **parts)
    torch.testing.assert_close(loaded.encode_text("a red square"), model.encode_text("a red square"))
    assert "base_model" not in (tmp_path / "run" / "model" / "README.md").read_text()


def test_only_projections_are_new_weights(recipe: Callable[..., Recipe]) -> None:
    from clipkit.training.given import Given

    given = Given(model=build())
    plan = make_plan(given.recipe(recipe().model_dump(mode="json", exclude={"model"}), {}), given=given)
    kinds = {name: kind_of(name, plan.recipe) for name, _ in plan.model.named_parameters()}
    assert kinds["image.trunk.native.0.weight"] == "pretrained"
    assert kinds["text.head.1.weight"] == kinds["logit_scale"] == "new"
