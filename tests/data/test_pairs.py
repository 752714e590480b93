from pathlib import Path

import pytest

from clipkit.data import read_labeled, read_pairs
from clipkit.errors import DataError
from tests.conftest import draw, write_csv


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        draw("red", "circle").save(tmp_path / f"{name}.png")
    return tmp_path


def test_rows_with_one_image_path_are_one_image(folder: Path) -> None:
    rows = [
        ["b.png", "one"],
        ["a.png", "two"],
        ["b.png", "three, with a comma"],
        ["b.png", 'quoted "words"\nand a line'],
    ]
    pairs = read_pairs(str(write_csv(folder / "p.csv", ["image", "caption"], rows)))
    assert [image.name for image in pairs.images] == ["b.png", "a.png"]
    assert pairs.image_of_caption.tolist() == [0, 1, 0, 0]
    assert [own.tolist() for own in pairs.captions_of_image] == [[0, 2, 3], [1]]
    assert pairs.captions[3] == 'quoted "words"\nand a line'


@pytest.mark.parametrize(
    "header", [["image", "caption"], ["filepath", "title"], ["File_Name", "Text"], ["id", "sentence", "path"]]
)
def test_columns_are_found_by_name(folder: Path, header: list[str]) -> None:
    roles = {"image": "a.png", "filepath": "a.png", "file_name": "a.png", "path": "a.png", "id": "7"}
    row = [roles.get(name.lower(), "words") for name in header]
    assert read_pairs(str(write_csv(folder / "p.csv", header, [row]))).captions == ["words"]


def test_columns_can_be_named(folder: Path) -> None:
    write_csv(folder / "p.csv", ["image", "photo", "caption", "alt"], [["x", "a.png", "no", "yes"]])
    pairs = read_pairs(f"{folder / 'p.csv'}?image=photo&caption=alt")
    assert (pairs.images[0].name, pairs.captions) == ("a.png", ["yes"])


def test_byte_order_marks_tabs_and_windows_lines(folder: Path) -> None:
    (folder / "p.csv").write_bytes("\ufeffimage,caption\r\na.png,naïve café\r\n\r\n".encode())
    assert read_pairs(str(folder / "p.csv")).captions == ["naïve café"]
    (folder / "p.tsv").write_text("image\tcaption\na.png\tone, two\n")
    assert read_pairs(str(folder / "p.tsv")).captions == ["one, two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("image,caption\n", "a header but no rows"),
        ("image,words\na.png,x\n", r"no caption column .* its columns are image, words"),
        ("caption\nx\n", "no image column"),
        ("image,caption\na.png\n", "line 2 has 1 fields"),
        ("image,caption\na.png, \n", "row 1 has no caption"),
        ("image,caption\nnone.png,x\na.png,y\n", r"1 of its 2 images are missing.*the first is .*none.png"),
        (b"image,caption\na.png,caf\xe9\n", "not UTF-8"),
    ],
)
def test_errors_name_the_problem_in_one_line(folder: Path, content: str | bytes, message: str) -> None:
    (folder / "p.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message) as caught:
        read_pairs(str(folder / "p.csv"))
    assert "\n" not in str(caught.value)


def test_unsupported_sources_are_refused(folder: Path) -> None:
    for source, message in [
        (str(folder / "none.csv"), "not found"),
        (str(folder), "has images without captions"),
        (str(folder / "a.png"), "supported sources"),
        (f"{folder / 'p.csv'}?photo=x", "unknown option photo"),
    ]:
        with pytest.raises(DataError, match=message):
            read_pairs(source)


def test_the_hash_follows_the_content(folder: Path) -> None:
    one = read_pairs(str(write_csv(folder / "p.csv", ["image", "caption"], [["a.png", "x"], ["b.png", "y"]])))
    same = read_pairs(str(write_csv(folder / "q.csv", ["caption", "image"], [["x", "a.png"], ["y", "b.png"]])))
    other = read_pairs(str(write_csv(folder / "r.csv", ["image", "caption"], [["a.png", "y"], ["b.png", "x"]])))
    assert one.sha256 == same.sha256 != other.sha256


def test_labels_from_a_table_and_from_class_folders(folder: Path) -> None:
    table = read_labeled(str(write_csv(folder / "l.csv", ["image", "label"], [["b.png", "dog"], ["a.png", "cat"]])))
    assert (table.classes, table.labels.tolist()) == (["cat", "dog"], [1, 0])
    for name in ("dog", "cat"):
        (folder / "tree" / name).mkdir(parents=True)
        draw("blue", "cross").save(folder / "tree" / name / "1.png")
    tree = read_labeled(str(folder / "tree"))
    assert (tree.classes, tree.labels.tolist()) == (["cat", "dog"], [0, 1])
    with pytest.raises(DataError, match="no class folders"):
        read_labeled(str(folder / "tree" / "dog"))


def test_roles_that_are_not_needed_may_be_missing(shapes: Path, tmp_path: Path) -> None:
    image = str(shapes / "images/00.png")
    gaps = write_csv(tmp_path / "g.csv", ["image", "caption", "paraphrase"], [[image, "", "x"], [image, "b", ""]])
    alone = read_pairs(str(gaps), captions=False)
    assert (alone.captions, alone.has_captions, alone.paraphrases) == ([""], False, None)
    with pytest.raises(DataError, match="row 1 has no caption"):
        read_pairs(str(gaps))
    gone = write_csv(tmp_path / "t.csv", ["path", "sentence"], [["a.png", "x"], ["a.png", "y"], ["b.png", "z"]])
    text = read_pairs(str(gone), images=False)
    assert (text.captions, text.image_of_caption.tolist(), text.has_images) == (["x", "y", "z"], [0, 0, 1], False)
    assert text.fingerprint
    with pytest.raises(DataError, match="2 of its 2 images are missing"):
        read_pairs(str(gone))


def test_folders(shapes: Path, tmp_path: Path) -> None:
    alone = read_pairs(str(shapes / "images"), captions=False)
    assert len(alone.images) == 16
    assert not alone.has_captions
    with pytest.raises(DataError, match="has images without captions"):
        read_pairs(str(shapes / "images"))
    for name in ("b/1.png", "a/2.png", "a/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((shapes / "images/00.png").read_bytes())
    classes = read_pairs(str(tmp_path))
    assert classes.captions == ["a", "a", "b"]
    assert classes.caption_ids.tolist() == [0, 0, 2]
    (tmp_path / "sheet.png").write_bytes(b"")
    with pytest.raises(DataError, match="such as sheet.png, and 3 images in class folders, such as a/1.png"):
        read_pairs(str(tmp_path))
    images = read_pairs(str(tmp_path), captions=False)
    assert (len(images.images), images.has_captions) == (4, False)
