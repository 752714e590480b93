"""Layers of a tower side by side: equal to a loop over the outputs of its blocks."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

import clipkit
from clipkit.errors import ModelError, RecipeError
from clipkit.models import compose
from clipkit.models import layers as layers_module
from clipkit.models.layers import LayeredImage, LayeredText, columns, set_coordinates
from clipkit.recipe import ModelRecipe, Recipe
from clipkit.recipe.layers import POOLINGS, shortened

# A timm model -> its blocks or stages in order, and how many tokens precede the patches.
TOWERS = {
    "test_vit": ("blocks", 1),
    "test_convnext": ("stages", 0),
    "test_efficientnet": ("blocks", 0),
}
# timm models whose last output or class token is special -> a small size, all layers, and layers that do not exist.
SMALL = {"img_size": 32, "embed_dim": 16, "num_heads": 2, "num_classes": 10}
SPECIAL: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "xcit_nano_12_p16_224": (
        SMALL | {"depth": 2}, ["output", "mean", "max", "cls", "probabilities", "mean:1"], ["cls:1", "max:3"],
    ),
    "cait_xxs24_224": (
        SMALL | {"depth": 2}, ["output", "mean", "max", "cls", "probabilities", "mean:1"], ["cls:2"],
    ),
    "crossvit_tiny_240": (
        SMALL | {"img_size": 240, "embed_dim": (16, 32), "num_heads": (2, 2)}
        | {"depth": ((1, 2, 0),), "mlp_ratio": (2, 2, 1)},
        ["output", "probabilities", "mean:2", "mean:1"],
        ["mean", "max", "cls"],
    ),
    "hiera_tiny_224": (
        {"img_size": 64, "embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1), "num_classes": 10},
        ["output", "mean", "max", "probabilities", "mean:3", "mean:2", "mean:1"],
        ["cls", "mean:5"],
    ),
}  # fmt: skip
TEXT = {
    "name": "hf:bert", "pretrained": False, "tokenizer": "open_clip:ViT-B-32", "context_length": 16,
    "config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}  # fmt: skip


@pytest.mark.parametrize("name", TOWERS)
def test_image_layers_equal_a_loop_over_blocks(name: str) -> None:
    native = timm.create_model(name).eval()
    blocks, prefix = getattr(native, TOWERS[name][0]), TOWERS[name][1]
    last = len(blocks) - 1
    names = ["output", f"mean:{last}", "probabilities", "max", f"max:{last + 1}", *(["cls", "cls:2"] if prefix else [])]
    trunk = LayeredImage(native, names, native.pretrained_cfg["input_size"][-1]).eval()
    seen: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda module, inputs, output: seen.append(output)) for block in blocks]
    pixels = torch.randn(2, *native.pretrained_cfg["input_size"])
    with torch.no_grad():
        final, logits = native.forward_features(pixels), native(pixels)
        for hook in hooks:
            hook.remove()

        def positions(output: Tensor) -> Tensor:
            return output[:, prefix:].mT if output.ndim == 3 else output.flatten(2)

        expected = {
            "output": native.forward_head(final, pre_logits=True),
            f"mean:{last}": positions(seen[last - 1]).mean(dim=2),
            "probabilities": logits.softmax(dim=1).sqrt(),
            "max": positions(final).amax(dim=2),
            f"max:{last + 1}": positions(seen[last]).amax(dim=2),
            "cls": final[:, 0],
            "cls:2": seen[1][:, 0],
        }
        parts = dict(zip(names, trunk.parts(pixel_values=pixels), strict=True))
        for layer in names:
            torch.testing.assert_close(parts[layer], expected[layer], rtol=0, atol=1e-5)
        assert trunk.widths == tuple(parts[layer].shape[1] for layer in names)
        torch.testing.assert_close(trunk(pixel_values=pixels), torch.cat(list(parts.values()), dim=1))


@pytest.mark.parametrize("name", SPECIAL)
def test_towers_with_special_outputs_have_layers(name: str) -> None:
    options, layers, missing = SPECIAL[name]
    size = options["img_size"]
    native = timm.create_model(
        name, **options | ({"img_size": (size, size)} if name.startswith("hiera") else {})
    ).eval()
    trunk = LayeredImage(native, None, size)
    pixels = torch.randn(2, 3, size, size)
    assert list(trunk.layers) == layers
    with torch.no_grad():
        parts = dict(zip(layers, trunk.parts(pixel_values=pixels), strict=True))
        output = native.forward_head(native.forward_features(pixels), pre_logits=True)
        probabilities = native(pixels).softmax(dim=1)
    torch.testing.assert_close(parts["output"], output)
    torch.testing.assert_close(parts["probabilities"] ** 2, probabilities)
    for layer in missing:
        with pytest.raises(ModelError, match=rf"model\.image\.layers: {layer} "):
            LayeredImage(native, [layer], size)


def test_towers_without_earlier_layers_have_an_output() -> None:
    native = timm.create_model("test_convnext").eval()
    bert = BertModel(BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))

    class Plain(torch.nn.Module):
        num_classes, forward_features, forward_head = 0, native.forward_features, native.forward_head

    class PlainText(torch.nn.Module):
        def forward(self, **inputs: Any) -> Any:
            return bert(**inputs | {"output_hidden_states": False})

    pixels = torch.randn(2, 3, 64, 64)
    image, text = LayeredImage(Plain(), None, 64), LayeredText(PlainText(), "mean", None)
    assert (image.layers, text.layers) == (("output", "max"), ("output", "cls", "max"))
    with torch.no_grad():
        torch.testing.assert_close(
            image.parts(pixel_values=pixels)[0], native.forward_head(native.forward_features(pixels), pre_logits=True)
        )
    for layered in (
        lambda: LayeredImage(Plain(), ["mean:1"], 64),
        lambda: LayeredText(PlainText(), "mean", ["mean:1"]),
    ):
        with pytest.raises(ModelError, match="mean:1"):
            layered()


@pytest.mark.parametrize("causal", [False, True])
def test_text_layers_equal_a_loop_over_hidden_states(causal: bool) -> None:
    if causal:
        native: Any = GPT2Model(GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=2)).eval()
    else:
        shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
        native = BertModel(BertConfig(vocab_size=50, **shape)).eval()
    names = ["output", "mean:0", "mean:2", "max", "max:1", "cls", "last", "last:1"]
    trunk = LayeredText(native, "mean", names).eval()
    ids, mask = torch.randint(0, 50, (3, 7)), torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = mask[2, 1:] = 0
    with torch.no_grad():
        output = native(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        parts = dict(zip(names, trunk.parts(input_ids=ids, attention_mask=mask), strict=True))
    for row, length in enumerate((7, 4, 1)):
        final = output.last_hidden_state[row, :length]
        states = [state[row, :length] for state in output.hidden_states]
        expected = {
            "output": final.mean(dim=0), "mean:0": states[0].mean(dim=0), "mean:2": states[2].mean(dim=0),
            "max": final.amax(dim=0), "max:1": states[1].amax(dim=0), "cls": final[0], "last": final[-1],
            "last:1": states[1][-1],
        }  # fmt: skip
        for layer in names:
            torch.testing.assert_close(parts[layer][row], expected[layer], rtol=0, atol=1e-5)


def test_all_layers_of_a_deep_tower_are_few_and_evenly_spaced() -> None:
    shape = {"hidden_size": 8, "num_hidden_layers": 24, "num_attention_heads": 2, "intermediate_size": 8}
    trunk = LayeredText(BertModel(BertConfig(vocab_size=50, **shape)), "mean", None)
    assert trunk.layers == ("output", "cls", "max", "mean:23", "mean:18", "mean:14", "mean:9", "mean:5", "mean:0")
    assert columns(trunk.layers, trunk.widths, ["max", "output"]).tolist() == [*range(16, 24), *range(8)]
    trunk.choose(["max", "mean:5"])
    assert (trunk.layers, trunk.widths) == (("max", "mean:5"), (8, 8))


def test_layers_with_too_many_columns_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probabilities of the 21,841 classes of ImageNet-21k are an example."""
    monkeypatch.setattr(layers_module, "_MOST_COLUMNS", 400)
    native = timm.create_model("test_convnext")
    chosen = LayeredImage(native, None, 64)
    assert native.num_classes == 1000
    assert "probabilities" not in chosen.layers
    assert sum(chosen.widths) <= 400
    assert {"output", "max", "mean:1"} <= set(chosen.layers)
    assert LayeredImage(native, ["output", "probabilities"], 64).widths[1] == 1000  # as the recipe asks for it


