"""Many runs and evaluations in one process, as in a notebook: nothing is left behind, and Ctrl-C leaves it usable."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import clipkit
from clipkit import evaluate
from clipkit.errors import Interrupted
from clipkit.models.memory import graph_bytes
from clipkit.recipe import Recipe
from clipkit.training.stop import StopRequest
from tests.conftest import read_lines

Build = Callable[..., Recipe]


def held() -> dict[str, int]:
    """Return the numbers of tensors, open files, threads and child processes."""
    gc.collect()
    process = psutil.Process()
    own = [thread for thread in threading.enumerate() if thread.name != "tqdm_monitor"]
    tensors = sum(torch.is_tensor(thing) for thing in gc.get_objects())
    return {
        "tensors": tensors,
        "files": process.num_fds(),
        "threads": len(own),
        "children": len(process.children()),
    }


@pytest.mark.slow
def test_runs_and_evaluations_leave_nothing_behind(
    recipe: Build, tmp_path: Path, tiny_clip: Path, shapes: Path
) -> None:
    def train(number: int) -> None:
        clipkit.train(recipe({"output": str(tmp_path / str(number)), "data.workers": 1}))

    train(0)
    before = held()
    for number in (1, 2):
        train(number)
    assert held() == before
    model = clipkit.load(tiny_clip, device="cpu")
    evaluate.retrieval(model, str(shapes / "captions.csv"), cache=False)
    before = held()
    for _ in range(20):
        evaluate.retrieval(model, str(shapes / "captions.csv"), cache=False)
    assert held() == before


def test_measuring_a_graph_frees_it(tiny_clip: Path) -> None:
    model = clipkit.load(tiny_clip, device="cpu")
    tokens = model.text.tokenize(["a", "b"])
    before = held()["tensors"]
    assert graph_bytes(model.text, tokens) > 10_000
    assert held()["tensors"] == before


class Interrupting(clipkit.Callback):
    """Sends Ctrl-C to this process after a step."""

    def on_step(self, run: clipkit.Progress, row: dict[str, Any]) -> None:
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_run_leaves_the_process_usable(recipe: Build, tmp_path: Path) -> None:
    handler, children = signal.getsignal(signal.SIGINT), held()["children"]
    with pytest.raises(KeyboardInterrupt, match=r"after step 2, which has a checkpoint.* resume=True"):
        clipkit.train(recipe({"data.workers": 1}), callbacks=[Interrupting()])
    assert signal.getsignal(signal.SIGINT) is handler
    assert held()["children"] <= children  # a child of an earlier test may end meanwhile
    assert clipkit.train(recipe(), resume=True).settings["steps"] == 4
    assert [row["step"] for row in read_lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_second_interrupt_in_a_notebook_ends_the_run_not_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    monkeypatch.setattr("clipkit.training.stop._SAME_SECONDS", 0.3)
    threads = set(threading.enumerate())
    stop = StopRequest()

    def interrupt_thrice() -> None:
        with stop, stop.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # at once: the same Ctrl-C
            time.sleep(0.4)
            assert stop.signal == signal.SIGINT
            assert set(threading.enumerate()) <= threads  # a thread of an earlier test may end meanwhile
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    with pytest.raises(Interrupted, match="again"):
        interrupt_thrice()


@pytest.mark.slow
def test_loader_workers_can_be_spawned(recipe: Build, tmp_path: Path) -> None:
    clipkit.train(recipe({"train.epochs": 1, "data.validation": None}))
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        changes = {"train.epochs": 1, "data.validation": None, "data.workers": 1, "output": str(tmp_path / "b")}
        clipkit.train(recipe(changes))
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert read_lines(tmp_path / "b" / "metrics.jsonl") == read_lines(tmp_path / "run" / "metrics.jsonl")
