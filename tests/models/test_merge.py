"""Averages of models' weights."""

from pathlib import Path

import pytest
import torch

import clipkit
from clipkit.errors import ModelError
from clipkit.models.merge import averaged
from tests.models.families import build


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("two")
    base = build("clip", folder / "base")
    tuned = clipkit.load(base)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    tuned.save(folder / "tuned")
    return base, folder / "tuned"


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_merge_interpolates_two_models(two: tuple[Path, Path], alpha: float, tmp_path: Path) -> None:
    base, tuned = (clipkit.load(folder).state_dict() for folder in two)
    clipkit.merge([clipkit.load(folder) for folder in two], [1 - alpha, alpha]).save(tmp_path / "merged")
    found = clipkit.load(tmp_path / "merged").state_dict()
    assert found.keys() == base.keys()
    assert any(not torch.equal(base[name], tuned[name]) for name in base)
    for name, value in found.items():
        if alpha in (0.0, 1.0):  # to the bit
            assert torch.equal(value, (tuned if alpha else base)[name]), name
        elif value.is_floating_point():
            expected = (1 - alpha) * base[name].double() + alpha * tuned[name].double()
            torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-6)


def test_merge_averages_three_models(two: tuple[Path, Path]) -> None:
    names = [two[0], two[1], two[1]]
    states = [clipkit.load(name).state_dict() for name in names]
    soup = clipkit.merge([clipkit.load(name) for name in names])
    torch.testing.assert_close(soup.logit_scale.detach(), sum(state["logit_scale"] for state in states) / 3)
    assert soup.logit_scale.item() != states[0]["logit_scale"].item()


def test_bfloat16_is_averaged_in_float32_and_integers_are_kept() -> None:
    one = {"weight": torch.tensor([1.0], dtype=torch.bfloat16), "count": torch.tensor(3)}
    two = {"weight": torch.tensor([1.0078125], dtype=torch.bfloat16), "count": torch.tensor(5)}
    found = averaged([one] * 7 + [two], [0.125] * 8)
    assert found["weight"].dtype == torch.bfloat16
    assert found["weight"].item() == 1.0  # 1.0009765625, rounded once
    assert found["count"].item() == 5
    endless = averaged([{"weight": torch.tensor([float("inf")])}, {"weight": torch.tensor([2.0])}], [0.0, 1.0])
    assert endless["weight"].item() == 2.0


def test_other_architecture_is_refused_with_the_first_different_tensor(two: tuple[Path, Path], tmp_path: Path) -> None:
    other = clipkit.load(build("metaclip_2", tmp_path / "other"))
    with pytest.raises(ModelError, match=r"text\.trunk\.native.*token_embedding\.weight"):
        clipkit.merge([other, clipkit.load(two[0])])
    with pytest.raises(ModelError, match="one weight per model"):
        clipkit.merge([clipkit.load(folder) for folder in two], [0.5, 0.6])
    with pytest.raises(ModelError, match="two or more models"):
        clipkit.merge([clipkit.load(two[0])])
