"""Gradients of one global batch on this many processes, written to a file: run by test_exactness under torchrun."""

import itertools
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from clipkit.data import Batch
from clipkit.models import DualEncoder
from clipkit.models.towers import ImageTower, TextTower
from clipkit.processes import Processes
from clipkit.recipe import LossRecipe
from clipkit.training.objective import objective_of
from clipkit.training.step import Step

WIDTH = 12
LONGEST = 9
VOCABULARY = 40
LOSSES = {
    "infonce": LossRecipe(duplicates="negative"),
    "multi-positive": LossRecipe(duplicates="positive"),
    "ignore": LossRecipe(duplicates="ignore"),
    "sigmoid": LossRecipe(name="sigmoid"),
}
MICRO_BATCHES = (1, 3, 8, 100)
BATCHES = (16, 14)  # 14 pairs on 4 processes: 3, 4, 3, 4


class Pixels(nn.Module):
    """Something non-linear over 3 × 4 × 4 pixels."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(48, 20), nn.GELU(), nn.Dropout(dropout), nn.LayerNorm(20))

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.layers(pixel_values.flatten(1))


class Words(nn.Module):
    """Attention under a mask, then the mean over what is not padding."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout, batch_first=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.layer(self.words(input_ids), src_key_padding_mask=attention_mask == 0)
        mask = attention_mask[..., None].to(states.dtype)
        return (states * mask).sum(1) / mask.sum(1)


def build(dtype: torch.dtype, dropout: float) -> DualEncoder:
    torch.manual_seed(3)
    image: Any = ImageTower(Pixels(dropout), nn.Linear(20, WIDTH, bias=False), [["layers.0.weight"]], None)  # type: ignore[arg-type]
    text: Any = TextTower(Words(dropout), nn.Linear(16, WIDTH, bias=False), [["words.weight"]], None)  # type: ignore[arg-type]
    scale, bias = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(-1.0))
    model = DualEncoder(image, text, scale, bias, None, "made").to(dtype)  # type: ignore[arg-type]
    return model.requires_grad_(True).train(dropout > 0)


def global_batch(pairs: int, dtype: torch.dtype) -> Batch:
    """Pictures and captions that repeat, captions of different length."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, LONGEST + 1, (pairs,), generator=generator)
    return Batch(
        image={"pixel_values": torch.randn(pairs, 3, 4, 4, generator=generator, dtype=dtype)},
        text={
            "input_ids": torch.randint(0, VOCABULARY, (pairs, LONGEST), generator=generator),
            "attention_mask": (torch.arange(LONGEST) < lengths[:, None]).long(),
        },
        image_ids=torch.arange(pairs) % (pairs - 3),
        caption_ids=torch.arange(pairs) // 2 * (torch.arange(pairs) % 5 > 1),
    )


def slice_of(batch: Batch, rows: slice) -> Batch:
    return Batch(
        {name: value[rows] for name, value in batch.image.items()},
        {name: value[rows] for name, value in batch.text.items()},
        batch.image_ids[rows],
        batch.caption_ids[rows],
    )


def gradients(
    loss: str, pairs: int, micro: int, dtype: torch.dtype, dropout: float, accelerator: Accelerator
) -> dict[str, Tensor]:
    processes = Processes(accelerator)
    model = build(dtype, dropout)
    step = Step(model, objective_of(LOSSES[loss]), processes, accelerator, pairs, micro, seed=1)
    value = step(slice_of(global_batch(pairs, dtype), processes.share(pairs)), step=7)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found | {"loss": value}


def main(out: Path) -> None:
    accelerator = Accelerator(cpu=True)
    found = {}
    for dtype, loss, pairs, micro in itertools.product((torch.float64, torch.float32), LOSSES, BATCHES, MICRO_BATCHES):
        found[(str(dtype), loss, pairs, micro)] = gradients(loss, pairs, micro, dtype, 0.0, accelerator)
    torch.save((accelerator.num_processes, found), out / f"{accelerator.num_processes}-{accelerator.process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
