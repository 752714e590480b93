"""Datasets of the Hub, read with its real client from a local server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from tests.data import hub_reader
from tests.data.test_sources import Made
from tests.models.hub_server import Hub, Repository, serving


def test_datasets_of_the_hub_are_read_by_name(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    made = Made(tmp_path / "made")
    table = pa.table({"image": made.embedded(), "caption": made.captions})
    data = tmp_path / "repository" / "data"
    data.mkdir(parents=True)
    parquet.write_table(table.slice(0, 20), data / "train-00000-of-00001.parquet")
    parquet.write_table(table.slice(20, 5), data / "test-00000-of-00001.parquet")
    with serving(Hub({"me/mine": Repository({"main": tmp_path / "repository"})})) as hub:
        environment = os.environ | {
            "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        sources = ["hf:me/mine:train", "hf:me/mine:test?stream=true", "hf:me/mine", "hf:me/other", "hf:me/mine:dev"]
        done = subprocess.run(
            [sys.executable, hub_reader.__file__, *sources],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    train, test, several, other, dev = json.loads(done.stdout)
    captions = [caption for own in made.captions for caption in own]
    assert train == {"captions": captions[: sum(len(own) for own in made.captions[:20])]}
    assert test == {"captions": [caption for own in made.captions[20:25] for caption in own]}
    assert "has several splits; use one of hf:me/mine:" in several["error"]
    assert other["error"].startswith("hf:me/other: cannot be read (")
    assert "has no split dev; use one of" in dev["error"]
    assert all("\n" not in own["error"] for own in (several, other, dev))
