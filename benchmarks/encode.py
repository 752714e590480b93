"""Compare encoding with other libraries, as JSON: images/s, captions/s, loading, memory, time to the first embedding.

    pip install -e '.[benchmarks]'
    python benchmarks/encode.py ../shared/flickr8k/dev.csv [--images 96] [--captions 512] [--rounds 3]

The model is a CLIP ViT-B/32 with random weights in float32: in transformers' layout for clipkit, transformers and
sentence-transformers, in open_clip's layout for clipkit and open_clip. Each library encodes files and strings as its
documentation shows, in batches of 32, in a separate process; the libraries alternate. Reported are medians over the
rounds.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH = 32
LIBRARIES = ("clipkit", "transformers", "sentence-transformers", "clipkit (open_clip)", "open_clip")


def make_models(folder: Path) -> None:
    """Save the same architecture in both layouts."""
    import open_clip
    import torch
    from step_cost import save_clip
    from transformers import CLIPConfig, CLIPModel

    import clipkit
    from clipkit.models.image_processors import processor_class

    save_clip(folder / "transformers")  # for its tokenizer
    torch.manual_seed(0)
    text = {"eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 49407}
    CLIPModel(CLIPConfig(text_config=text, vision_config={"patch_size": 32})).save_pretrained(folder / "transformers")
    processor_class("CLIP")().save_pretrained(folder / "transformers")
    clipkit.load("open_clip:ViT-B-32-quickgelu").save(folder / "open_clip")
    assert "ViT-B-32-quickgelu" in open_clip.list_models()


def loaded(library: str, folder: Path) -> tuple[Callable[[list[str]], Any], Callable[[list[str]], Any]]:
    """Return two functions: one encodes image files, one encodes captions."""
    match library:
        case "clipkit" | "clipkit (open_clip)":
            import clipkit

            model = clipkit.load(folder / ("transformers" if library == "clipkit" else "open_clip"))
            return (lambda files: model.encode_image(files, BATCH)), (lambda texts: model.encode_text(texts, BATCH))
        case "transformers":
            return _transformers(folder / "transformers")
        case "sentence-transformers":
            from PIL import Image
            from sentence_transformers import SentenceTransformer
            from sentence_transformers.models import CLIPModel

            model = SentenceTransformer(modules=[CLIPModel(str(folder / "transformers"))])
            return (
                lambda files: model.encode([Image.open(file) for file in files], batch_size=BATCH),
                lambda texts: model.encode(texts, batch_size=BATCH),
            )
        case _:
            return _open_clip(folder / "open_clip")


def _transformers(folder: Path) -> tuple[Callable[[list[str]], Any], Callable[[list[str]], Any]]:
    import torch
    from PIL import Image
    from transformers import AutoProcessor, CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)

    def images(files: list[str]) -> None:
        with torch.inference_mode():
            for start in range(0, len(files), BATCH):
                opened = [Image.open(file).convert("RGB") for file in files[start : start + BATCH]]
                model.get_image_features(**processor(images=opened, return_tensors="pt"))

    def captions(texts: list[str]) -> None:
        with torch.inference_mode():
            for start in range(0, len(texts), BATCH):
                tokens = processor(
                    text=texts[start : start + BATCH], padding=True, truncation=True, return_tensors="pt"
                )
                model.get_text_features(**tokens)

    return images, captions


def _open_clip(folder: Path) -> tuple[Callable[[list[str]], Any], Callable[[list[str]], Any]]:
    import open_clip
    import torch
    from PIL import Image

    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()

    def images(files: list[str]) -> None:
        with torch.inference_mode():
            for start in range(0, len(files), BATCH):
                pixels = torch.stack([transform(Image.open(file)) for file in files[start : start + BATCH]])
                model.encode_image(pixels)

    def captions(texts: list[str]) -> None:
        with torch.inference_mode():
            for start in range(0, len(texts), BATCH):
                model.encode_text(tokenizer(texts[start : start + BATCH]))

    return images, captions


def measure(library: str, folder: Path, files: list[str], texts: list[str]) -> dict[str, float]:
    """Measure one library in this process, which has imported nothing yet."""
    began = time.perf_counter()
    import torch  # noqa: F401  all libraries import it, so it is not counted as loading

    imported = time.perf_counter()
    images, captions = loaded(library, folder)
    ready = time.perf_counter()
    memory = peak_kilobytes()
    images(files[:1])
    captions(texts[:1])
    first = time.perf_counter()
    images(files[:BATCH])
    captions(texts[:BATCH])
    started = time.perf_counter()
    images(files)
    between = time.perf_counter()
    captions(texts)
    done = time.perf_counter()
    return {
        "images_per_second": len(files) / (between - started),
        "captions_per_second": len(texts) / (done - between),
        "import_and_load_seconds": ready - imported,
        "cold_start_seconds": first - began,
        "peak_megabytes_after_loading": memory / 1024,
    }


def peak_kilobytes() -> int:
    """Return the peak memory of this process; getrusage would include the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def loading(folder: Path) -> dict[str, float]:
    """Time loading alone, alternately in one process with all imports done: clipkit and the native library."""
    import open_clip
    from transformers import CLIPModel

    import clipkit

    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "transformers": (
            lambda: clipkit.load(folder / "transformers", device="cpu"),
            lambda: [_transformers(folder / "transformers"), CLIPModel][0],
        ),
        "open_clip": (
            lambda: clipkit.load(folder / "open_clip", device="cpu"),
            lambda: [_open_clip(folder / "open_clip"), open_clip][0],
        ),
    }
    ratios = {}
    for name, (ours, theirs) in pairs.items():
        times: dict[int, list[float]] = {0: [], 1: []}
        for _ in range(6):
            for index, load in enumerate((ours, theirs)):
                began = time.perf_counter()
                load()
                times[index].append(time.perf_counter() - began)
        clipkit_seconds, native = (statistics.median(times[index][1:]) for index in (0, 1))
        ratios |= {
            f"{name}_seconds": native,
            f"clipkit_of_{name}_seconds": clipkit_seconds,
            f"{name}_ratio": clipkit_seconds / native,
        }
    return {name: round(value, 3) for name, value in ratios.items()}


def main() -> None:
    """Measure each library in its own process, alternately, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--captions", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", nargs=2, metavar=("LIBRARY", "MODELS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with arguments.data.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    names = list(dict.fromkeys(row["image"] for row in rows))[: arguments.images]
    files = [str(arguments.data.parent / name) for name in names]
    texts = [row["caption"] for row in rows][: arguments.captions]
    if arguments.worker:
        library, folder = arguments.worker
        figures = loading(Path(folder)) if library == "loading" else measure(library, Path(folder), files, texts)
        print(json.dumps(figures))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_models(Path(folder))
        rounds: dict[str, list[dict[str, float]]] = {library: [] for library in LIBRARIES}
        for _ in range(arguments.rounds):
            for library in LIBRARIES:
                rounds[library].append(_in_a_process(library, folder))
        medians = {
            library: {name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]}
            for library, rows in rounds.items()
        }
        spread = {
            library: {name: [round(bound(row[name] for row in rows), 2) for bound in (min, max)] for name in rows[0]}
            for library, rows in rounds.items()
        }
        result = {"median": medians, "lowest_highest": spread, "loading": _in_a_process("loading", folder)}
        print(json.dumps(result, indent=2))


def _in_a_process(library: str, folder: str) -> dict[str, float]:
    command = [sys.executable, *sys.argv, "--worker", library, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    main()
