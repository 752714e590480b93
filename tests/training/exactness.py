"""Write the gradients of one global batch on this process to a file; test_exactness runs it on several processes."""

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from clipkit import catalogue
from clipkit.catalogue import LossRow, Need
from clipkit.data import Batch
from clipkit.models import DualEncoder
from clipkit.models.preprocess import Preprocess
from clipkit.models.towers import ImageTower, TextTower
from clipkit.models.view_heads import ViewHead
from clipkit.processes import Processes
from clipkit.recipe import HeadRecipe, LossRecipe
from clipkit.training import gradient_sum
from clipkit.training.objectives.loss_sum import loss_sum
from clipkit.training.objectives.objective import Value
from clipkit.training.objectives.views import value_of_views
from clipkit.training.step import Encoder, Step

WIDTH = 12
LONGEST = 9
VOCABULARY = 40


def _recipe(row: LossRow) -> LossRecipe:
    """Return the loss with its defaults, beside InfoNCE if it needs another loss."""
    entry = {"name": row.name} | ({"teacher": "made"} if Need.TEACHER in row.needs else {})
    return LossRecipe(name=[{"name": "infonce"}, entry] if Need.ANOTHER_LOSS in row.needs else [entry])


LOSSES = {name: _recipe(row) for name, row in catalogue.LOSSES.items()} | {
    "infonce, negative": LossRecipe(duplicates="negative"),
    "infonce, ignore": LossRecipe(duplicates="ignore"),
    "infonce, smoothed": LossRecipe(label_smoothing=0.1),
    "triplet, all": LossRecipe(name="triplet", mining="all", margin=0.5),
}
# Views: names of their features, and the loss between two views.
_IMAGES, _TEXTS = [f"image_view_{view}" for view in (1, 2, 3)], [f"text_view_{view}" for view in (1, 2)]
VIEWS = {
    "SimCLR, image, head": _IMAGES[:2],
    "SimCLR, image, batch norm head": _IMAGES[:2],
    "triplet, image": _IMAGES[:2],
    "three views, image": _IMAGES,
    "SimCSE, text": _TEXTS,
    "SimCSE, text, head": _TEXTS,
}
VIEW_LOSSES = {
    "SimCLR, image, head": LossRecipe(name="ntxent", duplicates="negative"),
    "SimCLR, image, batch norm head": LossRecipe(name="ntxent", duplicates="negative"),
    "triplet, image": LossRecipe(name="triplet", mining="all", margin=0.5),
    "three views, image": LossRecipe(name="ntxent"),
    "SimCSE, text": LossRecipe(name="infonce", duplicates="negative"),
    "SimCSE, text, head": LossRecipe(name="infonce"),
}
OBJECTIVES = [*LOSSES, *VIEWS]
# The others share the machinery of these, so that a few cuts are enough.
_ALL_CUTS = ("infonce", "infonce, negative", "infonce, ignore", "sigmoid")
MICRO_BATCHES = (1, 3, 8, 100)
BATCHES = (16, 14)  # 14 pairs on 4 processes: 3, 4, 3, 4


class Pixels(nn.Module):
    """A small non-linear network on 3 × 4 × 4 pixels."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(48, 20), nn.GELU(), nn.Dropout(dropout), nn.LayerNorm(20))

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.layers(pixel_values.flatten(1))


PREPROCESS = Preprocess(lambda image: {}, None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Words(nn.Module):
    """Attention under a mask, then the mean over all tokens but padding."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout, batch_first=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.layer(self.words(input_ids), src_key_padding_mask=attention_mask == 0)
        mask = attention_mask[..., None].to(states.dtype)
        return (states * mask).sum(1) / mask.sum(1)


def build(dtype: torch.dtype, dropout: float, head: str = "layer") -> DualEncoder:
    torch.manual_seed(3)
    image: Any = ImageTower(Pixels(dropout), nn.Linear(20, WIDTH, bias=False), [["layers.0.weight"]], PREPROCESS)
    text: Any = TextTower(Words(dropout), nn.Linear(16, WIDTH, bias=False), [["words.weight"]], None)  # type: ignore[arg-type]
    scale, bias = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(-1.0))
    model = DualEncoder(image, text, scale, bias, None, "made")  # type: ignore[arg-type]
    norm: Any = "batch" if head == "batch" else "layer"
    model.view_heads["image"] = ViewHead(HeadRecipe(width=14, dim=WIDTH, norm=norm), 20)
    model.view_heads["text"] = ViewHead(HeadRecipe(width=14, dim=WIDTH, norm=norm), 16)
    model = model.to(dtype)
    return model.requires_grad_(True).train(dropout > 0)


