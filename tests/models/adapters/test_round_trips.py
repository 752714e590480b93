"""Adapters of every family: the start, files, and merging."""

from pathlib import Path
from typing import Any

import pytest

from clipkit.models import compose
from clipkit.recipe import ModelRecipe
from tests.models.adapters.round_trip import METHODS, check_round_trip, slow_but_first
from tests.models.families import FAMILIES, build

NEW_TEXTS: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "mpnet": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "t5": {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_kv": 16, "d_ff": 64},
    "modernbert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}
COMPOSED = [
    ("test_vit", "bert"),
    ("test_convnext", "distilbert"),
    ("test_efficientnet", "mpnet"),
    ("test_vit3", "t5"),
    ("test_resnet", "modernbert"),
]


@pytest.mark.parametrize("methods", slow_but_first(METHODS))
@pytest.mark.parametrize("name", slow_but_first(sorted(FAMILIES, key="clip".__ne__)))
def test_families_of_transformers(name: str, methods: tuple[str, str], tmp_path: Path, images: list[Path]) -> None:
    base = build(name, tmp_path / "base")
    check_round_trip(ModelRecipe(name=str(base)), tmp_path, images, methods)


@pytest.mark.parametrize("methods", slow_but_first(METHODS))
@pytest.mark.parametrize("towers", slow_but_first(COMPOSED))
def test_two_towers(towers: tuple[str, str], methods: tuple[str, str], tmp_path: Path, images: list[Path]) -> None:
    image, text = towers
    new = {
        "image": {"name": f"timm:{image}", "pretrained": False},
        "text": {"name": f"hf:{text}", "pretrained": False, "tokenizer": "open_clip:ViT-B-32", "context_length": 16,
                 "config": NEW_TEXTS[text]},
    }  # fmt: skip
    compose(ModelRecipe.model_validate(new)).save(tmp_path / "base")
    pretrained = {
        "image": {"name": str(tmp_path / "base" / "image")},
        "text": {"name": str(tmp_path / "base" / "text"), "tokenizer": "open_clip:ViT-B-32", "context_length": 16},
    }
    check_round_trip(ModelRecipe.model_validate(pretrained | {"embed_dim": 24}), tmp_path, images, methods)
