"""benchmarks/tower_pairs.py: a row for each pair of towers, with figures of both starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import transformers
from timm.models import save_for_hf

from tests.models import families

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "tower_pairs.py"


@pytest.mark.slow
def test_table_of_two_pairs(shapes: Path, tmp_path: Path) -> None:
    save_for_hf(timm.create_model("test_convnext"), str(tmp_path / "image"), safe_serialization=True)
    tokenizer = families.bert_tokenizer()
    for name, width in (("narrow", 32), ("wide", 128)):
        config = transformers.BertConfig(
            **families.SMALL | {"hidden_size": width}, vocab_size=len(tokenizer), max_position_embeddings=64
        )
        families.save(tmp_path / name, transformers.BertModel(config), tokenizer)
    command = [sys.executable, str(SCRIPT), "--data", str(shapes / "captions.csv"), "--images", "10", "--held-out", "6"]
    command += ["--captions", "1", "--out", "runs", "image+narrow", "image+wide"]
    environment = os.environ | {"CLIPKIT_CACHE": str(tmp_path / "cache")}
    table = subprocess.run(command, check=True, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True).stdout
    lines = table.splitlines()
    assert lines[0] == "10 images, 10 captions; 6 held-out images"
    assert [line.split("|")[1].strip() for line in lines[3:]] == ["image, narrow", "image, wide"]
    for line in lines[3:]:
        figures = [cell.split() for cell in line.split("|")[5:8]]
        assert all(0 <= float(value) <= 100 for cell in figures for value in cell)
        assert [len(cell) for cell in figures] == [3, 3, 3]
    assert (tmp_path / "runs" / "image_wide_0_random" / "results.json").is_file()
