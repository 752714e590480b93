"""Measure time and extra memory of losses with gradients, beside open_clip's dense losses, as JSON.

    python benchmarks/loss_memory.py [--pairs 2048 4096 …] [--width 512] [--repetitions 3]

Times are measured in one process, alternating between the libraries; peak memory in one process per library. On a
machine with a GPU the benchmark runs there, also in bfloat16.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def losses(name: str) -> tuple[Loss, Loss | None]:
    """Return clipkit's loss and open_clip's, or None if open_clip has none."""
    from open_clip.loss import ClipLoss, SigLipLoss

    from clipkit.losses import infonce, sigmoid

    def groups(x: Tensor) -> dict[str, Any]:
        ids = torch.arange(len(x), device=x.device)
        return {"image_ids": ids // 2, "caption_ids": ids}

    match name:
        case "infonce":
            return lambda x, y, s, b: infonce(x, y, s), lambda x, y, s, b: ClipLoss()(x, y, s)
        case "infonce, positives":
            return lambda x, y, s, b: infonce(x, y, s, **groups(x)), None
        case "infonce, ignored":
            return lambda x, y, s, b: infonce(x, y, s, **groups(x), duplicates="ignore"), None
        case _:
            return lambda x, y, s, b: sigmoid(x, y, s, b), lambda x, y, s, b: SigLipLoss()(x, y, s, b)


def peak_of(work: Callable[[], None]) -> float:
    """Return the extra GB at the peak of `work`; on a CPU by sampling."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 1e9
    process, peak, done = psutil.Process(), 0, threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return max(0, peak - before) / 1e9


def prepare(name: str, library: int, pairs: int, width: int, dtype: torch.dtype) -> Callable[[], None]:
    """Return a function that computes the loss and its gradients, after a warm-up."""
    loss = losses(name)[library]
    assert loss is not None
    generator = torch.Generator().manual_seed(0)
    image, text = (
        F.normalize(torch.randn(pairs, width, generator=generator), dim=-1).to(DEVICE, dtype).requires_grad_()
        for _ in range(2)
    )
    scale, bias = (torch.tensor(value, device=DEVICE, requires_grad=True) for value in (14.3, -10.0))

    def work(rows: int = pairs) -> None:
        value = loss(image[:rows], text[:rows], scale, bias)
        torch.autograd.grad(value, [image, text, scale])
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    work(pairs if DEVICE == "cuda" else 256)
    return work


def extra_memory(name: str, library: int, pairs: int, width: int, dtype: torch.dtype) -> float:
    """Return the extra GB at the peak; call it in a separate process."""
    return round(peak_of(prepare(name, library, pairs, width, dtype)), 3)


def seconds(name: str, libraries: int, pairs: int, width: int, dtype: torch.dtype, repetitions: int) -> list[Any]:
    """Return median and spread in seconds for each library, alternating in one process."""
    works = [prepare(name, index, pairs, width, dtype) for index in range(libraries)]
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(repetitions):
        for work, times in zip(works, taken, strict=True):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
    return [{"seconds": round(statistics.median(t), 4), "spread": round(max(t) - min(t), 4)} for t in taken]


def main() -> None:
    """Print one JSON object with a row for each loss and number of pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[2048, 4096, 8192, 16384, 32768, 65536])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--losses", nargs="+", default=["infonce", "infonce, positives", "infonce, ignored", "sigmoid"])
    parser.add_argument("--dense-up-to", type=int, default=16384, help="open_clip is measured up to here")
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    rows = []
    for dtype in [torch.float32] + [torch.bfloat16] * (DEVICE == "cuda"):
        for pairs in arguments.pairs:
            repetitions = arguments.repetitions if pairs <= 16384 else 1
            for name in arguments.losses:
                row: dict[str, Any] = {"loss": name, "pairs": pairs, "dtype": str(dtype).removeprefix("torch.")}
                libraries = ["clipkit"]
                if losses(name)[1] is not None and pairs <= arguments.dense_up_to:
                    libraries.append("open_clip")
                task = (name, len(libraries), pairs, arguments.width, dtype, repetitions)
                with spawn.Pool(1) as pool:
                    row |= dict(zip(libraries, pool.apply(seconds, task), strict=True))
                for index, library in enumerate(libraries):
                    with spawn.Pool(1) as pool:
                        row[library]["extra_gb"] = pool.apply(extra_memory, (name, index, *task[2:5]))
                if "open_clip" in row:
                    row["time_ratio"] = round(row["clipkit"]["seconds"] / row["open_clip"]["seconds"], 3)
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
    machine = {"device": DEVICE, "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({"machine": machine, "width": arguments.width, "rows": rows}))


if __name__ == "__main__":
    main()
