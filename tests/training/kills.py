"""Run recipes to their end, killing and resuming the last one; started by test_kills in a separate process.

This process never computes, so that it can fork the runs quickly and safely. It prints how often it killed a run at
which kind of moment.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import clipkit.training  # before any fork
from clipkit.recipe import Recipe
from clipkit.report import run as report
from tests.charts import not_drawn
from tests.forked import free_port, rank_variables

_PATIENCE = 60.0


def lines_of(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def start(recipe: Recipe, index: int, count: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    if count > 1:
        os.environ |= rank_variables(index, count, port)
    real = os.fsync

    def slow(descriptor: int) -> None:  # makes writing a checkpoint slow enough to be killed during it
        time.sleep(0.01)
        real(descriptor)

    os.fsync = slow
    code = 1
    try:
        clipkit.training.train(recipe, resume=True)
        code = 0
    except BaseException as error:
        print(f"process {index}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def main(file: str, count: int, kills: int) -> None:
    choose = random.Random(0)
    recipe = Recipe.from_yaml(file)
    metrics, checkpoints = Path(recipe.output) / "metrics.jsonl", Path(recipe.output) / "checkpoints"
    done = {"lines": 0, "writing": 0, "any moment": 0}
    while True:
        changed = recipe.override({"data.workers": choose.choice([0, 1])})
        port = free_port()
        kind, more = choose.choice(list(done)), choose.randint(1, 6)
        wait = choose.random() * 0.4
        began, at_start = time.monotonic(), lines_of(metrics)
        pids = {start(changed, index, count, port) for index in range(count)}
        lowest, killed = at_start, False
        while pids:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                pids.discard(pid)
                if not killed and os.waitstatus_to_exitcode(status) != 0:
                    sys.exit(f"a run failed by itself: {status}")
                continue
            if killed and time.monotonic() - began > _PATIENCE:
                sys.exit("a process outlived the others by a minute")
            lowest = min(lowest, lines_of(metrics))  # resuming truncates the log
            reached = lines_of(metrics) >= lowest + more
            if kind == "writing":
                reached = reached and any(checkpoints.glob(".writing-*"))
            if kind == "any moment":
                reached = reached or time.monotonic() - began > wait + 0.3
            if reached and not killed and sum(done.values()) < kills:
                # Kill one process only: the others have to end by themselves.
                os.kill(choose.choice(sorted(pids)), signal.SIGKILL)
                done[kind] += 1
                killed, began = True, time.monotonic()
            time.sleep(0.004)
        if not killed:
            print(json.dumps(done))
            return


if __name__ == "__main__":
    report.line_chart = not_drawn
    *whole, killed = sys.argv[3:]
    for file in whole:
        main(file, int(sys.argv[1]), 0)
    main(killed, int(sys.argv[1]), int(sys.argv[2]))
