"""Measure time and extra memory of every loss with gradients, beside other projects' losses, as JSON.

    python benchmarks/losses.py [--pairs 1024 2048 …] [--width 512] [--losses ntxent …] [--repetitions 3]

The peers are the ones that the tests compare with: lightly (ntxent, dcl), open_clip (infonce, sigmoid, distillation),
pytorch-metric-learning (supcon, triplet), torch (label smoothing). Losses without a peer (contrastive, consistencies,
negclip) are compared with their definition in a few lines of dense PyTorch. Each measurement runs in its own process;
one that needs more than `--gigabytes` of extra memory or `--seconds` is replaced by the reason.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from loss_memory import DEVICE, peak_of
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(name: str) -> Loss:
    """Return clipkit's loss as a function of two sets of features and a scale."""
    from clipkit import losses

    def groups(x: Tensor) -> dict[str, Tensor]:
        ids = torch.arange(len(x), device=x.device) // 4
        return {"image_ids": ids, "caption_ids": ids}

    match name:
        case "infonce" | "ntxent" | "dcl":
            return getattr(losses, name)
        case "infonce, smoothed":
            return lambda x, y, s: losses.infonce(x, y, s, label_smoothing=0.1)
        case "sigmoid":
            return lambda x, y, s: losses.sigmoid(x, y, s, -10.0)
        case "supcon":
            return lambda x, y, s: losses.supcon(x, y, s, **groups(x))
        case "triplet, hard":
            return lambda x, y, s: losses.triplet(x, y)
        case "triplet, all":
            return lambda x, y, s: losses.triplet(x, y, mining="all", **groups(x))
        case "contrastive":
            return lambda x, y, s: losses.contrastive(x, y)
        case "negclip":
            return lambda x, y, s: losses.negclip(x, y, y.detach().roll(1, 1), s)
        case "distillation":
            return lambda x, y, s: losses.distillation(x, y, s, x.roll(1, 1), y.roll(1, 1), 50.0)
        case "within consistency":
            return lambda x, y, s: losses.within_consistency(x, y)
        case _:
            return lambda x, y, s: losses.cross_consistency(x, y)


