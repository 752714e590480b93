"""Greedy soup of models (Wortsman et al. 2022, "Model soups", recipe 1)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipkit.errors import ModelError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.merge import check_same, weights_of


@dataclass
class Ingredient:
    """Model that `greedy_soup` tried."""

    name: str
    score: float
    """Score of the model alone."""
    with_it: float = 0.0
    """Score of the soup with this model added."""
    kept: bool = False


def greedy_soup(
    names: Sequence[str],
    load: Callable[[str], DualEncoder],
    score: Callable[[DualEncoder], float],
    report: Callable[[str], None] = lambda line: None,
) -> tuple[DualEncoder, list[Ingredient]]:
    """Average the weights of models greedily, starting with the best model.

    The models are added in the order of their scores. A model is kept if it does not lower the score of the average.
    Two models and the sum of the kept models are in memory at the same time.

    Args:
        names: names of at least two models.
        load: function that loads a model by name.
        score: function that returns the score of a model on held-out data; higher is better.
        report: function that receives a line of text before each evaluation.

    Returns:
        The averaged model, and all tried models, the best first.

    Raises:
        ModelError: the architectures differ, or there are fewer than two models.

    Example:
        >>> soup, tried = greedy_soup(["runs/a", "runs/b"], load, measure)   # doctest: +SKIP
        >>> [one.name for one in tried if one.kept]                          # doctest: +SKIP
        ['runs/b', 'runs/a']
    """
    if len(names) < 2:
        raise ModelError(f"a model soup got {len(names)} model(s); give two or more")
    first = load(names[0])
    shapes = {name: value.to("meta") for name, value in weights_of(first).items()}
    for name in names[1:]:  # before the first evaluation
        check_same(first.name, shapes, name, weights_of(load(name)))
    del first
    tried = []
    for name in names:
        report(f"measuring {name}")
        tried.append(Ingredient(name, score(load(name))))
    tried.sort(key=lambda one: one.score, reverse=True)  # ties stay in the given order
    best = tried[0]
    soup = load(best.name)
    best.with_it, best.kept = best.score, True
    total, count, reached = _copies(soup), 1, best.score
    for one in tried[1:]:
        report(f"measuring the soup with {one.name}")
        added = weights_of(load(one.name))
        with_it = {name: value + added[name].to(value) for name, value in total.items()}
        _set(soup, with_it, count + 1)
        one.with_it = score(soup)
        if one.with_it >= reached:
            total, count, reached, one.kept = with_it, count + 1, one.with_it, True
    _set(soup, total, count)
    return soup, tried


def _copies(model: DualEncoder) -> dict[str, Tensor]:
    """Return float32 copies of the floating-point weights of a model."""
    return {
        name: value.detach().float().clone() for name, value in weights_of(model).items() if value.is_floating_point()
    }


def _set(model: DualEncoder, total: dict[str, Tensor], count: int) -> None:
    tensors = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in total.items():
            tensors[name].copy_(value / count)
