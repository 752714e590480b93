"""The columns that are read: recognized forms of tables, and the choice among several columns."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from clipkit.data import Pairs, read_pairs
from clipkit.errors import DataError
from clipkit.images import open_image
from tests.conftest import write_csv

COLORS = ("red", "lime", "blue")
CAPTIONS = ["a red square", "a green square", "a blue square"]
ADDRESSES = [f"http://127.0.0.1:9/{number}.jpg" for number in range(3)]


def jpeg(color: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(content, "JPEG")
    return content.getvalue()


CONTENTS = [jpeg(color) for color in COLORS]


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the images 0.jpg, 1.jpg and 2.jpg in its folder `photos`."""
    (tmp_path / "data" / "photos").mkdir(parents=True)
    for number, content in enumerate(CONTENTS):
        (tmp_path / "data" / "photos" / f"{number}.jpg").write_bytes(content)
    return tmp_path / "data"


PATHS = [f"photos/{number}.jpg" for number in range(3)]


def check(pairs: Pairs, captions: Sequence[str] = CAPTIONS) -> None:
    assert list(pairs.captions) == list(captions)
    pixels: list[Any] = [open_image(image).getpixel((4, 4)) for image in pairs.images]
    assert [max(range(3), key=pixel.__getitem__) for pixel in pixels] == [0, 1, 2]


def notes(pairs: Pairs) -> list[str]:
    return [finding.message for finding in pairs.findings if finding.name == "column_choice"]


# Forms of tables.


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("header", [("image", "caption"), ("Photo File", "titulo")])
def test_any_delimiter_is_recognized(delimiter: str, suffix: str, header: tuple[str, str], folder: Path) -> None:
    texts = ["a red square; or (a|b), really", "a green, small one", "a blue\tone"]
    lines = [delimiter.join(header)]
    lines += [delimiter.join([path, f'"{text}"']) for path, text in zip(PATHS, texts, strict=True)]
    table = folder / f"t{suffix}"
    table.write_text("\n".join(lines))
    options = "" if header[0] == "image" else f"?image={header[0]}&caption={header[1]}"
    check(read_pairs(f"{table}{options}"), texts)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_line_that_excel_writes_before_the_header(mark: str, end: str, folder: Path) -> None:
    lines = ["sep=;", "image;caption", *(f"{path};{text}" for path, text in zip(PATHS, CAPTIONS, strict=True))]
    (folder / "t.csv").write_bytes((mark + end.join(lines)).encode())
    check(read_pairs(str(folder / "t.csv")))
    (folder / "t.csv").write_bytes((mark + end.join([*lines, "photos/1.jpg;a;b"])).encode())
    with pytest.raises(DataError, match="line 6 has 3 fields, .*a semicolon"):
        read_pairs(str(folder / "t.csv"))


def test_flickr30k_as_it_is_distributed(folder: Path) -> None:
    lines = [f"{path}| 0| {text} ." for path, text in zip(PATHS, CAPTIONS, strict=True)]
    (folder / "results.csv").write_text("\n".join(["image_name| comment_number| comment", *lines]))
    check(read_pairs(str(folder / "results.csv")), [f"{text} ." for text in CAPTIONS])


def test_a_table_without_a_header_is_named(folder: Path) -> None:
    (folder / "cc3m.tsv").write_text("\n".join(f"{text}\t{url}" for text, url in zip(CAPTIONS, ADDRESSES, strict=True)))
    with pytest.raises(DataError, match="has no header, because its first line is data .*0.jpg"):
        read_pairs(str(folder / "cc3m.tsv"))
    write_csv(
        folder / "t.csv", [PATHS[0], CAPTIONS[0]], [[path, text] for path, text in zip(PATHS, CAPTIONS, strict=True)]
    )
    with pytest.raises(DataError, match="has no header"):
        read_pairs(str(folder / "t.csv"))


