"""Layers whose pooled outputs are the input of a projection: names such as `mean:6`, `cls` or `probabilities`."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic import AfterValidator, Discriminator, Tag

POOLINGS = {
    "output": "the tower's output, as its library pools it (text: as model.text.pooling)",
    "mean": "the mean over all positions of the last map, or over all tokens without padding",
    "max": "the maximum of each channel, over the positions of mean",
    "cls": "the first token",
    "last": "the last token before the padding (text only)",
    "probabilities": "the square roots of the class probabilities of a timm model with a classifier (image only)",
}
"""Poolings of a layer, with descriptions. A number after mean, max, cls or last selects an earlier layer, as in mean:4:
a stage of a convolutional tower or a block of a transformer, from 1. In a text tower, 0 is for the token embeddings.
"""

_NUMBERED = ("mean", "max", "cls", "last")
_ONLY = {"last": "text", "probabilities": "image"}


def parse_layer(name: str) -> tuple[str, int | None]:
    """Split the name of a layer into the pooling and the layer number; None stands for the last layer.

    Raises:
        ValueError: the name is invalid.

    >>> parse_layer("mean:4"), parse_layer("cls")
    (('mean', 4), ('cls', None))
    """
    if matched := re.fullmatch(r"(\w+)(?::(\d{1,4}))?", name):
        pooling, number = matched.groups()
        if pooling in POOLINGS and (number is None or pooling in _NUMBERED):
            return pooling, None if number is None else int(number)
    listed = ", ".join(f"{pooling}{'[:N]' * (pooling in _NUMBERED)}" for pooling in POOLINGS)
    raise ValueError(f"{name!r} is not a layer; use {listed}, where N is the number of an earlier layer")


def _check(layers: list[str]) -> list[str]:
    for name in layers:
        parse_layer(name)
    if repeated := next((name for name in layers if layers.count(name) > 1), None):
        raise ValueError(f"{repeated} is listed twice; list {repeated} only once")
    return layers


def shortened(layers: Sequence[str]) -> str:
    """Return layer names as a short text, with consecutive layers of the same pooling combined.

    >>> shortened(["output", "mean:3", "mean:2", "mean:1", "max:8", "max:6"])
    'output, mean:3…1, max:8/6'
    """
    entries: list[tuple[str, list[int]]] = []
    for name in layers:
        pooling, _, number = name.partition(":")
        if not number or not entries or entries[-1][0] != pooling or not entries[-1][1]:
            entries.append((pooling, []))
        entries[-1][1].extend([int(number)] if number else [])
    return ", ".join(pooling + (f":{_numbers(numbers)}" if numbers else "") for pooling, numbers in entries)


def _numbers(numbers: Sequence[int]) -> str:
    in_sequence = all(one - other == 1 for one, other in pairwise(numbers))
    return f"{numbers[0]}…{numbers[-1]}" if in_sequence and len(numbers) > 2 else "/".join(map(str, numbers))


def check_tower(layers: object, tower: str) -> None:
    """Check that all named layers can exist in a tower.

    Args:
        layers: list of names; other values (`auto` or None) are not checked.
        tower: `image` or `text`.

    Raises:
        ValueError: a layer cannot exist in this tower, e.g. `last` in an image tower.
    """
    for name in layers if isinstance(layers, list) else ():
        pooling, number = parse_layer(name)
        if _ONLY.get(pooling, tower) != tower:
            raise ValueError(f"{tower}.layers: {name} applies only to {_ONLY[pooling]} towers; remove {name}")
        if number == 0 and tower == "image":
            raise ValueError(
                f"{tower}.layers: {name} does not exist, because the stages of an image tower are numbered from "
                f"1; remove {name}"
            )


Layers = Annotated[
    Annotated[Literal["auto"], Tag("one")] | Annotated[list[str], MinLen(1), AfterValidator(_check), Tag("several")],
    Discriminator(lambda value: "one" if value == "auto" else "several"),
]
