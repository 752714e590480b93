"""Measure an epoch from stored inputs beside an epoch that runs the whole towers.

Two runs beside each other for each question, on the same random images and captions with the same random ViT-B/32:
the last three blocks of both towers, and only the projections. The first epoch is a warm-up; the figures are the mean
of the others, computing and waiting for data together, without evaluation. Losses of both runs are compared. Processor
time is what counts where other programs run on the machine.

    python benchmarks/stored.py --images 192 --batch 64 --epochs 3
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

WORDS = "a the two dogs cats men running sitting red blue grass beach water with ball on near of tree".split()  # noqa: SIM905


def data(folder: Path, images: int) -> Path:
    """Write JPEG files of 500 × 375 pixels, and captions of 6 to 18 words."""
    from PIL import Image

    generator = np.random.default_rng(0)
    lines = ["image,caption"]
    for number in range(images):
        coarse = Image.fromarray(generator.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
        lines.append(f"{number}.jpg,{' '.join(generator.choice(WORDS, generator.integers(6, 19)))} {number}")
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    return folder / "train.csv"


def epochs_of(model: Path, table: Path, args: argparse.Namespace, output: Path, **changes: object) -> dict[str, Any]:
    """Train without evaluation; return seconds and processor seconds of each epoch, and the losses."""
    from clipkit.recipe import Recipe
    from clipkit.training.folder.run_log import RunLog
    from clipkit.training.opening import tower_inputs
    from clipkit.training.plan import make_plan
    from clipkit.training.step import Step

    values = {
        "model": {"name": str(model)},
        "data": {"train": str(table), "augment": "none", "workers": 0},
        "train": {"epochs": args.epochs, "batch_size": args.batch, "seed": 0},
        "output": str(output),
    }
    plan = make_plan(Recipe.from_dict(values).override(changes))
    inputs = tower_inputs(plan, RunLog(False))
    inputs.store_parts()
    shared = (plan.objective.value, plan.processes, plan.accelerator)
    gradients = Step(plan.model, inputs.encoders, *shared, args.batch, args.micro_batch or args.batch, 0)
    times, losses = [(time.perf_counter(), time.process_time())], []
    slices = plan.sampler.slices(0, plan.steps, slice(0, args.batch))
    for step, batch in enumerate(inputs.batches(slices, 0)):
        losses.append(float(gradients(batch, step)))
        plan.optimizer.step()
        plan.optimizer.zero_grad()
        if (step + 1) % plan.sampler.steps_per_epoch == 0:
            times.append((time.perf_counter(), time.process_time()))
    seconds = np.diff(np.array(times), axis=0)[1:].mean(axis=0)
    return {"seconds": seconds[0], "processor": seconds[1], "losses": np.array(losses)}


def compared(name: str, whole: dict[str, Any], stored: dict[str, Any]) -> None:
    """Print one JSON line."""
    print(
        json.dumps(
            {
                "tune": name,
                "seconds of whole towers": round(whole["seconds"], 3),
                "seconds of stored inputs": round(stored["seconds"], 3),
                "times faster": round(whole["seconds"] / stored["seconds"], 2),
                "times less processor time": round(whole["processor"] / stored["processor"], 2),
                "largest difference of a loss": float(np.abs(whole["losses"] - stored["losses"]).max()),
            }
        ),
        flush=True,
    )


def main() -> None:
    """Run both questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--micro-batch", type=int, help="pairs with a graph at once; default: the batch")
    parser.add_argument("--tune", nargs="+", default=["last:3", "head"])
    parser.add_argument("--model", default="open_clip:ViT-B-32")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["CLIPKIT_CACHE"] = str(folder / "cache")
        import torch

        import clipkit

        torch.manual_seed(0)
        clipkit.load(args.model, device="cpu").save(folder / "model")
        table = data(folder, args.images)
        for tune in args.tune:
            whole = {"data.store": None, "model.image.tune": tune, "model.text.tune": tune}
            if tune == "head":
                # A crop of the whole image gives almost the same pixels, but the frozen image trunk runs in each step.
                whole |= {"data.augment": "crop", "data.crop_scale": [1.0, 1.0]}
            stored = {"model.image.tune": tune, "model.text.tune": tune}
            compared(
                tune, *(epochs_of(folder / "model", table, args, folder / "run", **run) for run in (whole, stored))
            )


if __name__ == "__main__":
    main()
