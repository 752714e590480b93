"""Compare evaluation with CLIP_benchmark 1.6.2, as JSON: whole commands, a zero-shot classifier, retrieval at scale.

    python benchmarks/evaluation.py commands CSV     # captions with their images, such as ../shared/flickr8k/dev.csv
    python benchmarks/evaluation.py classifier
    python benchmarks/evaluation.py scale [--rows 25000 50000 100000 200000]

`commands` runs `clipkit eval` and `clip_benchmark eval --no_amp` on the same images, captions and ViT-B-32 weights,
each in its own process, alternately. The weights are random: what counts is the time, and that both compute the same
metrics. Classification uses the first 500 images in 50 classes with ImageNet's names and CLIP's 80 prompts; retrieval
uses the whole CSV. The clipkit commands then run again with cached features.

`classifier` encodes the 1,000 ImageNet classes with 80 prompts each, with a small text tower.

`scale` ranks N random images against N captions (D = 64), each size in its own process: seconds, and memory beyond the
features.
"""

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

CLASSES, PER_CLASS = 50, 10
ARCHITECTURE = "ViT-B-32"
# With NumPy 2.4 CLIP_benchmark's accuracy() raises a TypeError (it converts an array of one element to a float).
PEER = """
import sys
from clip_benchmark import cli
from clip_benchmark.metrics import zeroshot_classification as task
def accuracy(output, target, topk=(1,)):
    right = output.topk(max(topk), 1, True, True)[1].eq(target[:, None])
    return [right[:, :k].any(dim=1).float().mean().item() for k in topk]
task.accuracy = accuracy
sys.exit(cli.main())
"""


def images_and_captions(file: Path) -> dict[Path, list[str]]:
    """Return the captions of each image, in the order of the file."""
    captions: dict[Path, list[str]] = {}
    with file.open(encoding="utf-8", newline="") as opened:
        for row in csv.DictReader(opened):
            captions.setdefault(file.parent / row["image"], []).append(row["caption"])
    return captions