def peers(name: str) -> tuple[str, Loss]:
    """Return the peer's name and its loss."""
    match name:
        case "infonce":
            from open_clip.loss import ClipLoss

            return "open_clip", lambda x, y, s: ClipLoss()(x, y, s)
        case "infonce, smoothed":
            return "torch", _smoothed
        case "sigmoid":
            from open_clip.loss import SigLipLoss

            return "open_clip", lambda x, y, s: SigLipLoss()(x, y, s, torch.tensor(-10.0, device=x.device))
        case "ntxent":
            from lightly.loss import NTXentLoss

            return "lightly", lambda x, y, s: NTXentLoss(0.1)(x, y)
        case "dcl":
            from lightly.loss import DCLLoss

            return "lightly", lambda x, y, s: DCLLoss(0.1)(x, y)
        case "supcon":
            from pytorch_metric_learning.losses import SupConLoss

            def supcon(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
                labels = (torch.arange(len(x), device=x.device) // 4).repeat(2)
                return SupConLoss(0.1)(torch.cat([x, y]), labels)

            return "pytorch-metric-learning", supcon
        case "triplet, all":
            from pytorch_metric_learning.distances import CosineSimilarity
            from pytorch_metric_learning.losses import TripletMarginLoss

            def triplets(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
                labels = torch.arange(len(x), device=x.device) // 4
                loss = TripletMarginLoss(0.2, distance=CosineSimilarity())
                return loss(x, labels, ref_emb=y, ref_labels=labels.clone())

            return "pytorch-metric-learning, one direction", triplets
        case "distillation":
            from open_clip.loss import DistillClipLoss

            teacher = torch.tensor(50.0)
            return "open_clip", lambda x, y, s: DistillClipLoss()(x, y, s, x.roll(1, 1), y.roll(1, 1), teacher)[1]
        case _:
            return "its definition, dense", dense(name)


def _smoothed(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
    logits, labels = s * x @ y.T, torch.arange(len(x), device=x.device)
    return sum(F.cross_entropy(scores, labels, label_smoothing=0.1) for scores in (logits, logits.T)) / 2


def dense(name: str) -> Loss:
    """Return the definition of a loss, with the whole matrix in memory."""

    def hinges(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
        scores = x @ y.T
        negatives = scores.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), -torch.inf)
        positives = scores.diagonal()
        by_image = (0.2 + negatives.amax(1) - positives).clamp(min=0)
        by_text = (0.2 + negatives.amax(0) - positives).clamp(min=0)
        return (by_image + by_text).mean() / 2

    def contrastive(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
        distance, itself = 1 - x @ y.T, torch.eye(len(x), dtype=torch.bool, device=x.device)
        return (distance[itself].square().mean() + (0.5 - distance[~itself]).clamp(min=0).square().mean()) / 2

    def negclip(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
        labels, wrong = torch.arange(len(x), device=x.device), y.detach().roll(1, 1)
        images = F.cross_entropy(s * x @ torch.cat([y, wrong]).T, labels)
        return (images + F.cross_entropy(s * y @ x.T, labels)) / 2

    def within(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
        return (x @ x.T - y @ y.T).square().sum() / len(x)

    def cross(x: Tensor, y: Tensor, s: Tensor) -> Tensor:
        scores = x @ y.T
        return (scores - scores.T).square().sum() / len(x)

    return {
        "triplet, hard": hinges,
        "contrastive": contrastive,
        "negclip": negclip,
        "within consistency": within,
        "cross consistency": cross,
    }[name]


NAMES = [
    "infonce", "infonce, smoothed", "sigmoid", "ntxent", "supcon", "dcl", "triplet, hard", "triplet, all",
    "contrastive", "negclip", "distillation", "within consistency", "cross consistency",
]  # fmt: skip


def measured(loss: Loss, pairs: int, width: int, repetitions: int) -> dict[str, float]:
    """Return the median seconds of value and gradients, and the extra GB at the peak."""
    generator = torch.Generator().manual_seed(0)
    image, text = (
        F.normalize(torch.randn(pairs, width, generator=generator), dim=-1).to(DEVICE).requires_grad_()
        for _ in range(2)
    )
    scale = torch.tensor(10.0, device=DEVICE, requires_grad=True)

    seconds: list[float] = []
    values: list[float] = []

    def work(rows: int = pairs) -> None:
        began = time.perf_counter()
        value = loss(image[:rows], text[:rows], scale)
        torch.autograd.grad(value, [image, text])
        values.append(value.item())
        seconds.append(time.perf_counter() - began)

    work(pairs if DEVICE == "cuda" else 256)
    seconds.clear()
    memory = peak_of(work)
    for _ in range(repetitions - 1):
        work()
    return {
        "seconds": round(statistics.median(seconds), 4),
        "spread": round(max(seconds) - min(seconds), 4),
        "extra_gb": round(memory, 3),
        "value": values[-1],
    }


def limited(gigabytes: float) -> None:
    """Limit the address space of this process, so that a loss that needs too much memory fails by itself."""
    if DEVICE == "cpu" and sys.platform == "linux":
        import resource

        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: PTH123, SIM115
        resource.setrlimit(resource.RLIMIT_AS, (used + int(gigabytes * 1e9),) * 2)


def one(command: list[str], seconds: float) -> Any:
    """Run one measurement in its own process; return its result, or the reason why there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"not done in {seconds:.0f} s"
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr.strip().splitlines()[-1][:120]


def main() -> None:
    """Print one JSON object with a row for each loss and number of pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--losses", nargs="+", default=NAMES)
    parser.add_argument("--gigabytes", type=float, default=14.0)
    parser.add_argument("--seconds", type=float, default=600.0, help="limit for one measurement")
    parser.add_argument("--one", help="measure only clipkit or peer, in this process")
    arguments = parser.parse_args()
    if arguments.one is not None:
        (name,), (pairs,) = arguments.losses, arguments.pairs
        loss = ours(name) if arguments.one == "clipkit" else peers(name)[1]
        limited(arguments.gigabytes)
        print(json.dumps(measured(loss, pairs, arguments.width, arguments.repetitions)))
        return
    rows = []
    for pairs in arguments.pairs:
        for name in arguments.losses:
            row: dict[str, Any] = {"loss": name, "pairs": pairs, "peer": peers(name)[0]}
            for library in ("clipkit", "peer"):
                command = [sys.executable, __file__, "--one", library, "--losses", name, "--pairs", str(pairs)]
                command += ["--width", str(arguments.width), "--repetitions", str(arguments.repetitions)]
                command += ["--gigabytes", str(arguments.gigabytes)]
                row[library if library == "clipkit" else "peers"] = one(command, arguments.seconds)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    machine = {"device": DEVICE, "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({"machine": machine, "width": arguments.width, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
