"""Examples in a result."""

import io
import tarfile
from pathlib import Path

import pytest

from clipkit.data import read_pairs
from clipkit.evaluation.examples import shown
from clipkit.images import DATA_URI
from clipkit.report.page import thumbnail
from tests.conftest import draw


def test_images_in_a_tar_are_stored_in_the_example_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    encoded = io.BytesIO()
    draw("red", "circle").save(encoded, "PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("1.png", encoded.getvalue()), ("1.txt", b"a circle"), ("2.png", b"no"), ("2.txt", b"x")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    one, broken = read_pairs(str(tmp_path / "a.tar")).images
    assert shown(one).startswith(DATA_URI)
    assert thumbnail(shown(one)) == shown(one)
    assert shown(broken) == str(tmp_path / "a.tar/2.png")
    assert shown(Path("a.png")) == "a.png"
    assert shown("a caption") == "a caption"
