"""Check of models of which one tower is loaded: equal features, from files without the weights of the other tower."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import clipkit
from clipkit.models import DualEncoder
from clipkit.recipe import Side

TEXTS = ["a red square", "Two DOGS running, through a low body of water.", "", "word " * 100]


def check_tower(folder: Path, side: Side, of_other: tuple[str, ...], images: list[Path], copy: Path) -> None:
    """Compare a tower alone with the whole model.

    Args:
        folder: a model with its weights in one safetensors file.
        side: tower to load alone.
        of_other: beginnings of the names of the weights of the other tower.
        images: images to encode.
        copy: new folder.
    """
    shutil.copytree(folder, copy)
    (file,) = copy.glob("*.safetensors")
    weights = load_file(file)
    kept = {name: value for name, value in weights.items() if not name.startswith(of_other)}
    assert len(kept) < len(weights)
    save_file(kept, file, {"format": "pt"})
    alone, whole = clipkit.load(copy, device="cpu", only=side), clipkit.load(folder, device="cpu")
    check_same(alone, whole, side, images)
    assert alone.logit_scale.equal(whole.logit_scale)
    own = sum(parameter.numel() for parameter in whole.sides[side].parameters())
    assert sum(p.numel() for p in alone.parameters()) == own + 1 + (whole.logit_bias is not None)


def check_same(alone: DualEncoder, whole: DualEncoder, side: str, images: list[Path]) -> None:
    """Compare the features of a model with one tower with those of the whole model."""
    assert list(alone.sides) == [side]
    pair = [model.encode_text(TEXTS) if side == "text" else model.encode_image(images) for model in (alone, whole)]
    torch.testing.assert_close(*pair, rtol=0, atol=0)
