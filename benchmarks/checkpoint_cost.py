"""Measure what checkpoints cost, as JSON: in a whole run, and between two checkpoints of a model of CLIP's size.

    python benchmarks/checkpoint_cost.py recipes/flickr8k_towers.yaml [--overrides train.epochs=10 …] [--pairs 16]

The towers of that recipe come from benchmarks/pretrained_towers.py. First the recipe runs with its checkpoints, and
the seconds spent in writing them are summed. Then a model of CLIP ViT-B/32's size, with both towers trained, runs a
few steps on random images. Reported are seconds per step, seconds per checkpoint, and their share of the time between
two checkpoints under the default recipe (500 steps or 15 minutes, whichever comes first); for comparison, the seconds
that torch.save takes for the same tensors, synced to disk but without hashes.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import clipkit
from clipkit.recipe import CheckpointRecipe, parse_overrides
from clipkit.training.folder import keeper
from clipkit.training.folder.checkpoint import write_checkpoint
from clipkit.training.folder.learned import Learned
from clipkit.training.weights import Weights

REPETITIONS = 3


def share_of_a_run(recipe: str, overrides: list[str]) -> dict[str, Any]:
    """Return the seconds of a run and how many of them are spent in `Keeper.write`."""
    write, seconds = keeper.Keeper.write, []

    def timed(self: keeper.Keeper, *arguments: Any) -> None:
        began = time.perf_counter()
        write(self, *arguments)
        seconds.append(time.perf_counter() - began)

    keeper.Keeper.write = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        clipkit.train(recipe, {**parse_overrides(overrides), "output": f"{folder}/run"})
        total = time.perf_counter() - began
    keeper.Keeper.write = write  # type: ignore[method-assign]
    return {
        "recipe": recipe,
        "run_seconds": round(total, 2),
        "checkpoints": len(seconds),
        "checkpoint_seconds": round(sum(seconds), 3),
        "share": round(sum(seconds) / total, 5),
    }


def share_of_an_interval(pairs: int) -> dict[str, Any]:
    """Time a step and a checkpoint of CLIP ViT-B/32 (151 M parameters) with AdamW."""
    from transformers import CLIPConfig, CLIPModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = CLIPModel(CLIPConfig(vision_config={"patch_size": 32})).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    pixels = torch.randn(pairs, 3, 224, 224, device=device)
    tokens = torch.randint(1, 49000, (pairs, 20), device=device)

    def step() -> float:
        began = time.perf_counter()
        output = model(input_ids=tokens, pixel_values=pixels)
        torch.nn.functional.cross_entropy(output.logits_per_image, torch.arange(pairs, device=device)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    step()
    step_seconds = statistics.median(step() for _ in range(REPETITIONS))
    learned = Learned(Weights(model), optimizer, None)
    ours, torch_save = [], []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for repetition in range(REPETITIONS):
            began = time.perf_counter()
            written = write_checkpoint(Path(folder), repetition, learned.tensors(), {"step": repetition})
            ours.append(time.perf_counter() - began)
            size = sum(file.stat().st_size for file in written.iterdir())
            began = time.perf_counter()
            with (Path(folder) / f"{repetition}.pt").open("wb") as file:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
                file.flush()
                os.fsync(file.fileno())
            torch_save.append(time.perf_counter() - began)
    defaults = CheckpointRecipe()
    assert defaults.every_minutes is not None
    # Scale to the default batch of 512 pairs: time grows in proportion to the pairs.
    full_step = step_seconds * 512 / pairs
    interval = min(defaults.every_steps * full_step, 60 * defaults.every_minutes)
    return {
        "model": "CLIP ViT-B/32, 151 M parameters, AdamW",
        "device": device,
        "gigabytes": round(size / 1e9, 2),
        "step_seconds_of_512_pairs": round(full_step, 2),
        "interval_seconds": round(interval, 1),
        "checkpoint_seconds": round(statistics.median(ours), 2),
        "checkpoint_seconds_spread": [round(min(ours), 2), round(max(ours), 2)],
        "torch_save_seconds": round(statistics.median(torch_save), 2),
        "share": round(statistics.median(ours) / interval, 5),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--overrides", nargs="*", default=[])
    parser.add_argument("--pairs", type=int, default=16)
    arguments = parser.parse_args()
    run = share_of_a_run(arguments.recipe, arguments.overrides)
    print(json.dumps({"run": run, "interval": share_of_an_interval(arguments.pairs)}, indent=2))
