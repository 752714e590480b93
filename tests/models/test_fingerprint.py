from pathlib import Path

import pytest
import torch

import clipkit
from clipkit.models.fingerprint import tower_fingerprint


def test_fingerprint_does_not_depend_on_the_folder(tiny_clip: Path, tmp_path: Path) -> None:
    one, two = clipkit.load(tiny_clip), clipkit.load(tiny_clip)
    two.save(tmp_path / "copy")
    copy = clipkit.load(tmp_path / "copy")
    for tower in ("image", "text"):
        first = tower_fingerprint(getattr(one, tower))
        assert first == tower_fingerprint(getattr(two, tower)) == tower_fingerprint(getattr(copy, tower))
    assert tower_fingerprint(one.image) != tower_fingerprint(one.text)


def test_fingerprint_changes_with_a_weight(tiny_clip: Path) -> None:
    model = clipkit.load(tiny_clip)
    before = tower_fingerprint(model.image), tower_fingerprint(model.text)
    with torch.no_grad():
        next(model.image.head.parameters())[0, 0] += 1e-6
    assert tower_fingerprint(model.image) != before[0]
    assert tower_fingerprint(model.text) == before[1]


@pytest.mark.parametrize("change", ["preprocessing", "tokenizer", "activation", "type", "autocast", "buffer"])
def test_fingerprint_changes_with_preprocessing_and_tokenizer(change: str, tiny_clip: Path) -> None:
    model = clipkit.load(tiny_clip)
    tower = model.text if change == "tokenizer" else model.image
    before = tower_fingerprint(tower)
    match change:
        case "autocast":
            tower.autocast = torch.bfloat16
        case "preprocessing":
            tower.preprocess.evaluate.processor.image_mean = [0.5, 0.5, 0.5]
        case "tokenizer":
            tower.tokenize.context_length = 12
        case "activation":
            for module in tower.trunk.modules():
                if hasattr(module, "activation_fn"):
                    module.activation_fn = torch.nn.ReLU()
        case "type":
            model.to(torch.bfloat16)
        case "buffer":
            tower.register_buffer("extra", torch.ones(1))
    assert tower_fingerprint(tower) != before


def test_fingerprint_changes_with_the_pooling(tiny_clip: Path) -> None:
    from clipkit.models.trunks import TextTrunk

    model = clipkit.load(tiny_clip)
    hashes = []
    for pooling in ("mean", "cls"):
        model.text.trunk = TextTrunk(torch.nn.Identity(), pooling)
        hashes.append(tower_fingerprint(model.text))
    assert hashes[0] != hashes[1]
