"""A training loop with plain Accelerate; test_own_step runs it on several processes, docs/python.md shows it."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image

import clipkit


def main(folder: str, data: str, out: str, micro_batch_size: int, accumulate: bool = False) -> None:
    """Train for two batches, with an update after each, or with one update by the sum of their gradients."""
    accelerator = Accelerator(cpu=True)
    model = clipkit.load(folder, device=accelerator.device, dtype=torch.float64)
    pairs = [line.split(",", 1) for line in Path(data).read_text().splitlines()[1:]]
    images, captions = [str(Path(data).parent / name) for name, _ in pairs], [caption for _, caption in pairs]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = clipkit.Step(
        model, clipkit.losses.infonce, accelerator, batch_size=10, micro_batch_size=micro_batch_size or None
    )
    losses = []
    for start in (0, 10):
        rows = slice(start + step.rows.start, start + step.rows.stop)
        inputs = [model.image.preprocess(Image.open(image).convert("RGB"))["pixel_values"] for image in images[rows]]
        pixels = {"pixel_values": torch.stack(inputs).double()}
        losses.append(step(pixels, captions[rows], image_ids=[row // 2 for row in range(rows.start, rows.stop)]))
        if accumulate and start == 0:
            continue
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    torch.save((losses, model.state_dict()), f"{out}/{accelerator.num_processes}-{accelerator.process_index}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:4], micro_batch_size=int(sys.argv[4]), accumulate="accumulate" in sys.argv)
