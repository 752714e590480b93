"""Augmentation policies of images: named or unnamed lists of steps with parameters.

To add a named policy, add an entry to `POLICIES`. Sizes are in pixels of the tower's input, angles in degrees; p is
the probability that a step is applied to an image.

>>> [step.name for step in steps_of("slip")]
['crop', 'jitter', 'grayscale', 'blur', 'flip']
"""

import textwrap
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
)

from clipkit.closest import closest
from clipkit.errors import RecipeError
from clipkit.parsing import parse_yaml
from clipkit.recipe.problems import key_of, value_and_advice
from clipkit.recipe.section import Section

Probability = Annotated[float, Field(ge=0, le=1)]


def _check_rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"is {list(pair)}; give the lower value first")
    return pair


Share = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(ge=0.01, le=100)]
Sigma = Annotated[float, Field(gt=0, le=100)]
Strength = Annotated[float, Field(ge=0, le=10)]
Shares = Annotated[tuple[Share, Share], AfterValidator(_check_rising)]


class Crop(Section):
    """Crop a random part of the image and resize it to the input size (Szegedy et al. 2015)."""

    name: Literal["crop"] = "crop"
    scale: Shares = (0.8, 1.0)
    """Minimum and maximum share of the image area."""
    ratio: Annotated[tuple[Ratio, Ratio], AfterValidator(_check_rising)] = (3 / 4, 4 / 3)
    """Minimum and maximum ratio of width to height."""


class Flip(Section):
    """Mirror the image horizontally or vertically."""

    name: Literal["flip"] = "flip"
    direction: Literal["horizontal", "vertical"] = "horizontal"
    p: Probability = 0.5


class Rotate(Section):
    """Rotate the image around its center; the corners become gray."""

    name: Literal["rotate"] = "rotate"
    degrees: float = Field(default=30.0, gt=0, le=180)
    """Maximum angle in degrees, in either direction."""
    p: Probability = 1.0


class Jitter(Section):
    """Change brightness, contrast, saturation and hue randomly.

    A brightness, contrast or saturation of x means a random factor in [1 − x, 1 + x]. The hue is rotated by a random
    share of the color circle in [−hue, hue].
    """

    name: Literal["jitter"] = "jitter"
    brightness: Strength = 0.4
    contrast: Strength = 0.4
    saturation: Strength = 0.4
    hue: float = Field(default=0.1, ge=0, le=0.5)
    p: Probability = 0.8


class Grayscale(Section):
    """Convert the image to grayscale."""

    name: Literal["grayscale"] = "grayscale"
    p: Probability = 0.2


class Blur(Section):
    """Blur the image with a Gaussian kernel."""

    name: Literal["blur"] = "blur"
    sigma: Annotated[tuple[Sigma, Sigma], AfterValidator(_check_rising)] = (0.1, 2.0)
    """Minimum and maximum standard deviation in pixels."""
    p: Probability = 0.5


class Solarize(Section):
    """Invert pixel values above the threshold (0 to 255)."""

    name: Literal["solarize"] = "solarize"
    threshold: float = Field(default=128.0, ge=0, le=255)
    p: Probability = 0.2


class Cutout(Section):
    """Cover a part of the image with a gray rectangle (Zhong et al. 2020)."""

    name: Literal["cutout"] = "cutout"
    scale: Shares = (0.02, 0.33)
    """Minimum and maximum share of the image area."""
    p: Probability = 0.5


class RandAugment(Section):
    """Apply `count` operations to the image, drawn at random from fourteen (RandAugment, Cubuk et al. 2020)."""

    name: Literal["randaugment"] = "randaugment"
    count: int = Field(default=2, ge=1, le=100)
    magnitude: int = Field(default=9, ge=0, le=30)


Step = Crop | Flip | Rotate | Jitter | Grayscale | Blur | Solarize | Cutout | RandAugment