def shards(folder: Path, samples: list[dict[str, bytes]], count: int = 2) -> None:
    """Write WebDataset shards as CLIP_benchmark reads them."""
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text(str(count))
    for shard in range(count):
        with tarfile.open(folder / "test" / f"{shard}.tar", "w") as tar:
            size = -(-len(samples) // count)
            for number, sample in enumerate(samples[shard * size : (shard + 1) * size]):
                for ending, content in sample.items():
                    entry = tarfile.TarInfo(f"{shard}-{number:06d}.{ending}")
                    entry.size = len(content)
                    tar.addfile(entry, BytesIO(content))


def prepare(file: Path, folder: Path) -> None:
    """Write the same data for both programs, and one set of weights."""
    import open_clip
    import torch

    captions = images_and_captions(file)
    images = list(captions)
    names = list(open_clip.IMAGENET_CLASSNAMES)[:CLASSES]
    templates = [template("{c}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    samples = []
    for number, image in enumerate(images[: CLASSES * PER_CLASS]):
        label = number // PER_CLASS
        class_folder = folder / "classes" / f"{label:02d}"
        class_folder.mkdir(parents=True, exist_ok=True)
        (class_folder / image.name).symlink_to(image.resolve())
        samples.append({"jpg": image.read_bytes(), "cls": str(label).encode()})
    for root in (folder / "classes", folder / "classes_wds"):
        root.mkdir(exist_ok=True)
        (root / "classnames.txt").write_text("\n".join(names) + "\n")
        (root / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    shards(folder / "classes_wds", samples)
    shards(
        folder / "captions_wds",
        [{"jpg": image.read_bytes(), "txt": "\n".join(texts).encode()} for image, texts in captions.items()],
    )
    (folder / "captions_wds" / "dataset_type.txt").write_text("retrieval")
    torch.manual_seed(0)
    torch.save(open_clip.create_model(ARCHITECTURE).state_dict(), folder / "weights.pt")


def timed(command: list[str], environment: dict[str, str]) -> float:
    """Return the seconds of a whole process, including its start."""
    began = time.perf_counter()
    subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return time.perf_counter() - began


def commands(file: Path, repetitions: int) -> dict[str, Any]:
    """Time the same evaluations with both programs."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(file, folder)
        for task, data, theirs in (
            ("zeroshot", folder / "classes", "classification"),
            ("retrieval", file, "retrieval"),
        ):
            shard = "classes_wds" if task == "zeroshot" else "captions_wds"
            peer = [
                sys.executable,
                "-c",
                PEER,
                "eval",
                "--model",
                ARCHITECTURE,
                "--pretrained",
                str(folder / "weights.pt"),
            ]
            peer += ["--dataset", f"wds/{shard}", "--dataset_root", str(folder / shard), "--task", f"zeroshot_{theirs}"]
            peer += [
                "--no_amp",
                "--num_workers",
                "2",
                "--recall_k",
                "1",
                "5",
                "10",
                "--output",
                str(folder / "peer.json"),
            ]
            ours = [sys.executable, "-m", "clipkit", "eval", task, "--model"]
            ours += [f"open_clip:{ARCHITECTURE}?weights={folder / 'weights.pt'}", "--data", str(data)]
            ours += ["--json", str(folder / "ours.json")]
            seconds: dict[str, list[float]] = {"clipkit": [], "clipkit again": [], "clip_benchmark": []}
            for repetition in range(repetitions):
                cache = {"CLIPKIT_CACHE": str(folder / f"cache-{task}-{repetition}")}
                seconds["clipkit"].append(timed(ours, cache))
                seconds["clipkit again"].append(timed(ours, cache))
                seconds["clip_benchmark"].append(timed(peer, {}))
            metrics = json.loads((folder / "ours.json").read_text())["metrics"]
            peer_metrics = json.loads((folder / "peer.json").read_text())["metrics"]
            median = {name: statistics.median(times) for name, times in seconds.items()}
            results[task] = {
                "seconds": {name: [round(time, 1) for time in times] for name, times in seconds.items()},
                "ratio_of_medians": round(median["clip_benchmark"] / median["clipkit"], 2),
                "ratio_with_features_there": round(median["clip_benchmark"] / median["clipkit again"], 2),
                "figures": {name: [metrics[name]["value"], value] for name, value in peer_metrics.items()},
            }
    return results


def classifier(repetitions: int) -> dict[str, Any]:
    """Time the zero-shot classifier of 1,000 classes × 80 prompts with both programs."""
    import open_clip
    import torch
    from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier

    import clipkit

    shape = {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 4},
    }
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "small-text.json").write_text(json.dumps(shape))
        open_clip.add_model_config(scratch)
        model = clipkit.load("open_clip:small-text", device="cpu")
        native = model.backend.native
        tokenizer = open_clip.get_tokenizer("small-text")
        names = list(open_clip.IMAGENET_CLASSNAMES)
        templates = [template("{c}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
        seconds: dict[str, list[float]] = {"clipkit": [], "clip_benchmark": []}
        for _ in range(repetitions):
            began = time.perf_counter()
            ours = clipkit.evaluate.zeroshot_classifier(model, names, templates)
            seconds["clipkit"].append(time.perf_counter() - began)
            began = time.perf_counter()
            theirs = zero_shot_classifier(native, tokenizer, names, templates, "cpu", amp=False).T
            seconds["clip_benchmark"].append(time.perf_counter() - began)
        began = time.perf_counter()
        for name in names:
            tokenizer([template.format(c=name) for template in templates])
        tokenizing = time.perf_counter() - began
    return {
        "seconds": {name: [round(time, 1) for time in times] for name, times in seconds.items()},
        "ratio_of_medians": round(
            statistics.median(seconds["clip_benchmark"]) / statistics.median(seconds["clipkit"]), 2
        ),
        "largest_difference": (ours - theirs).abs().max().item(),
        "of_which_tokenizing_seconds": round(tokenizing, 1),
        "threads": torch.get_num_threads(),
    }


def ranks(rows: int) -> dict[str, Any]:
    """Rank `rows` images against `rows` captions; return the seconds and the memory beyond the features."""
    import torch
    from tqdm import tqdm

    from clipkit.metrics import recalls, retrieval_ranks

    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(rows, 64), dim=-1) for _ in range(2))
    retrieval_ranks(image[:2048], text[:2048], torch.arange(2048))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    with tqdm(total=rows * rows, unit_scale=True, desc="scores") as bar:
        metrics = recalls(retrieval_ranks(image, text, torch.arange(rows), on_scores=bar.update))
    return {
        "rows": rows,
        "seconds": round(time.perf_counter() - began, 1),
        "gigabytes": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6, 3),
        "dense_gigabytes": round(rows * rows * 4 / 1e9, 1),
        "image_retrieval_recall@10": metrics["image_retrieval_recall@10"],
    }


def scale(sizes: list[int]) -> dict[str, Any]:
    """Measure each size in its own process and extrapolate to a million by a million."""
    measured = []
    for rows in sizes:
        command = [sys.executable, __file__, "ranks", "--rows", str(rows)]
        measured.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    last = measured[-1]
    return {
        "measured": measured,
        "a_million_by_a_million": {
            "hours": round(last["seconds"] * (1e6 / last["rows"]) ** 2 / 3600, 2),
            "gigabytes": round(last["gigabytes"] * 1e6 / last["rows"], 2),
        },
    }


def main() -> None:
    """Run one benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["commands", "classifier", "scale", "ranks"])
    parser.add_argument("csv", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, nargs="+", default=[25_000, 50_000, 100_000, 200_000])
    parser.add_argument("--repetitions", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.what == "commands" and arguments.csv is None:
        parser.error("commands needs a captions CSV")
    match arguments.what:
        case "commands":
            result = commands(arguments.csv, arguments.repetitions)
        case "classifier":
            result = classifier(arguments.repetitions)
        case "scale":
            result = scale(arguments.rows)
        case _:
            result = ranks(arguments.rows[0])
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