def test_delimiters_in_a_column_name_or_a_single_column_are_no_delimiters(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('caption,"width; height; depth"\n"one; two",3\n')
    assert list(read_pairs(str(tmp_path / "a.csv"), images=False).captions) == ["one; two"]
    (tmp_path / "b.csv").write_text("caption\none; two\nthree | four\n")
    assert list(read_pairs(str(tmp_path / "b.csv"), images=False).captions) == ["one; two", "three | four"]


@pytest.mark.parametrize("name", ["t.csv", "t 1.csv", "a?b.csv"])
def test_the_advice_of_a_missing_column_works(name: str, folder: Path) -> None:
    lines = ["wo;was", *(f"{number};{text}" for number, text in enumerate(CAPTIONS))]
    (folder / name).write_text("\n".join(lines))
    with pytest.raises(DataError, match="its columns are wo, was") as caught:
        read_pairs(f"{folder / name}?image=wo")
    advised = str(caught.value).rpartition(" with ")[2].strip("'")
    assert advised == f"{folder / name}?caption=COLUMN"
    assert list(read_pairs(advised.replace("COLUMN", "was"), images=False).captions) == CAPTIONS


@pytest.mark.parametrize("name", ["a+b", "50% off", "c#", "über", "two words", "a=b", "100%25"])
def test_column_names_are_taken_as_typed(name: str, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", ["x", name], [["1", "a dog"]])
    assert list(read_pairs(f"{table}?caption={name}", images=False).captions) == ["a dog"]


def test_a_column_name_with_an_ampersand_is_written_with_its_code(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", ["x", "a&b"], [["1", "a dog"]])
    assert list(read_pairs(f"{table}?caption=a%26b", images=False).captions) == ["a dog"]


def test_options_that_have_no_effect_are_errors(folder: Path) -> None:
    for number, text in enumerate(CAPTIONS):
        (folder / "photos" / f"{number}.txt").write_text(text)
    check(read_pairs(str(folder / "photos")))
    with pytest.raises(DataError, match="option caption=title has no effect"):
        read_pairs(f"{folder / 'photos'}?caption=title")


# The choice among columns.


def write(kind: str, folder: Path, columns: dict[str, list[Any]]) -> str:
    file = folder / f"t.{kind}"
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if kind == "csv":
        write_csv(file, list(columns), [list(map(str, row.values())) for row in rows])
    elif kind == "jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "json":
        file.write_text(json.dumps(rows))
    else:
        parquet.write_table(pa.table(columns), file)
    return str(file)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"url": ADDRESSES, "path": PATHS}, "path"),
        ({"image": ADDRESSES, "img": PATHS}, "img"),
        ({"image": ["a7", "b8", "c9"], "file_name": PATHS}, "file_name"),
        ({"image": [7, 8, 9], "file_name": PATHS}, "file_name"),
        ({"image": ["0.jpg", "1.jpg", "2.jpg"], "path": PATHS}, "path"),  # only the second exist
        ({"image": ["", "", ""], "path": PATHS}, "path"),
        ({"path": PATHS, "image_path": PATHS}, "path"),  # equally good: the usual name
        ({"where the photo is": PATHS}, "where the photo is"),
    ],
)  # fmt: skip
def test_images_that_are_there_are_preferred_and_the_choice_is_reported(
    kind: str, columns: dict[str, list[Any]], chosen: str, folder: Path
) -> None:
    pairs = read_pairs(write(kind, folder, columns | {"caption": CAPTIONS}))
    check(pairs)
    assert pairs.found["image"] == chosen
    (note,) = notes(pairs)
    assert f"the image is the column {chosen} (image paths)" in note
    assert all(other in note for other in columns)


def test_a_single_candidate_is_not_reported_and_a_named_one_is_taken(folder: Path) -> None:
    assert not notes(read_pairs(write("csv", folder, {"image": PATHS, "caption": CAPTIONS})))
    table = write("csv", folder, {"image": PATHS, "url": ADDRESSES, "caption": CAPTIONS, "title": ["x", "y", "z"]})
    pairs = read_pairs(f"{table}?image=url&caption=title", broken=("images",))
    assert pairs.found == {"image": "url", "caption": "title"}
    assert not notes(pairs)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_captions_are_texts(kind: str, folder: Path) -> None:
    columns: dict[str, list[Any]] = {"image": PATHS, "caption": [1.5, 2.5, 3.5], "text": CAPTIONS, "title": CAPTIONS}
    pairs = read_pairs(write(kind, folder, columns))
    check(pairs)
    assert "the caption is the column text (texts), not caption (no texts), title (texts)" in notes(pairs)[0]


def test_numbers_are_not_captions_if_there_are_others(folder: Path) -> None:
    pairs = read_pairs(write("csv", folder, {"image": PATHS, "text": ["17", "3", "8"], "description": CAPTIONS}))
    check(pairs)
    alone = read_pairs(write("csv", folder, {"image": PATHS, "text": ["17", "3", "8"]}))
    assert list(alone.captions) == ["17", "3", "8"]


def test_several_columns_of_images_without_a_known_name_are_an_error(folder: Path) -> None:
    table = write("csv", folder, {"before": PATHS, "after": PATHS, "caption": CAPTIONS})
    with pytest.raises(DataError, match=r"no image column .*\?image=COLUMN"):
        read_pairs(table)


# Parquet.

STRUCTS = {
    "binary": CONTENTS,
    "struct without a path": [{"bytes": content} for content in CONTENTS],
    "struct of pandas": [{"bytes": content, "path": None} for content in CONTENTS],
    "struct with names": [{"bytes": content, "path": f"{n}.jpg"} for n, content in enumerate(CONTENTS)],
    "large_binary": pa.array(CONTENTS, pa.large_binary()),
    "dictionary": pa.array(CONTENTS, pa.binary()).dictionary_encode(),
}
if int(pa.__version__.split(".")[0]) >= 21:  # older ones cannot write them
    STRUCTS["binary_view"] = pa.array(CONTENTS, pa.binary()).cast(pa.binary_view())