def model_of(image: dict[str, Any], text: dict[str, Any], **changes: Any) -> Any:
    tower = {"name": "timm:test_convnext", "pretrained": False, "image_size": 64}
    values = {"image": tower | image, "text": TEXT | text, "embed_dim": 24, **changes}
    return compose(ModelRecipe.model_validate(values))


@pytest.mark.parametrize(
    ("image", "text", "named"),
    [
        (["mean:9"], ["output"], ("model.image.layers", "mean:9", "1 to 4")),
        (["cls"], ["output"], ("model.image.layers", "cls")),
        (["output"], ["mean:3"], ("model.text.layers", "mean:3", "0 to 2")),
    ],
)
def test_missing_layers_are_refused(image: list[str], text: list[str], named: tuple[str, ...]) -> None:
    with pytest.raises(ModelError) as error:
        model_of({"layers": image}, {"layers": text})
    assert all(part in str(error.value) for part in named)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model.image.layers": ["middle"]}, ("model.image.layers 'middle'", *POOLINGS)),
        ({"model.image.layers": "mean"}, ("model.image.layers", "'mean'", "list")),
        ({"model.image.layers": ["mean", "mean"]}, ("mean",)),
        ({"model.image.layers": ["last"]}, ("last", "text")),
        ({"model.image.layers": ["mean:0"]}, ("mean:0",)),
        ({"model.text.layers": ["probabilities"]}, ("probabilities", "image")),
        ({"model.text.layers": "auto"}, ("auto", "start: cca")),
        ({"model.projection": "residual"}, ("residual", "start: cca")),
        ({"model.start": "cca", "model.projection": "mlp"}, ("mlp", "residual")),
        ({"model.dropout": 0.1}, ("dropout", "start: cca")),
        ({"model.start": "cca", "data.train": "hf:a?stream=true", "data.samples": 9}, ("cca", "stream")),
    ],
)
def test_recipes_name_what_does_not_fit(changes: dict[str, Any], named: tuple[str, ...]) -> None:
    towers = {"image": {"name": "timm:test_vit"}, "text": {"name": "hf:a/b"}}
    recipe = Recipe.from_dict({"model": towers, "data": {"train": "a.csv"}, "output": "run"})
    with pytest.raises(RecipeError) as error:
        recipe.override(changes)
    assert all(part in str(error.value) for part in named)


