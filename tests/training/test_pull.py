"""Pull of the weights to their values at the start."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import clipkit
from clipkit.errors import RecipeError
from clipkit.recipe import Recipe
from clipkit.training.plan import make_plan
from clipkit.training.pull import Pull
from tests.conftest import read_lines
from tests.training.folder.test_resume import interrupted

Build = Callable[..., Recipe]


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_gradient_is_that_of_the_penalty_in_float64(tiny_clip: Path, scale: float) -> None:
    model = clipkit.load(tiny_clip).double()
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    pull = Pull(model, 0.3, lambda name: "new" if name.startswith("image.head") else "pretrained")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    penalty = torch.zeros((), dtype=torch.float64)
    for name, parameter in model.named_parameters():  # the definition
        if name.startswith(("image.", "text.")) and not name.startswith("image.head"):
            penalty = penalty + 0.3 * ((parameter - start[name]) ** 2).sum()
    gradients = torch.autograd.grad(penalty, list(model.parameters()), allow_unused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert pull.add_gradient(scale).item() == pytest.approx(penalty.item(), rel=1e-12)
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        expected = torch.ones_like(parameter) if gradient is None else 1 + scale * gradient
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-10, msg=name)


def test_head_with_pull_is_prolip_in_float64(tiny_clip: Path) -> None:
    """Train a projection on stored features as ProLIP's code does, and by adding the gradient of the pull."""
    model = clipkit.load(tiny_clip).double()
    model.requires_grad_(False)
    model.image.head.requires_grad_(True)
    weight: torch.nn.Parameter = model.image.head.weight  # type: ignore[assignment]
    features, labels = torch.randn(20, weight.shape[1]).double(), torch.randint(0, 4, (20,))
    classes = F.normalize(torch.randn(weight.shape[0], 4).double(), dim=0)
    theirs, start = torch.nn.Parameter(weight.detach().clone()), weight.detach().clone()
    pull = Pull(model, 0.05, lambda name: "pretrained")
    optimizers = [torch.optim.Adam([each], lr=1e-2, eps=1e-4) for each in (weight, theirs)]
    for _ in range(20):
        for each, optimizer in zip((weight, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            logits = 100.0 * F.normalize(features @ each.T, dim=-1) @ classes
            loss = F.cross_entropy(logits, labels)
            if each is theirs:
                loss = loss + 0.05 * F.mse_loss(start.view(-1), each.view(-1), reduction="sum")
            loss.backward()
            if each is weight:
                pull.add_gradient()
            optimizer.step()
    torch.testing.assert_close(weight.detach(), theirs.detach(), rtol=1e-10, atol=1e-10)
    assert (weight - start).norm() > 0.1


@pytest.mark.slow
def test_pulled_weights_stay_closer_to_their_start(recipe: Build, tmp_path: Path, tiny_clip: Path) -> None:
    start, moved = load_file(tiny_clip / "model.safetensors"), {}
    for weight in (None, 20.0):
        changes = {"optim.name": "sgd", "optim.lr": 0.01, "optim.clip": None, "train.epochs": 10}
        clipkit.train(recipe({**changes, "optim.pull_to_start": weight}), overwrite=True)
        end = load_file(tmp_path / "run" / "model" / "model.safetensors")
        moved[weight] = torch.stack([(end[name] - start[name]).norm() for name in start]).norm()
    assert moved[20.0] < 0.9 * moved[None]


def test_resumed_run_pulls_to_the_same_start(recipe: Build, tmp_path: Path) -> None:
    changes = {"optim.pull_to_start": 0.5, "train.epochs": 2, "checkpoint.every_steps": 2, "data.validation": None}
    clipkit.train(recipe(changes))
    penalties = [row["pull"] for row in read_lines(tmp_path / "run" / "metrics.jsonl")]
    assert penalties[0] == 0.0 < penalties[1]
    other = {**changes, "output": str(tmp_path / "other")}
    interrupted(recipe(other), after=3)
    clipkit.train(recipe(other), resume=True)
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_another_start_is_another_run(recipe: Build, tmp_path: Path, tiny_clip: Path) -> None:
    base, part = clipkit.load(tiny_clip), "the initial weights of the model"
    base.save(tmp_path / "base")
    changes = {"optim.pull_to_start": 0.5, "model.name": str(tmp_path / "base")}
    before = make_plan(recipe(changes)).identity
    assert make_plan(recipe(changes)).identity == before
    with torch.no_grad():
        base.text.head.weight.add_(1e-3)  # type: ignore[operator, union-attr]
    base.save(tmp_path / "base")
    after = make_plan(recipe(changes)).identity
    assert {name for name in before if before[name] != after[name]} == {part}  # which a resumed run refuses


def test_pull_without_pretrained_weights_is_refused(recipe: Build) -> None:
    with pytest.raises(RecipeError, match=r"optim\.pull_to_start"):
        make_plan(recipe({"optim.pull_to_start": 1.0, "model.image.tune": "frozen", "model.text.tune": "frozen"}))