def global_batch(pairs: int, dtype: torch.dtype) -> Batch:
    """Return a batch with repeated images and captions, and captions of different length."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, LONGEST + 1, (pairs,), generator=generator)
    return Batch(
        {
            "image_features": {"pixel_values": torch.randn(pairs, 3, 4, 4, generator=generator, dtype=dtype)},
            "text_features": {
                "input_ids": torch.randint(0, VOCABULARY, (pairs, LONGEST), generator=generator),
                "attention_mask": (torch.arange(LONGEST) < lengths[:, None]).long(),
            },
            "negative_text_features": {
                "input_ids": torch.randint(0, VOCABULARY, (pairs, LONGEST), generator=generator),
                "attention_mask": (torch.arange(LONGEST) < lengths.flip(0)[:, None]).long(),
            },
            # Three views of each image, two of each caption, of different length.
            **{
                f"image_view_{view}": {"pixel_values": torch.randn(pairs, 3, 4, 4, generator=generator, dtype=dtype)}
                for view in (1, 2, 3)
            },
            **{
                f"text_view_{view}": {
                    "input_ids": torch.randint(0, VOCABULARY, (pairs, LONGEST), generator=generator),
                    "attention_mask": (torch.arange(LONGEST) < lengths.roll(view)[:, None]).long(),
                }
                for view in (1, 2)
            },
        },
        image_ids=torch.arange(pairs) % (pairs - 3),
        caption_ids=torch.arange(pairs) // 2 * (torch.arange(pairs) % 5 > 1),
        caption_rows=torch.arange(pairs),
    )


def teacher(gathered: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the features of a teacher, which depend on ids alone."""
    generator = torch.Generator().manual_seed(8)
    dtype = gathered["image_features"].dtype
    image, text = (F.normalize(torch.randn(20, 7, generator=generator, dtype=dtype), dim=-1) for _ in range(2))
    own = {
        "teacher_image_features": image[gathered["image_ids"]],
        "teacher_text_features": text[gathered["caption_ids"]],
    }
    return own | {"teacher_scale": torch.tensor(9.0, dtype=dtype)}


def seen(loss: str) -> list[str]:
    """Return the names of the features that the objective is computed from."""
    if loss in VIEWS:
        return list(VIEWS[loss])
    negatives = Need.NEGATIVES in LOSSES[loss].needs
    return ["image_features", "text_features", *(["negative_text_features"] if negatives else [])]


def encoders(loss: str, model: DualEncoder) -> dict[str, Encoder]:
    return {
        name: Encoder(
            model.image if name.startswith("image") else model.text, of_trunk=loss in VIEWS and "head" in loss
        )
        for name in seen(loss)
    }


def value(loss: str, model: DualEncoder) -> Value:
    if loss not in VIEWS:
        return loss_sum(LOSSES[loss].terms, {"made": teacher})
    head = model.view_head("image" if "image" in loss else "text") if "head" in loss else None
    ids = ("image_ids", "image_ids") if "image" in loss else ("caption_ids", "caption_ids")
    return value_of_views(seen(loss), VIEW_LOSSES[loss], 0.2, head, ids)


def cuts(loss: str) -> list[tuple[int, int]]:
    """Return the (pairs, micro-batch size) that a loss is tested with."""
    every = list(itertools.product(BATCHES, MICRO_BATCHES))
    return every if loss in _ALL_CUTS else [(14, 3), (16, 100)]


def slice_of(batch: Batch, rows: slice) -> Batch:
    return Batch(
        {name: {key: values[rows] for key, values in own.items()} for name, own in batch.inputs.items()},
        batch.image_ids[rows],
        batch.caption_ids[rows],
        batch.caption_rows[rows],
    )


def gradients(
    loss: str, pairs: int, micro: int, dtype: torch.dtype, dropout: float, accelerator: Accelerator
) -> dict[str, Tensor]:
    processes = Processes(accelerator)
    model = build(dtype, dropout, "batch" if "batch norm" in loss else "layer")
    step = Step(model, encoders(loss, model), value(loss, model), processes, accelerator, pairs, micro, seed=1)
    whole = step(slice_of(global_batch(pairs, dtype), processes.share(pairs)), step=7)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found | {"loss": whole}


def main(out: Path, dtype: torch.dtype) -> None:
    accelerator = Accelerator(cpu=True)
    gradient_sum._BUCKET = 500  # several buckets for each tower
    found = {}
    for loss in OBJECTIVES:
        for pairs, micro in cuts(loss):
            found[(loss, pairs, micro)] = gradients(loss, pairs, micro, dtype, 0.0, accelerator)
    torch.save((accelerator.num_processes, found), out / f"{accelerator.num_processes}-{accelerator.process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), getattr(torch, sys.argv[2]))
