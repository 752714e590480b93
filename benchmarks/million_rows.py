"""Measure a table of a million rows, as JSON: time to the first step, and memory of the main process.

    python benchmarks/million_rows.py FOLDER [--rows 1000000]

Write FOLDER/captions.csv with a different image and caption in each row (the images are links to twenty random ones),
start `clipkit train` on it with a small model from scratch, and stop it after the first step. `first_step_seconds`
counts from the start of the process, `imports_seconds` is the time of the imports alone, `peak_bytes` is the largest
resident size of the main process, including libraries, model and step: compare with --rows 10000.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

_IMAGES = 20

_RECIPE = """
model:
  image: {{name: timm:test_vit, pretrained: false}}
  text: {{name: hf:bert, pretrained: false, tokenizer: open_clip:ViT-B-32, context_length: 32,
         config: {{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
                  intermediate_size: 64}}}}
  embed_dim: 32
data: {{train: {folder}/captions.csv, workers: 2}}
optim: {{lr: 1.0e-4}}
train: {{epochs: 1, batch_size: 256, micro_batch_size: 256}}
output: {folder}/run
"""


def make(folder: Path, rows: int) -> None:
    """Write the table and its images, unless they exist."""
    table = folder / "captions.csv"
    if table.exists():
        return
    generator = np.random.default_rng(0)
    for number in range(_IMAGES):
        (folder / "drawn").mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "drawn" / f"{number}.jpg")
    names = []
    for row in range(rows):
        name = f"images/{row // 1000:04d}/{row:07d}.jpg"
        if row % 1000 == 0:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        # Many file systems allow at most 65,000 links to one file.
        os.link(folder / "drawn" / f"{row % _IMAGES}.jpg", folder / name)
        names.append(name)
    lines = (f"{name},an image that has the number {row}\n" for row, name in enumerate(names))
    table.write_text("image,caption\n" + "".join(lines), encoding="utf-8")


def main() -> None:
    """Measure one run and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    folder = arguments.folder
    make(folder, arguments.rows)
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import clipkit.training, timm, transformers, open_clip"], check=True)
    imports = time.perf_counter() - began
    recipe = folder / "recipe.yaml"
    recipe.write_text(_RECIPE.format(folder=folder), encoding="utf-8")
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "clipkit", "train", str(recipe), "--overwrite"])
    metrics = folder / "run" / "metrics.jsonl"
    metrics.unlink(missing_ok=True)
    peak = 0
    while process.poll() is None and not (metrics.exists() and metrics.read_text(encoding="utf-8")):
        peak = max(peak, psutil.Process(process.pid).memory_info().rss)
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    process.send_signal(signal.SIGINT)
    process.wait()
    result = {"rows": arguments.rows, "imports_seconds": imports, "first_step_seconds": seconds, "peak_bytes": peak}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