@pytest.mark.parametrize("name", STRUCTS)
def test_parquet_with_image_bytes_of_any_type_and_addresses(name: str, tmp_path: Path) -> None:
    """The columns of img2dataset."""
    columns = {"url": ADDRESSES, "caption": CAPTIONS, "key": ["0", "1", "2"], "status": ["success"] * 3}
    parquet.write_table(pa.table({**columns, "jpg": STRUCTS[name]}), tmp_path / "00000.parquet")
    pairs = read_pairs(str(tmp_path / "00000.parquet"))
    check(pairs)
    assert "the image is the column jpg (image bytes), not url (URLs)" in notes(pairs)[0]


def test_a_column_of_image_bytes_with_any_name_is_the_image(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"photo": STRUCTS["struct of pandas"], "caption": CAPTIONS}), tmp_path / "t.parquet")
    check(read_pairs(str(tmp_path / "t.parquet")))


PARTS = {
    "string, large_string": [
        {"caption": pa.array(CAPTIONS[:2])},
        {"caption": pa.array(CAPTIONS[2:], pa.large_string())},
    ],
    "string, dictionary": [
        {"caption": pa.array(CAPTIONS[:2])},
        {"caption": pa.array(CAPTIONS[2:]).dictionary_encode()},
    ],
    "other columns": [
        {"caption": CAPTIONS[:2], "score": [1, 2]},
        {"caption": CAPTIONS[2:], "score": [0.5], "x": ["y"]},
    ],
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=list(PARTS))
@pytest.mark.parametrize(
    "images",
    [
        (PATHS[:2], PATHS[2:]),
        (CONTENTS[:2], CONTENTS[2:]),
        (STRUCTS["struct of pandas"][:2], STRUCTS["struct with names"][2:]),
        (pa.array(CONTENTS[:2]), pa.array(CONTENTS[2:], pa.large_binary())),
        (CONTENTS[:2], STRUCTS["struct with names"][2:]),
    ],
    ids=["paths", "bytes", "structs", "large", "bytes, structs"],
)
@pytest.mark.parametrize("written", ["pattern", "folder"])
def test_parts_with_compatible_types_are_read(
    parts: list[dict[str, Any]], images: tuple[Any, Any], written: str, folder: Path
) -> None:
    for number, (texts, pictures) in enumerate(zip(parts, images, strict=True)):
        directory = folder if written == "pattern" else folder / "parts"
        directory.mkdir(exist_ok=True)
        columns = {"image": pictures, **texts} if number == 0 else {**texts, "image": pictures}
        if written == "folder" and isinstance(pictures, list) and isinstance(pictures[0], str):
            columns["image"] = [f"../{path}" for path in pictures]
        parquet.write_table(pa.table(columns), directory / f"part-{number}.parquet")
    check(read_pairs(str(folder / "part-*.parquet" if written == "pattern" else folder / "parts")))


def test_parts_that_do_not_fit_are_named(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"image": CONTENTS, "caption": CAPTIONS}), tmp_path / "0.parquet")
    parquet.write_table(pa.table({"image": CONTENTS, "caption": [[text] for text in CAPTIONS]}), tmp_path / "1.parquet")
    with pytest.raises(DataError, match="columns of different types .*caption"):
        read_pairs(str(tmp_path / "*.parquet"))
    parquet.write_table(pa.table({"image": CONTENTS}), tmp_path / "1.parquet")
    with pytest.raises(DataError, match=r"1\.parquet has no column caption"):
        read_pairs(str(tmp_path / "*.parquet"))


def test_a_folder_of_parquet_files_with_splits(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("a dataset")
    for split in ("train", "test"):
        for part in range(2):
            table = pa.table({"image": CONTENTS, "caption": [f"{split} {part} {text}" for text in CAPTIONS]})
            parquet.write_table(table, tmp_path / "data" / f"{split}-0000{part}-of-00002.parquet")
    with pytest.raises(DataError, match=r"several splits.*\?split=train"):
        read_pairs(str(tmp_path))
    pairs = read_pairs(f"{tmp_path}?split=test")
    assert list(pairs.captions) == [f"test {part} {text}" for part in range(2) for text in CAPTIONS]
    with pytest.raises(DataError, match="has no split dev"):
        read_pairs(f"{tmp_path}?split=dev")


def test_a_dataset_of_the_hub_is_read_by_its_contents(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"url": ADDRESSES, "png": CONTENTS, "text": CAPTIONS}), tmp_path / "train.parquet")
    pairs = read_pairs(f"hf:{tmp_path}:train")
    check(pairs)
    assert pairs.found == {"image": "png", "caption": "text"}
