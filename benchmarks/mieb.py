"""Compare `clipkit.mteb_model` with mteb's own wrapper of open_clip on five tasks of mteb, as JSON.

    python benchmarks/mieb.py CSV [--images 500]     # captions with their images, such as ../shared/flickr8k/dev.csv

The tasks share their images, as those of MIEB do: retrieval in both directions, zero-shot classification, a linear
probe and image–text matching. Classes are arbitrary and the weights are random: what counts is the time, and that both
compute the same figures. Both run in this process, alternately, with a small model of open_clip (a ViT-Ti/16, and six
layers for texts); clipkit starts with an empty feature cache in each repetition. On a machine that others use too, the
seconds of the processor say more than those of the clock. Needs `pip install 'clipkit-torch[mteb]'`.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

SHAPE = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 192, "patch_size": 16, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 6},
}
CLASSES = 10


def images_and_captions(file: Path, count: int) -> dict[str, list[str]]:
    """Return the captions of the first images, in the order of the file."""
    captions: dict[str, list[str]] = {}
    with file.open(encoding="utf-8", newline="") as opened:
        for row in csv.DictReader(opened):
            captions.setdefault(str(file.parent / row["image"]), []).append(row["caption"])
    return dict(list(captions.items())[:count])


def table(images: list[str], **columns: list[Any]) -> Any:
    """Return a dataset that contains the files of its images, as those of the Hub do."""
    import datasets

    stored = [{"bytes": Path(image).read_bytes(), "path": None} for image in images]
    return datasets.Dataset.from_dict({"image": stored, **columns}).cast_column("image", datasets.Image())


def tasks(captions: dict[str, list[str]]) -> list[Any]:
    """Return the tasks; mteb's examples of tasks have the metadata, the data is replaced."""
    import datasets
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.mocks import mock_tasks as examples

    files = list(captions)
    pairs = [(row, text) for row, texts in enumerate(captions.values()) for text in texts]
    images = table(files, id=[f"i{row}" for row in range(len(files))])
    texts = {"id": [f"t{number}" for number in range(len(pairs))], "text": [text for _, text in pairs]}
    labels = [row % CLASSES for row in range(len(files))]
    names = [f"a photo of class number {label}" for label in range(CLASSES)]

    def example(kind: type, data: Any, name: str, **attributes: Any) -> Any:
        metadata = kind.metadata.model_copy(update={"name": name})
        task = type(name, (kind,), {"metadata": metadata, "load_data": lambda *_, **__: None, **attributes})()
        task.dataset, task.data_loaded = data, True
        return task

    def retrieval(kind: type, name: str, queries: Any, corpus: Any, right: dict[str, dict[str, int]]) -> Any:
        split = RetrievalSplitData(queries=queries, corpus=corpus, relevant_docs=right, top_ranked=None)
        return example(kind, {"default": {"test": split}}, name)

    to_image = {f"t{number}": {f"i{row}": 1} for number, (row, _) in enumerate(pairs)}
    to_text: dict[str, dict[str, int]] = {}
    for number, (row, _) in enumerate(pairs):
        to_text.setdefault(f"i{row}", {})[f"t{number}"] = 1
    labeled = table(files, label=labels)
    split = datasets.DatasetDict({"train": labeled, "test": labeled})
    matching = datasets.DatasetDict({"test": table(files, caption=[texts[0] for texts in captions.values()])})
    return [
        retrieval(
            examples.MockAny2AnyRetrievalT2ITask, "text_to_image", datasets.Dataset.from_dict(texts), images, to_image
        ),
        retrieval(
            examples.MockAny2AnyRetrievalI2TTask, "image_to_text", images, datasets.Dataset.from_dict(texts), to_text
        ),
        example(examples.MockZeroShotClassificationTask, split, "zero_shot", get_candidate_labels=lambda self: names),
        example(examples.MockImageClassificationTask, split, "linear_probe", n_experiments=2, samples_per_label=16),
        example(examples.MockImageTextPairClassificationTask, matching, "matching"),
    ]


