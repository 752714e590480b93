"""Greedy soups, against the loop of the paper."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import clipkit
from clipkit.errors import ModelError
from clipkit.models import DualEncoder
from clipkit.models.soup import greedy_soup
from tests.models.families import build


def weight(model: DualEncoder) -> Tensor:
    return model.image.head.weight.detach().double()  # type: ignore[union-attr, operator, return-value]


@pytest.mark.parametrize("seed", range(2))
def test_soup_is_that_of_the_paper(seed: int, tmp_path: Path) -> None:
    model = clipkit.load(build("clip", tmp_path / "clip"))
    start, states = {name: value.clone() for name, value in model.state_dict().items()}, {}
    for number in range(5):
        far = 1 if number < 3 else 6  # the last two make the average worse
        floats = {name: value for name, value in start.items() if value.is_floating_point()}
        moved = {name: value + far * torch.randn_like(value) for name, value in floats.items()}
        states[f"m{number}"] = {**start, **moved}
    noise = torch.randn(24, 32, generator=torch.Generator().manual_seed(seed)).double()
    target = start["image.head.weight"].double() + 0.5 * noise

    def load(name: str) -> DualEncoder:
        model.load_state_dict(states[name])
        model.name = name
        return model

    def score(head: Tensor) -> float:
        return -(head - target).square().mean().item()

    heads = {name: state["image.head.weight"].double() for name, state in states.items()}
    order = sorted(heads, key=lambda name: score(heads[name]), reverse=True)
    kept = [order[0]]
    for name in order[1:]:  # recipe 1
        if score(sum(heads[one] for one in [*kept, name]) / (len(kept) + 1)) >= score(
            sum(heads[one] for one in kept) / len(kept)
        ):
            kept.append(name)
    soup, tried = greedy_soup(list(states), load, lambda model: score(weight(model)))
    assert [one.name for one in tried] == order
    assert [one.name for one in tried if one.kept] == kept
    assert 1 < len(kept) < 5
    assert tried[0].with_it == tried[0].score
    for key, value in soup.state_dict().items():
        if value.is_floating_point():
            expected = sum(states[name][key].double() for name in kept) / len(kept)
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)


def test_models_of_another_shape_are_refused_before_any_is_measured(tmp_path: Path) -> None:
    folders = [str(build(family, tmp_path / family)) for family in ("clip", "siglip")]
    measured: list[str] = []
    with pytest.raises(ModelError, match="different architectures") as caught:
        greedy_soup(folders, clipkit.load, lambda model: 0.0, measured.append)
    assert all(folder in str(caught.value) for folder in folders)
    assert measured == []
    with pytest.raises(ModelError, match="two or more"):
        greedy_soup(folders[:1], clipkit.load, lambda model: 0.0)
