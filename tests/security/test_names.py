"""A name that exists is that file, whatever characters it holds; options that do not exist are errors."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from clipkit.data import read_labeled, read_pairs
from clipkit.data.sources.columns import name_revision_and_split, split_options
from clipkit.errors import DataError
from clipkit.recipe.overrides import parse_overrides
from tests.conftest import draw, write_csv

ODD = ["a?b", "a?image=x", "a[1]", "[a-z]*", "{0..1}", "a{b", "a #2", "a b", " a", "a::b", "a&b=c?d=e", "ä%20", "a*"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.mark.parametrize("name", ODD)
def test_a_table_is_read_under_any_name(name: str, tmp_path: Path) -> None:
    draw("red", "circle").save(tmp_path / "x.png")
    file = write_csv(tmp_path / f"{name}.csv", ["image", "caption", "other"], [["x.png", "red", "green"]])
    assert read_pairs(str(file)).captions == ["red"]
    assert read_pairs(f"{file}?caption=other").captions == ["green"]
    table = pa.table({"image": ["x.png"], "caption": ["blue"]})
    parquet.write_table(table, tmp_path / f"{name}.parquet")
    assert read_pairs(str(tmp_path / f"{name}.parquet")).captions == ["blue"]


@pytest.mark.parametrize("name", ODD)
def test_folders_and_shards_are_read_under_any_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        draw("red", "circle").save(folder / label / "x.png")
    assert read_labeled(str(folder)).classes == ["cat", "dog"]
    write_tar(tmp_path / f"{name}.tar", "a dog")
    assert read_pairs(str(tmp_path / f"{name}.tar")).captions == ["a dog"]


def write_tar(path: Path, caption: str) -> None:
    image = io.BytesIO()
    draw("red", "circle").save(image, "PNG")
    with tarfile.open(path, "w") as tar:
        for ending, content in (("png", image.getvalue()), ("txt", caption.encode())):
            member = tarfile.TarInfo(f"000.{ending}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("name", ["a[1]", "a?b", "a::b", "{0..1}"])
def test_embedded_images_are_read_under_any_name(name: str, tmp_path: Path) -> None:
    content = io.BytesIO()
    draw("red", "circle").save(content, "PNG")
    table = pa.table({"image": [content.getvalue()], "caption": ["red"]})
    parquet.write_table(table, tmp_path / f"{name}.parquet")
    # What the name would mean as a pattern must not be read instead.
    parquet.write_table(pa.table({"image": [b""], "caption": ["wrong"]}), tmp_path / "a1.parquet")
    pairs = read_pairs(str(tmp_path / f"{name}.parquet"))
    assert pairs.captions == ["red"]
    assert pairs.images[0].read_bytes() == content.getvalue()


def test_a_pattern_does_not_hide_the_file_of_that_name(tmp_path: Path) -> None:
    write_tar(tmp_path / "s[1].tar", "named")
    write_tar(tmp_path / "s1.tar", "matched")
    assert read_pairs(str(tmp_path / "s[1].tar")).captions == ["named"]
    assert read_pairs(str(tmp_path / "s[0-9].tar")).captions == ["matched"]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("?foo=x", "foo"), ("?image", "image"), ("?image=", "image"), ("?=x", "=x"), ("?image=a&image=b", "image"),
        ("?caption=x&", "&"), ("?Image=x", "Image"), ("?split=a&stream_=1", "stream_"), ("?caption=x;image=y", "x"),
    ],
)  # fmt: skip
def test_unknown_options_are_errors(options: str, part: str, tmp_path: Path) -> None:
    draw("red", "circle").save(tmp_path / "x.png")
    file = write_csv(tmp_path / "p.csv", ["image", "caption"], [["x.png", "red"]])
    with pytest.raises(DataError, match=part) as caught:
        read_pairs(f"{file}{options}")
    assert len(str(caught.value).splitlines()) == 1


def test_options_are_split_off_names_that_do_not_exist() -> None:
    assert split_options("photos.csv?image=file&caption=a%20b") == ("photos.csv", {"image": "file", "caption": "a%20b"})
    assert split_options("photos?templates=a%20b.txt") == ("photos", {"templates": "a b.txt"})
    assert split_options("classes?templates=a?b.txt") == ("classes", {"templates": "a?b.txt"})


@pytest.mark.parametrize(
    "typed",
    [
        "tr/exp #2", "a: b", "- a", "&a b", "*a", "!a b", "|", "> a", "? a", "%a", "@a", "`a`", " a ", "2024-01-01",
        "12:30", "a [1].csv", "{0..1}.csv", "[1].csv", "'a' b", "a\\nb", "#1", "5 # c", "[a #b]", "a, b", "!!python/x",
    ],
)  # fmt: skip
def test_values_on_the_command_line_are_taken_as_they_are_typed(typed: str) -> None:
    assert parse_overrides([f"output={typed}"]) == {"output": typed}


def test_numbers_lists_and_quoted_values_stay_what_they_were() -> None:
    for typed, value in (
        ("0.1", 0.1), ("1e-5", "1e-5"), ("5", 5), ("null", None), ("true", True), ("false", False), ("", None),
        ("[a, b]", ["a", "b"]), ("{name: crop, scale: [0.5, 1]}", {"name": "crop", "scale": [0.5, 1]}),
        ("'a #2'", "a #2"), ('"5"', "5"), ("['a #1.csv', b]", ["a #1.csv", "b"]), (".inf", float("inf")),
    ):  # fmt: skip
        assert parse_overrides([f"key={typed}"]) == {"key": value}


@pytest.mark.parametrize("name", ["a:b", "a@b", "a:b@c:d", "{a}:b", "a?b", "a?split=x:y"])
def test_folders_of_the_hub_layouts_with_colons_and_at_signs(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    (folder / "test").mkdir(parents=True)
    content = io.BytesIO()
    draw("red", "circle").save(content, "PNG")
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for member, data in (("0.png", content.getvalue()), ("0.cls", b"0")):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (folder / "test" / "nshards.txt").write_text("1")
    (folder / "classnames.txt").write_text("red circle")
    assert read_pairs(f"wds:{folder}").captions == ["red circle"]
    assert read_pairs(f"wds:{folder}:test").captions == ["red circle"]
    assert name_revision_and_split(str(folder)) == (str(folder), "", "")
    assert name_revision_and_split(f"{folder}:test") == (str(folder), "", "test")