def wrapper_of_mteb(folder: Path) -> Any:
    """Return mteb's wrapper of open_clip, which loads models from the Hub only, for a folder."""
    import open_clip
    from mteb.models.model_implementations.openclip_models import openclip_loader

    import clipkit

    create, tokenizer, local = open_clip.create_model_and_transforms, open_clip.get_tokenizer, f"local-dir:{folder}"
    open_clip.create_model_and_transforms = lambda name, **options: create(local, **options)
    open_clip.get_tokenizer = lambda name: tokenizer(local)
    theirs = openclip_loader("me/small", revision="x", device="cpu")
    theirs.mteb_model_meta = clipkit.mteb_model(clipkit.load(folder, device="cpu")).mteb_model_meta
    return theirs


def figures(scores: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """All numbers in the scores of a task, by path."""
    if isinstance(scores, dict | list):
        for key, value in scores.items() if isinstance(scores, dict) else enumerate(scores):
            yield from figures(value, f"{name}/{key}")
    elif isinstance(scores, int | float) and scores == scores:
        yield name, float(scores)


def compared(file: Path, count: int, repetitions: int, num_proc: int | None) -> dict[str, Any]:
    """Time all tasks with both encoders."""
    import mteb
    import open_clip
    import torch

    import clipkit

    captions = images_and_captions(file, count)
    clocks = {"clock": time.perf_counter, "processor": time.process_time}
    seconds: dict[str, dict[str, dict[str, list[float]]]] = {clock: {} for clock in clocks}
    difference = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "small-mieb.json").write_text(json.dumps(SHAPE))
        open_clip.add_model_config(Path(scratch) / "small-mieb.json")
        torch.manual_seed(0)
        folder = Path(scratch) / "small"
        clipkit.load("open_clip:small-mieb", device="cpu").save(folder)
        model, theirs = clipkit.load(folder, device="cpu"), wrapper_of_mteb(folder)
        for repetition in range(repetitions):
            ours = partial(clipkit.mteb_model, model, cache=Path(scratch) / f"cache-{repetition}")
            encoders: dict[str, Callable[[], Any]] = {"mteb": lambda: theirs, "clipkit": ours}
            scores: dict[str, dict[str, float]] = {name: {} for name in encoders}
            made = {name: tasks(captions) for name in encoders}
            for row in range(len(made["mteb"])):
                for name, encoder in encoders.items():
                    task = made[name][row]
                    began = {clock: now() for clock, now in clocks.items()}
                    result = mteb.evaluate(encoder(), task, cache=None, show_progress_bar=False, num_proc=num_proc)
                    for clock, now in clocks.items():
                        times = seconds[clock].setdefault(task.metadata.name, {}).setdefault(name, [])
                        times.append(round(now() - began[clock], 2))
                    print(task.metadata.name, name, times[-1], file=sys.stderr)  # seconds of the processor
                    scores[name] |= figures(result.task_results[0].scores, task.metadata.name)
            difference = max(difference, *(abs(scores["mteb"][key] - scores["clipkit"][key]) for key in scores["mteb"]))
    return {
        "images": len(captions),
        "captions": sum(map(len, captions.values())),
        "machine": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.machine()}",
        "seconds": seconds,
        "ratio_of_medians": {clock: ratios(tasks) for clock, tasks in seconds.items()},
        "figures": len(scores["mteb"]),
        "largest_difference": difference,
    }


def ratios(seconds: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Return how many times as long mteb's wrapper takes."""
    medians = {task: {name: statistics.median(times) for name, times in both.items()} for task, both in seconds.items()}
    first = medians["text_to_image"]
    total = {name: sum(both[name] for both in medians.values()) for name in first}
    return {
        "first task, nothing cached": round(first["mteb"] / first["clipkit"], 2),
        "all tasks": round(total["mteb"] / total["clipkit"], 2),
    }


def main() -> None:
    """Run the benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--num-proc", type=int, help="processes of mteb's data loaders; default: mteb's default")
    arguments = parser.parse_args()
    print(json.dumps(compared(arguments.csv, arguments.images, arguments.repetitions, arguments.num_proc), indent=2))


if __name__ == "__main__":
    main()
