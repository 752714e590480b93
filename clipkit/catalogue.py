"""Table of the losses that a recipe can use, with one row per loss. This module does not import torch.

A row with the name `NAME` describes the function `clipkit.losses.NAME`. The rows serve to validate recipes, to call
the losses in training, and to write `clipkit train --help` and docs/losses.md.

After changing a row, update docs/losses.md:

    python -m clipkit.catalogue > docs/losses.md
"""

import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any


class Need(Enum):
    """Input that a loss needs in addition to the image and caption features."""

    IDS = "image and caption IDs", ("image_ids", "caption_ids")
    SCALE = "the scale", ("scale",)
    BIAS = "a logit bias (SigLIP, or model.bias)", ("bias",)
    NEGATIVES = "a column negative_caption in data.train", ("negative_text_features",)
    TEACHER = "a teacher (loss.teacher)", ("teacher_image_features", "teacher_text_features", "teacher_scale")
    ANOTHER_LOSS = "a second loss, e.g. loss.name: [{name: infonce}, …]", ()

    def __init__(self, words: str, arguments: tuple[str, ...]) -> None:
        self.words = words
        self.arguments = arguments
        """Names of the loss function's arguments that receive this input."""

    @property
    def is_required(self) -> bool:
        """True if the user must provide this input. IDs and a scale are always available."""
        return self not in (Need.IDS, Need.SCALE)


_IDS = frozenset({Need.IDS})
_SCALED = frozenset({Need.IDS, Need.SCALE})

Chance = Callable[[int, Mapping[str, Any]], float]
"""Function (global batch size G, options of the recipe) -> value of the loss when all similarities are equal."""


@dataclass(frozen=True)
class LossRow:
    """Description of one loss, for validation and for the help pages.

    Attributes:
        name: name of the loss and of its function in `clipkit.losses`.
        summary: one sentence about what the loss does.
        formula: formula of the loss in one line. The docstring of the function has the exact equation.
        level: value of the loss when all similarities are equal, as text for the help pages, e.g. "ln G".
        source: paper that introduced the loss.
        use_when: situation in which to choose this loss.
        positives: image-caption combinations that the loss pulls together.
        memory: order of magnitude of the memory, in addition to the features.
        needs: inputs in addition to the features; every batch has IDs and a scale.
        options: keys of the recipe's loss section that this loss uses.
        chance: function that computes `level` as a number; None if this value is not a fixed number.
    """

    name: str
    summary: str
    formula: str
    level: str
    source: str
    use_when: str
    positives: str = "the caption of the same pair; for duplicates, see loss.duplicates above"
    memory: str = "O(G D), in tiles"
    needs: frozenset[Need] = _SCALED
    options: tuple[str, ...] = ()
    chance: Chance | None = None

    @property
    def requirements(self) -> str:
        """Text that lists the inputs that the user has to provide."""
        return " and ".join(need.words for need in Need if need in self.needs and need.is_required) or "nothing"


_CROSS_CONSISTENCY = LossRow(
    "cross_consistency",
    summary="Make the similarity of image i and caption j equal to the similarity of image j and caption i.",
    formula="1/G Σ (x_i · y_j − x_j · y_i)²",
    positives="none",
    memory="O(G D + D²)",
    level="0",
    source="Goel et al. 2022, CyCLIP",
    use_when="the image and text spaces should have the same geometry; only in a sum with infonce or another loss",
    needs=frozenset({Need.ANOTHER_LOSS}),
    chance=lambda pairs, options: 0.0,
)
_ROWS = (
    LossRow(
        "contrastive",
        summary="Pull positives together and push negatives apart up to a margin.",
        formula="½ mean d² over positives + ½ mean [m − d]²₊ over negatives",
        memory="O(G D), in bands",
        level="no fixed value",
        source="Hadsell et al. 2006",
        use_when="a fixed similarity threshold must separate matching pairs from others; the loss ignores the "
        "model's scale",
        needs=_IDS,
        options=("margin", "duplicates"),
    ),
    _CROSS_CONSISTENCY,
    LossRow(
        "dcl",
        summary="NT-Xent without the positive in the denominator, so that easy positives do not weaken the negatives.",
        formula="−positive + log Σ exp(negatives)",
        level="ln(2G − 2)",
        source="Yeh et al. 2022",
        use_when="batches are small",
        options=("duplicates",),
        chance=lambda pairs, options: math.log(2 * pairs - 2),
    ),
    LossRow(
        "distillation",
        summary="Match the teacher's softmax over the captions of the batch for each image, and over the images for "
        "each caption.",
        formula="cross entropy with the teacher's softmax over the batch, in both directions",
        positives="the teacher's probabilities as soft targets",
        memory="O(G D), in bands",
        level="ln G",
        source="Hinton et al. 2015; Wu et al. 2023, TinyCLIP",
        use_when="a small model learns from a large one, usually in a sum with infonce",
        needs=frozenset({Need.SCALE, Need.TEACHER}),
        options=("teacher",),
        chance=lambda pairs, options: math.log(pairs),
    ),
    LossRow(
        "infonce",
        summary="Symmetric InfoNCE over the G pairs of a global batch.",
        formula="−log softmax of the pair over the batch, in both directions",
        level="ln G",
        source="Radford et al. 2021, CLIP",
        use_when="default choice",
        options=("duplicates", "label_smoothing"),
        chance=lambda pairs, options: math.log(pairs),
    ),
    LossRow(
        "negclip",
        summary="InfoNCE with hard negative captions: each image is also contrasted with altered captions.",
        formula="InfoNCE, with H hard negative captions added to the softmax of each image",
        level="(ln(G + H) + ln G) / 2",
        source="Yuksekgonul et al. 2023, NegCLIP",
        use_when="the model must learn word order, attributes and relations; evaluate with clipkit eval compositional",
        needs=_SCALED | {Need.NEGATIVES},
        options=("duplicates",),
        chance=lambda pairs, options: (math.log(2 * pairs) + math.log(pairs)) / 2,
    ),
    LossRow(
        "ntxent",
        summary="InfoNCE with additional negatives: images are also contrasted with images, and texts with texts.",
        formula="−log softmax of the positive over the 2G − 1 other features",
        level="ln(2G − 1)",
        source="Chen et al. 2020, SimCLR",
        use_when="the positives are views of one image or text, or the features within each modality should "
        "also spread out",
        options=("duplicates",),
        chance=lambda pairs, options: math.log(2 * pairs - 1),
    ),
    LossRow(
        "sigmoid",
        summary="Classify each of the G² image-text combinations independently as matching or not.",
        formula="1/G Σ ln(1 + exp(−z (s x_i · y_j + b))) over all G² combinations; z: 1 for positives, −1 for "
        "negatives",
        level="depends on s and b (G ln 2 at s = b = 0)",
        source="Zhai et al. 2023, SigLIP",
        use_when="the model is a SigLIP, or batches are small",
        needs=_SCALED | {Need.BIAS},
        options=("duplicates",),
    ),
    LossRow(
        "supcon",
        summary="Treat all images and captions of one class as positives of each other.",
        formula="mean over positives of −log softmax over the 2G − 1 other features",
        positives="all pairs with the same image, caption or class",
        level="ln(2G − 1)",
        source="Khosla et al. 2020",
        use_when="many images share a caption, as in class folders",
        chance=lambda pairs, options: math.log(2 * pairs - 1),
    ),
    LossRow(
        "triplet",
        summary="Make each positive more similar than the negatives by a margin, in both directions.",
        formula="[m + d(positive) − d(negative)]₊",
        memory="O(G D), in bands",
        level="m, or 0 if mining is semihard",
        source="Schroff et al. 2015; Faghri et al. 2018 (hard); Hermans et al. 2017 (all)",
        use_when="fine-tuning for retrieval (mining: hard) or for classes (all, semihard); the loss ignores "
        "the model's scale",
        needs=_IDS,
        options=("margin", "mining", "distance", "duplicates"),
        chance=lambda pairs, options: 0.0 if options["mining"] == "semihard" else options["margin"] or 0.2,
    ),
    replace(
        _CROSS_CONSISTENCY,
        name="within_consistency",
        summary="Make the similarity of images i and j equal to the similarity of their captions.",
        formula="1/G Σ (x_i · x_j − y_i · y_j)²",
    ),
)
LOSSES = {row.name: row for row in _ROWS}

