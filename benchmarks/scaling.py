"""Measure what processes exchange in a step, beside the least possible; or compute it for up to 1,024 GPUs.

    python benchmarks/scaling.py [--processes 1 2 4] [--pairs 4096] [--width 512] [--parameters 20000000]
    python benchmarks/scaling.py --computed [--pairs-per-gpu 2048 | --batch-size 32768] [--link 50] [--node-link 450]

The first form starts real processes (gloo on a CPU, NCCL on GPUs) and prints JSON lines: median seconds of 10
repetitions and bytes that a process receives, for the gather of both towers' features, its backward pass, the sum of
the gradients, and an agreement. `least` is the time of the same bytes in one call of torch.distributed.

The second form prints a Markdown table from stated assumptions: see docs/scale.md.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

REPETITIONS = 10
FLOAT = 4  # bytes

# Of the computed table: ViT-B/32 (docs/benchmarks.md: one H200, bf16, 2,048 pairs, eager), and the loss alone.
PARAMETERS = 151_277_313
WIDTH = 512
PAIRS_PER_SECOND = 2048 / 0.2075
LOSS_SECONDS = 0.0247  # InfoNCE with gradients over 32,768 × 32,768 pairs


def median(run: Callable[[], object]) -> float:
    """Return the median seconds of a collective operation; all processes start each repetition together."""
    took = []
    for _ in range(REPETITIONS + 2):
        dist.barrier()
        began = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return statistics.median(took[2:])


def measure(rank: int, count: int, port: int, options: argparse.Namespace) -> None:
    """Measure on one of the processes; the first one prints."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(1)
    from clipkit.processes import Processes, accelerator_of
    from clipkit.training.gradient_sum import GradientSum

    processes = Processes(accelerator_of())
    assert dist.get_world_size() == count
    device, pairs, width = processes.device, options.pairs, options.width
    share = processes.share(pairs)
    rows = torch.randn(2, share.stop - share.start, width, device=device, requires_grad=True)
    layers = [nn.Parameter(torch.randn(1_000_000, device=device)) for _ in range(options.parameters // 1_000_000)]
    gradients = [torch.randn_like(layer) for layer in layers]
    gathered = [processes.gather(tower, pairs) for tower in rows]
    ones = [torch.ones_like(tower) for tower in gathered]

    def add_up() -> None:
        for layer, gradient in zip(layers, gradients, strict=True):
            layer.grad = gradient
        sums = GradientSum([layers], processes)
        sums.finish(sums.flush())

    flat, features = torch.cat(gradients), torch.cat(ones)
    piece = torch.empty(len(features) // count, width, device=device)
    others = (count - 1) / count
    of_features = int(others * 2 * pairs * width * FLOAT)
    measured = {
        "gather": (lambda: [processes.gather(tower, pairs) for tower in rows], of_features),
        "its backward pass": (lambda: torch.autograd.grad(gathered, rows, ones, retain_graph=True), of_features),
        "sum of gradients": (add_up, int(2 * others * len(flat) * FLOAT)),
        "agreement": (lambda: processes.any(False, False), FLOAT * 2),
    }
    least = {
        "gather": lambda: dist.all_gather_into_tensor(features, piece),
        "its backward pass": lambda: dist.reduce_scatter_tensor(piece, features),
        "sum of gradients": lambda: dist.all_reduce(flat),
        "agreement": lambda: dist.all_reduce(torch.zeros(2, device=device)),
    }
    for name, (run, received) in measured.items():
        seconds, bound = median(run), median(least[name])
        if rank == 0:
            row = {"what": name, "processes": count, "device": device.type, "bytes": received}
            print(json.dumps(row | {"seconds": round(seconds, 6), "least": round(bound, 6)}), flush=True)
    dist.destroy_process_group()


def computed(pairs_per_gpu: int, batch_size: int | None, link: float, node_link: float) -> None:
    """Print what a step costs on 1 to 1,024 GPUs, eight of them in a machine.

    Args:
        pairs_per_gpu: pairs that each GPU encodes.
        batch_size: pairs in a step whatever the number of GPUs, instead of `pairs_per_gpu`.
        link: network bandwidth of a GPU in GB/s, in each direction.
        node_link: bandwidth between the GPUs of a machine.
    """
    print(
        "| GPUs | pairs in a step | towers | loss | features | gradients | step, nothing overlaps | gradients overlap "
        "| GPU seconds per million pairs |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for count in (1, 8, 64, 256, 1024):
        share = pairs_per_gpu if batch_size is None else batch_size // count
        pairs = share * count
        bandwidth = 1e9 * (node_link if count <= 8 else link)
        others = (count - 1) / count
        towers = share / PAIRS_PER_SECOND
        loss = LOSS_SECONDS * (pairs / 32768) * (share / 32768)
        features = 2 * others * 2 * pairs * WIDTH * FLOAT / bandwidth  # gather, and its backward pass
        gradients = 2 * others * PARAMETERS * FLOAT / bandwidth
        whole = towers + loss + features + gradients
        # The backward pass takes two thirds of the towers' time; the last bucket cannot overlap.
        hidden = min(gradients, towers * 2 / 3)
        cells = [f"{1000 * seconds:,.1f} ms" for seconds in (towers, loss, features, gradients, whole, whole - hidden)]
        cells.append(f"{count * (whole - hidden) / pairs * 1e6:,.0f}")
        print(f"| {count:,} | {pairs:,} | " + " | ".join(cells) + " |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--pairs", type=int, default=4096)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--parameters", type=int, default=20_000_000)
    parser.add_argument("--computed", action="store_true")
    parser.add_argument("--pairs-per-gpu", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, help="pairs in a step, instead of --pairs-per-gpu")
    parser.add_argument("--link", type=float, default=50.0, help="GB/s of a GPU's network link, in each direction")
    parser.add_argument("--node-link", type=float, default=450.0, help="GB/s between GPUs of a machine")
    options = parser.parse_args()
    if options.computed:
        computed(options.pairs_per_gpu, options.batch_size, options.link, options.node_link)
        return
    for number, count in enumerate(options.processes):
        mp.spawn(measure, (count, 29_600 + number, options), count)


if __name__ == "__main__":
    main()
