"""benchmarks/gpu.py: failures of a section are lines, and all sections run on a CPU."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module, with a package of sections that the test fills."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "gpu_sections", types.ModuleType("gpu_sections"))
    return module


def run(gpu: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, section: Any, limit: float = 20) -> list[Any]:
    made = types.ModuleType("gpu_sections.made")
    made.section_one = section  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gpu_sections.made", made)
    return list(gpu.run("one", "made", SimpleNamespace(folder=folder), limit))


def test_lines_of_a_section_are_its_reports(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def section(settings: Any, report: Any) -> None:
        report("first", seconds=1.0)
        report("second", seconds=2.0)

    *rows, last = run(gpu, monkeypatch, tmp_path, section)
    assert [(row["section"], row["what"], row["seconds"]) for row in rows] == [
        ("one", "first", 1),
        ("one", "second", 2),
    ]
    assert last["took_seconds"] < 20


def test_an_error_is_a_line_after_the_reports(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def section(settings: Any, report: Any) -> None:
        report("first")
        raise ValueError("a wrong value")

    first, failed = run(gpu, monkeypatch, tmp_path, section)
    assert first["what"] == "first"
    assert "exit code 1" in failed["failed"]
    assert "a wrong value" in "\n".join(failed["output"])


def test_a_killed_section_is_a_line(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def section(settings: Any, report: Any) -> None:
        report("first")
        os.kill(os.getpid(), signal.SIGKILL)

    first, failed = run(gpu, monkeypatch, tmp_path, section)
    assert first["what"] == "first"
    assert f"exit code {-signal.SIGKILL}" in failed["failed"]


def test_a_hanging_section_is_stopped_with_its_processes(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def section(settings: Any, report: Any) -> None:
        child = subprocess.Popen(["sleep", "60"])
        report("started", child=child.pid)
        time.sleep(60)

    began = time.monotonic()
    started, failed = run(gpu, monkeypatch, tmp_path, section, limit=0.5)
    assert time.monotonic() - began < 20
    assert "stopped after" in failed["failed"]
    for _ in range(100):
        status = Path(f"/proc/{started['child']}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the section's process still runs")


def test_unknown_section_is_an_error() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--sections", "step,none"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "none" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_all_sections_run_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--small", "--out", out, "--limit", "4", "--seconds", "500"],
        capture_output=True, text=True, check=False, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == [json.loads(line) for line in done.stdout.splitlines()]
    assert not [row for row in rows if "failed" in row]
    assert {row["section"] for row in rows if "took_seconds" in row} == {
        "ceilings", "loss", "step", "compile", "encode", "pipeline", "exactness", "auto", "fp16", "evaluate", "huge",
    }  # fmt: skip
    same = [row["same_bits"] for row in rows if row["section"] == "exactness" and "same_bits" in row]
    assert all(all(bits.values()) for bits in same if isinstance(bits, dict))
    errors = [row["image_gradient_error"] for row in rows if row.get("code") == "clipkit" and "value_error" in row]
    assert len(errors) == 2
    assert max(errors) < 1e-4