def test_start_of_two_frozen_pretrained_towers_is_closed_form() -> None:
    towers = {"image": {"name": "timm:test_vit", "tune": "frozen"}, "text": {"name": "hf:a/b", "tune": "frozen"}}
    recipe = Recipe.from_dict({"model": towers, "data": {"train": "a.csv"}, "output": "run"})
    assert recipe.start == "cca"
    for change in ({"model.text.tune": "last:1"}, {"model.image.pretrained": False}, {"model.start": "random"}):
        assert recipe.override(change).start == "random"
    assert recipe.override({"data.samples": 100}).start == "random"


def test_all_captions_are_the_default_after_a_closed_form_start_of_frozen_towers() -> None:
    towers = {"image": {"name": "timm:test_vit", "tune": "frozen"}, "text": {"name": "hf:a/b", "tune": "frozen"}}
    recipe = Recipe.from_dict({"model": towers, "data": {"train": "a.csv"}, "output": "run"})
    assert recipe.captions() == "all"
    assert recipe.captions(labeled=True) == "one"
    tuned = {"model.start": "cca", "model.text.tune": "last:1"}
    for change in (tuned, {"model.start": "random"}, {"data.captions": "one"}, {"data.samples": 100}):
        assert recipe.override(change).captions() == "one"
    assert recipe.override({**tuned, "data.captions": "all"}).captions() == "all"


@pytest.mark.parametrize("projection", ["linear", "residual"])
def test_saved_model_with_coordinates_loads_with_equal_features(projection: str, tmp_path: Path, shapes: Path) -> None:
    layers = {"image": ["output", "probabilities", "mean:2"], "text": ["output", "max", "mean:0"]}
    model = model_of({"layers": layers["image"]}, {"layers": layers["text"]}, start="cca", projection=projection).eval()
    for tower in model.sides.values():
        set_coordinates(tower.trunk, torch.randn(sum(tower.trunk.widths)), torch.randn(sum(tower.trunk.widths), 96))
        for parameter in tower.head.parameters():
            torch.nn.init.normal_(parameter)
    images = [Image.open(path) for path in sorted((shapes / "images").iterdir())[:3]]
    model.save(tmp_path / "m")
    again = clipkit.load(tmp_path / "m")
    assert [again.image.trunk.layers, again.text.trunk.layers] == [tuple(each) for each in layers.values()]
    texts = ["a dog", "two dogs run"]
    torch.testing.assert_close(again.encode_image(images), model.encode_image(images), rtol=0, atol=1e-6)
    torch.testing.assert_close(again.encode_text(texts), model.encode_text(texts), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        (["output", "mean:3", "mean:2", "mean:1", "mean:0", "cls"], "output, mean:3…0, cls"),
        (["mean:2", "mean:1", "mean"], "mean:2/1, mean"),
        (["mean", "mean:4", "max:12", "max:9", "max:6"], "mean, mean:4, max:12/9/6"),
    ],
)
def test_lists_of_layers_are_shortened(layers: list[str], text: str) -> None:
    assert shortened(layers) == text
