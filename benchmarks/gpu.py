"""Measure clipkit on a GPU, beside open_clip's own code, as JSON lines.

    pip install -e '.[benchmarks]'
    python benchmarks/gpu.py [--sections step,loss] [--out gpu.jsonl]      # on a GPU, under 5 minutes
    python benchmarks/gpu.py --small                                       # all sections, on a CPU, with tiny models

Each section runs in its own process with its own time limit, and prints a line per measurement as soon as it has it.
A failure is a line with `failed`, and does not stop the others. Times are medians of several repetitions after a
warm-up, measured with CUDA events, with the lowest and the highest. `tflops` counts one forward and backward pass of
the images and of the captions' own tokens; `share` is its share of `--peak`, `mfu` of the vendor's dense peak.

Captions are those of a CSV; without it, random words with the lengths of Flickr8k's captions. Images of `step` are
random bytes on the card; `encode` and `pipeline` read JPEG files of 500 × 375 pixels that the script writes.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

# Name -> module in gpu_sections, seconds after which the section is stopped, and whether it runs by default.
SECTIONS: dict[str, tuple[str, int, bool]] = {
    "ceilings": ("kernels", 30, True),
    "loss": ("kernels", 60, True),
    "step": ("steps", 110, True),
    "encode": ("features", 60, True),
    "pipeline": ("commands", 70, True),
    "exactness": ("exactness", 80, True),
    "auto": ("steps", 40, True),
    "fp16": ("steps", 30, True),
    "evaluate": ("commands", 40, True),
    "compile": ("compiled", 120, True),
    "huge": ("steps", 180, False),
}
MODELS = ("ViT-B-32", "ViT-B-16", "ViT-L-14")


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(name if default else f"{name} (not by default)" for name, (_, _, default) in SECTIONS.items())
    parser.add_argument("--sections", help=f"comma-separated: {names}")
    parser.add_argument("--out", type=Path, help="file that gets the same lines")
    parser.add_argument("--captions", type=Path, default=ROOT.parent / "shared" / "flickr8k" / "train.csv")
    parser.add_argument("--models", default=",".join(MODELS), help="open_clip's names, for the section step")
    parser.add_argument("--peak", type=float, default=790.0, help="TFLOP/s of which `share` is a share")
    parser.add_argument("--seconds", type=float, default=290.0, help="no section continues after this")
    parser.add_argument("--limit", type=float, default=1.0, help="factor on the time limits of the sections")
    parser.add_argument("--small", action="store_true", help="tiny models on a CPU, to test this script")
    options = parser.parse_args()
    options.sections = [name for name in (options.sections or "").split(",") if name] or [
        name for name, (_, _, default) in SECTIONS.items() if default or options.small
    ]
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"--sections: {', '.join(sorted(unknown))}; choose from {', '.join(SECTIONS)}")
    return options


def main() -> None:
    """Run the sections one after the other and print their lines."""
    options = arguments()
    began = time.monotonic()
    # The sections are forks of this process, which has imported everything but never uses the GPU.
    os.environ |= {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if options.small:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    from gpu_sections.common import Settings, prepare

    with tempfile.TemporaryDirectory(prefix="clipkit-gpu-") as folder:
        models = ("gpu-tiny",) if options.small else tuple(options.models.split(","))
        settings = Settings(options.small, options.captions, Path(folder), models, options.peak)
        prepare(settings)
        with options.out.open("a", encoding="utf-8") if options.out else open(os.devnull, "w") as out:  # noqa: PTH123
            imported = time.monotonic() - began
            for start in ("fork", "spawn"):
                [machine] = run("machine", "common", settings, 60, start)
                show(machine | {"import_seconds": round(imported, 1), "start": start}, out)
                if "failed" not in machine:
                    break  # otherwise an import may have used the GPU, which forks then cannot use
            else:
                sys.exit(2)
            for name in options.sections:
                module, limit, _ = SECTIONS[name]
                left = options.seconds - (time.monotonic() - began)
                if left < 5:
                    show({"section": name, "failed": f"not started: --seconds {options.seconds:g} are used"}, out)
                    continue
                for row in run(name, module, settings, min(left, limit * options.limit), start):
                    show(row, out)


def show(row: dict[str, Any], out: TextIO) -> None:
    """Print a line, and write it to the file."""
    for file in (sys.stdout, out):
        print(json.dumps(row), file=file, flush=True)


def run(name: str, module: str, settings: Any, limit: float, start: str = "fork") -> Iterator[dict[str, Any]]:
    """Run a section in its own process, and yield its lines; the last one has its duration, or why it failed."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    output = settings.folder / f"{name}.txt"
    began = time.monotonic()
    process = multiprocessing.get_context(start).Process(target=_section, args=(name, module, settings, writer, output))
    process.start()
    writer.close()
    why = ""
    try:
        while True:
            left = began + limit - time.monotonic()
            if left <= 0 or not reader.poll(left):
                why = f"stopped after {limit:.0f} s"
                break
            try:
                yield {"section": name, **reader.recv()}
            except EOFError:
                break
    finally:
        if not why:
            process.join(10)
        with suppress(ProcessLookupError):  # the section and all processes that it started
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
    if not why and process.exitcode:
        why = f"exit code {process.exitcode}"
    if why:
        tail = output.read_text(errors="replace")[-1500:] if output.is_file() else ""
        yield {"section": name, "failed": why, "output": tail.splitlines()[-12:]}
    elif name != "machine":
        yield {"section": name, "what": "section", "took_seconds": round(time.monotonic() - began, 1)}


def _section(name: str, module: str, settings: Any, writer: Connection, output: Path) -> None:
    os.setsid()
    for number in (1, 2):  # also what libraries print that are not Python
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout = sys.stderr = output.open("a", buffering=1)

    def report(what: str, **figures: Any) -> None:
        writer.send({"what": what, **figures})

    getattr(import_module(f"gpu_sections.{module}"), f"section_{name}")(settings, report)


if __name__ == "__main__":
    main()