LEGEND = (
    "Symbols: x: image features; y: caption features; G: number of pairs in the global batch; D: dimension "
    "of the features; H: number of hard negative captions in the global batch; d: distance; m: margin; s: "
    "logit scale; b: logit bias; [u]₊: max(u, 0). Every softmax is computed over scaled similarities, e.g. "
    "s x_i · y_j. In the formula of dcl, the positive and the negatives are also scaled similarities. Chance is "
    "the value of the loss when all similarities are equal. Memory in tiles or in bands means that the loss is "
    "computed block by block, so that the G × G matrix is never stored. A tile is a square block; a band is a "
    "block of whole rows. Two pairs of a batch are duplicates if they have the same image or the same caption. "
    "The option loss.duplicates decides whether the image of a pair and the caption of its duplicate are treated "
    "as a positive (positive, the default), as a negative (negative), or as neither (ignore)."
)

_COLUMNS: dict[str, Callable[[LossRow], str]] = {
    "formula": lambda row: row.formula,
    "positives": lambda row: row.positives,
    "needs": lambda row: row.requirements,
    "memory": lambda row: row.memory,
    "chance": lambda row: row.level,
    "source": lambda row: row.source,
}


def table() -> str:
    """Return the description of all losses for a terminal, with one property per line."""
    blocks = [textwrap.fill(LEGEND, 98)]
    for row in LOSSES.values():
        facts = [f"{name}: {text(row)}" for name, text in _COLUMNS.items()]
        facts += [f"options: {', '.join(row.options)}"] if row.options else []
        lines = textwrap.wrap(f"{row.name}: {row.summary}", 98)
        for fact in facts:
            lines += textwrap.wrap(fact, 98, initial_indent="  ", subsequent_indent="    ")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def markdown() -> str:
    """Return the content of docs/losses.md."""
    lines = [
        "# Losses",
        "",
        "`loss.name` in a recipe selects one loss, or a weighted sum of several: `loss: {name: "
        "[{name: infonce}, {name: "
        "within_consistency, weight: 0.25}]}`.",
        "Each loss is a function in `clipkit.losses` of the unit-length image features x and text features y.",
        "",
        LEGEND,
        "",
        "`python -m clipkit.catalogue` writes this page from the table in `clipkit/catalogue.py`.",
        "",
        f"| loss | {' | '.join(_COLUMNS)} |",
        f"| --- |{' --- |' * len(_COLUMNS)}",
        *(
            f"| [{row.name}](#{row.name}) | {' | '.join(text(row) for text in _COLUMNS.values())} |"
            for row in LOSSES.values()
        ),
    ]
    for row in LOSSES.values():
        options = ", ".join(f"`{option}`" for option in row.options) or "none"
        lines += ["", f"## {row.name}", "", row.summary, "", f"- Use when: {row.use_when}.", f"- Options: {options}."]
        lines += [f"- Equation, arguments and an example: [`{row.name}.py`](../clipkit/losses/{row.name}.py)."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