POLICIES: dict[str, tuple[Step, ...]] = {
    # Only the evaluation preprocessing of the model.
    "none": (),
    # A weak policy for fine-tuning. For the objective captions, data.crop_scale sets its scale.
    "crop": (Crop(),),
    # open_clip's policy for CLIP from scratch.
    "clip": (Crop(scale=(0.9, 1.0)),),
    # Chen et al. 2020, appendix A, with color strength 1.
    "simclr": (
        Crop(scale=(0.08, 1.0)),
        Flip(),
        Jitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2),
        Grayscale(),
        Blur(),
    ),
    # Chen et al. 2020, "Improved Baselines with Momentum Contrastive Learning".
    "moco": (Crop(scale=(0.2, 1.0)), Jitter(), Grayscale(), Blur(), Flip()),
    # Mu et al. 2022 (SLIP), for the two views that are trained in addition to the captions.
    "slip": (Crop(scale=(0.08, 1.0)), Jitter(), Grayscale(), Blur(), Flip()),
    # Grill et al. 2020 (BYOL), appendix B: the policies of its first and second view.
    "byol_first": (Crop(scale=(0.08, 1.0)), Flip(), Jitter(saturation=0.2), Grayscale(), Blur(p=1.0)),
    "byol_second": (Crop(scale=(0.08, 1.0)), Flip(), Jitter(saturation=0.2), Grayscale(), Blur(p=0.1), Solarize()),
}


def _check_policy(name: str) -> str:
    if name not in POLICIES:
        advice = closest(name, POLICIES)
        raise ValueError(f"{name!r} is not a policy; {advice} (or give a list of steps, e.g. [crop, flip])")
    return name


_SPELLINGS = {"grey": "grayscale", "gray": "grayscale", "solarise": "solarize"}


def _with_name(step: object) -> object:
    """Convert a step that is only a name to a mapping, and normalize the spelling of the name."""
    if isinstance(step, str):
        step = {"name": step}
    if isinstance(step, dict) and isinstance(name := step.get("name"), str):
        return {**step, "name": _SPELLINGS.get(name, name)}
    return step


# A name of a policy, or a list of steps; a step is a mapping or a name: [crop, {name: rotate, degrees: 15}].
Policy = Annotated[
    Annotated[str, AfterValidator(_check_policy), Tag("one")]
    | Annotated[
        list[Annotated[Annotated[Step, Field(discriminator="name")], BeforeValidator(_with_name)]], Tag("several")
    ],
    Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "one"),
]


def steps_of(policy: str | Sequence[Step]) -> tuple[Step, ...]:
    """Return the augmentation steps of a policy, given as its name or as a list of steps."""
    return POLICIES[policy] if isinstance(policy, str) else tuple(policy)


def parse_policy(text: str) -> tuple[Step, ...]:
    """Parse an augmentation policy from the command line: a name, or a list of steps in YAML.

    Raises:
        RecipeError: `text` is neither a known name nor a valid list.
    """
    try:
        return steps_of(TypeAdapter(Policy).validate_python(parse_yaml(text)))
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"] == "value_error":
            reason = problem["msg"].removeprefix("Value error, ")
        else:
            reason = f"{key_of(problem)} {value_and_advice(problem)}".strip()
        raise RecipeError(f"--policy {text}: {reason}") from None
    except ValueError as error:
        raise RecipeError(f"--policy {text!r} is not valid YAML ({error}); give a name or a list of steps") from None


def table() -> str:
    """Return a table of the named augmentation policies with their steps and parameters, for a terminal."""
    rows = []
    for name, steps in POLICIES.items():
        line = f"{name}: {', '.join(map(_written, steps)) or 'no steps'}"
        rows.append("\n  ".join(textwrap.wrap(line, 96)))
    return "\n".join(rows)


def _written(step: Step) -> str:
    values = step.model_dump(exclude={"name"})
    strengths = ", ".join(
        f"{key} {value}" if not isinstance(value, tuple) else f"{key} {value[0]:.3g} to {value[1]:.3g}"
        for key, value in values.items()
        if key != "ratio"
    )
    return f"{step.name} ({strengths})"
