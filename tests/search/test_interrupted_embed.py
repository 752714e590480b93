"""`clipkit embed` in real processes: shared, killed at any moment, and with damaged files."""

import json
import random
import shutil
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from clipkit.errors import UserError
from clipkit.models import DualEncoder
from clipkit.search import Index
from tests import forked
from tests.conftest import draw


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "images"
    folder.mkdir()
    for number in range(300):
        draw("red", "square", size=24 + number % 200, shift=number % 7).save(folder / f"{number:03d}.png")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_two_processes_write_the_index_of_one(shapes: Path, tiny_clip: Path, tmp_path: Path) -> None:
    command = ["-m", "clipkit", "embed", shapes / "captions.csv", "--model", tiny_clip, "--out"]
    forked.together(2, *command, tmp_path / "two")
    forked.together(1, *command, tmp_path / "one")
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert not (tmp_path / "two" / "unfinished").exists()


@pytest.mark.slow
def test_twenty_kills_end_with_the_same_bytes(folder: Path, tiny_clip: Path, tmp_path: Path) -> None:
    command = ["-m", "clipkit", "embed", folder, "--model", tiny_clip, "--out"]
    began = time.monotonic()
    assert forked.python(*command, tmp_path / "whole").returncode == 0
    whole = time.monotonic() - began
    generator = random.Random(0)
    kills = 0
    while kills < 20:
        running = forked.Running([*command, tmp_path / "killed"])
        time.sleep(generator.uniform(0, whole))
        kills += running.poll() is None
        running.kill()
        if (tmp_path / "killed" / "manifest.json").exists():
            Index(tmp_path / "killed", check=True)
            if generator.random() < 0.5:
                shutil.rmtree(tmp_path / "killed")
    assert forked.python(*command, tmp_path / "killed").returncode == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


@pytest.mark.slow
def test_any_damage_is_one_line_or_harmless(index_folder: Path, model: DualEncoder, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    names = sorted(file.name for file in index_folder.iterdir())
    for turn in range(300):
        copy = shutil.copytree(index_folder, tmp_path / str(turn))
        file = copy / names[turn % len(names)]
        data = bytearray(file.read_bytes())
        match generator.integers(3):
            case 0:
                data = data[: int(generator.integers(len(data)))]
            case 1:
                for position in generator.integers(0, len(data), 8).tolist():
                    data[position] = int(generator.integers(256))
            case 2:
                data[: int(generator.integers(64))] = b""
        file.write_bytes(data)
        with suppress(UserError):
            Index(copy, model=model).search("a red square", where="year > 2015", k=3)
        shutil.rmtree(copy)


def test_a_manifest_of_other_types_is_one_line(index_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(index_folder, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    for key in manifest:
        for value in (None, 7, "x", [], {}):
            (copy / "manifest.json").write_text(json.dumps(manifest | {key: value}))
            with suppress(UserError):
                Index(copy).search(like=0, k=2)
