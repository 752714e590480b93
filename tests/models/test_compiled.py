"""Compilation of trunks: which modules are compiled, and code that runs them uncompiled."""

from pathlib import Path

import pytest
import torch
from torch import nn

import clipkit
from clipkit.models.compiled import repeated_blocks, uncompiled


def test_layers_of_an_encoder_are_the_blocks(tiny_clip: Path) -> None:
    model = clipkit.load(tiny_clip, device="cpu")
    for tower in (model.image, model.text):
        blocks = repeated_blocks(tower.trunk)
        assert len(blocks) == 3
        assert {type(block).__name__ for block in blocks} == {"CLIPEncoderLayer"}


@pytest.mark.parametrize(
    "trunk",
    [
        nn.Sequential(nn.Linear(4, 4), nn.GELU()),
        nn.ModuleDict({"large": nn.Linear(40, 40), "blocks": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))}),
        nn.Linear(3, 3),
    ],
)
def test_other_trunks_have_no_blocks(trunk: nn.Module) -> None:
    assert repeated_blocks(trunk) == []


def test_embeddings_do_not_count() -> None:
    blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    assert repeated_blocks(nn.ModuleDict({"words": nn.Embedding(1000, 4), "blocks": blocks})) == [*blocks]


class _Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x


def test_uncompiled_runs_the_code_as_written() -> None:
    module = _Double()  # torch 2.6 does not compile its own modules when they are called alone
    compiled = []
    module.compile(backend=lambda graph, inputs: compiled.append(graph) or graph)
    with uncompiled(nn.Sequential(module)):
        module(torch.ones(1, 2))
    assert compiled == []
    module(torch.ones(1, 2))
    assert len(compiled) == 1
