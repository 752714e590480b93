"""Folders: one walk, whose rules docs/data.md states, and what is left out is counted."""

import os
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from clipkit.data import read_labeled, read_near_misses, read_pairs
from clipkit.data.sources.walk import walk
from clipkit.errors import DataError
from clipkit.findings import Finding
from tests.conftest import draw, write_csv


def fill(folder: Path, *names: str) -> Path:
    """Write these files: images, and for other endings a text."""
    for number, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix.lower() in (".png", ".jpg", ".jpeg"):
            draw(("red", "green", "blue", "yellow")[number % 4], "circle", shift=number % 5).save(file)
        else:
            file.write_text(f"text of {name}")
    return folder


def named(findings: object, name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]  # type: ignore[attr-defined]
    return found  # type: ignore[no-any-return]


HIDDEN = [
    ".ipynb_checkpoints/1-checkpoint.png", "cat/.ipynb_checkpoints/1-checkpoint.png", "cat/._1.png", "cat/.1.png",
    "__MACOSX/cat/2.png", "dog/Thumbs.db", "dog/DESKTOP.INI", "@eaDir/1.png", ".git/a.png", ".DS_Store",
]  # fmt: skip


def test_hidden_and_system_names_are_no_data_and_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.png", "dog/2.png", "dog/3.JPG", *HIDDEN)
    labeled = read_labeled(str(tmp_path))
    assert labeled.classes == ["cat", "dog"]
    assert [str(image) for image in labeled.images] == [
        f"{tmp_path}/{n}" for n in ("cat/1.png", "dog/2.png", "dog/3.JPG")
    ]
    finding = named(labeled.findings, "left_out")
    assert (finding.count, finding.severity) == (len(HIDDEN), "note")
    assert "10 hidden or system names (.DS_Store, " in finding.message
    assert [finding.name for finding in read_pairs(str(tmp_path)).findings] == ["left_out"]


@pytest.mark.parametrize("layout", ["metadata", "texts", "images"])
def test_hidden_names_count_in_no_layout(layout: str, tmp_path: Path) -> None:
    fill(tmp_path, "1.png", "._1.png", ".ipynb_checkpoints/2.png")
    if layout == "metadata":
        write_csv(tmp_path / "metadata.csv", ["file_name", "text"], [["1.png", "a"]])
    if layout == "texts":
        fill(tmp_path, "1.txt", "._1.txt")
    pairs = read_pairs(str(tmp_path), captions=layout != "images")
    assert [image.name for image in pairs.images] == ["1.png"]
    assert named(pairs.findings, "left_out").count == (3 if layout == "texts" else 2)


def test_a_clean_folder_has_no_findings(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "classnames.txt").write_text("a cat\na dog\n")
    assert read_labeled(str(tmp_path)).findings == [] == list(read_pairs(str(tmp_path)).findings)


def test_images_that_cannot_be_decoded_are_a_warning(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.png", "dog/2.png", "dog/3.heic", "dog/4.svg", "dog/notes.md")
    finding = named(read_labeled(str(tmp_path)).findings, "left_out")
    assert (finding.severity, finding.count) == ("warning", 3)
    assert "dog/3.heic" in finding.message
    assert "dog/notes.md" in finding.message


def test_images_below_class_folders_are_of_the_top_folder(tmp_path: Path) -> None:
    fill(tmp_path, "animal/cat/1.png", "animal/dog/big/2.png", "animal/3.png", "plant/oak/4.png")
    labeled = read_labeled(str(tmp_path))
    assert labeled.classes == ["animal", "plant"]
    assert labeled.labels.tolist() == [0, 0, 0, 1]  # torchvision's ImageFolder
    assert [image.name for image in labeled.images] == ["3.png", "1.png", "2.png", "4.png"]
    finding = named(labeled.findings, "nested_folders")
    assert (finding.severity, finding.count) == ("warning", 3)
    assert "3 of 4" in finding.message
    assert list(read_pairs(str(tmp_path)).captions) == ["animal"] * 3 + ["plant"]
    assert read_pairs(str(tmp_path), captions=False).findings == []  # images alone


def test_order_is_that_of_torchvision_folders(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision.datasets")
    fill(tmp_path, "b/2.png", "b/10.png", "a b/1.png", "a/z.png", "a/z/1.png", "a/z 1/1.png", "C/1.png")
    other = torchvision.ImageFolder(tmp_path)
    labeled = read_labeled(str(tmp_path))
    assert labeled.classes == other.classes
    ours = zip(map(str, labeled.images), labeled.labels.tolist(), strict=True)
    assert sorted(ours) == sorted(other.samples)


def test_empty_class_folders_are_classes(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.png", "dog/2.png", "annotations/a.json", "ant/.gitkeep")
    (tmp_path / "bee").mkdir()
    labeled = read_labeled(str(tmp_path))
    assert labeled.classes == ["ant", "bee", "cat", "dog"]
    assert labeled.labels.tolist() == [2, 3]
    assert (
        "2 of its 4 classes have no images in this data (ant, bee)"
        in named(labeled.findings, "classes_without_images").message
    )
    assert "annotations/a.json" in named(labeled.findings, "left_out").message


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    data = fill(tmp_path / "data", "cat/1.png")
    fill(tmp_path / "far", "2.png")
    (data / "dog").symlink_to(tmp_path / "far")
    (data / "cat" / "3.png").symlink_to(tmp_path / "far" / "2.png")
    (data / "cat" / "up").symlink_to(data)
    (data / "cat" / "self").symlink_to("self")
    labeled = read_labeled(str(data))
    assert [str(image.relative_to(data)) for image in labeled.images] == ["cat/1.png", "cat/3.png", "dog/2.png"]  # type: ignore[union-attr]
    assert "cat/up" in named(labeled.findings, "left_out").message


def test_names_that_are_not_text_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "cat/1.png", "dog/2.png")
    try:
        (Path(os.fsdecode(bytes(tmp_path) + b"/cat/\xff.png"))).write_bytes(b"")
    except OSError:
        pytest.skip("the file system has no such names")
    finding = named(read_labeled(str(tmp_path)).findings, "left_out")
    assert finding.severity == "warning"
    assert "udcff.png" in finding.message
    finding.message.encode()


def test_metadata_of_a_split_is_read(tmp_path: Path) -> None:
    fill(tmp_path, "train/1.png", "train/sub/2.png", "train/3.png")
    write_csv(tmp_path / "train/metadata.csv", ["file_name", "text"], [["1.png", "one"], ["sub/2.png", "two"]])
    pairs = read_pairs(str(tmp_path))
    assert list(pairs.captions) == ["one", "two"]
    assert [str(image) for image in pairs.images] == [f"{tmp_path}/train/1.png", f"{tmp_path}/train/sub/2.png"]
    assert "1 of 3" in named(pairs.findings, "unlisted_images").message


def test_several_splits_are_never_mixed_silently(tmp_path: Path) -> None:
    fill(tmp_path, "train/1.png", "test/2.png")
    for split, image in (("train", "1.png"), ("test", "2.png")):
        lines = '{"file_name": "%s", "text": "in %s"}\n' % (image, split)  # noqa: UP031
        (tmp_path / split / "metadata.jsonl").write_text(lines)
    with pytest.raises(DataError, match=r"several splits.*\?split=train"):
        read_pairs(str(tmp_path))
    assert read_pairs(f"{tmp_path}?split=test").captions == ["in test"]
    with pytest.raises(DataError, match="no split dev"):
        read_pairs(f"{tmp_path}?split=dev")
    # One table for both splits, as `datasets` also reads it.
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "train/1.png", "text": "in train"}\n{"file_name": "./test/2.png", "text": "in test"}\n'
    )
    assert read_pairs(f"{tmp_path}?split=test").captions == ["in test"]
    both = read_pairs(str(tmp_path))
    assert both.captions == ["in train", "in test"]
    assert "train, test" in named(both.findings, "mixed_splits").message


def test_class_folders_in_splits(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png")
    (tmp_path / "classnames.txt").write_text("a cat\na dog\n")
    with pytest.raises(DataError, match="several splits"):
        read_labeled(str(tmp_path))
    labeled = read_labeled(f"{tmp_path}?split=val")
    assert (labeled.classes, labeled.class_names, labeled.labels.tolist()) == (
        ["cat", "dog"],
        ["a cat", "a dog"],
        [0, 1],
    )


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    fill(tmp_path, "bus/1.png", "train/2.png")
    assert read_labeled(str(tmp_path)).classes == ["bus", "train"]


def test_metadata_tables_of_several_folders_are_joined(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png", "b/1.png")
    write_csv(tmp_path / "a/metadata.csv", ["file_name", "text"], [["1.png", "one"]])
    (tmp_path / "b/metadata.jsonl").write_text('{"file_name": "1.png", "text": ["two", "three"]}\n')
    pairs = read_pairs(str(tmp_path))
    assert list(pairs.captions) == ["one", "two", "three"]
    assert [str(image) for image in pairs.images] == [f"{tmp_path}/a/1.png", f"{tmp_path}/b/1.png"]
    write_csv(tmp_path / "b/metadata.csv", ["file_name", "text", "label"], [["1.png", "two", "x"]])
    with pytest.raises(DataError, match="different columns"):
        read_pairs(str(tmp_path))


def test_names_with_spaces_are_stripped_for_classes(tmp_path: Path) -> None:
    fill(tmp_path, "cat /1.png", "dog/2.png")
    (tmp_path / "classnames.txt").write_text("a cat\na dog\n")
    labeled = read_labeled(str(tmp_path))
    assert (labeled.classes, labeled.class_names) == (["cat", "dog"], ["a cat", "a dog"])
    assert list(read_pairs(str(tmp_path)).captions) == ["a cat", "a dog"]


def test_metadata_may_be_parquet(tmp_path: Path) -> None:
    fill(tmp_path, "1.png", "2.png")
    parquet.write_table(pa.table({"file_name": ["2.png"], "text": ["two"]}), tmp_path / "metadata.parquet")
    pairs = read_pairs(str(tmp_path))
    assert ([image.name for image in pairs.images], pairs.captions) == (["2.png"], ["two"])
    assert named(pairs.findings, "unlisted_images").examples == ("1.png",)


def test_a_folder_of_a_single_class_is_reported(tmp_path: Path) -> None:
    fill(tmp_path, "photos/cat/1.png", "photos/dog/2.png")
    assert "'photos'" in named(read_labeled(str(tmp_path)).findings, "one_class").message


def test_a_folder_with_an_ending_of_an_image_is_a_folder(tmp_path: Path) -> None:
    fill(tmp_path, "cat.png/1.png", "dog.png/2.png")
    assert read_labeled(str(tmp_path)).classes == ["cat.png", "dog.png"]
    assert walk(tmp_path).images == ["cat.png/1.png", "dog.png/2.png"]


def test_an_empty_folder_names_what_was_left_out(tmp_path: Path) -> None:
    fill(tmp_path, ".thumbnails/1.png", "doc.pdf")
    with pytest.raises(DataError, match=r"no images.*\.thumbnails.*doc\.pdf"):
        read_labeled(str(tmp_path))


def test_text_without_an_image_is_counted(tmp_path: Path) -> None:
    fill(tmp_path, "1.png", "1.txt", "2.txt", "deep/er/3.png", "deep/er/3.txt")
    pairs = read_pairs(str(tmp_path))
    assert [image.name for image in pairs.images] == ["1.png", "3.png"]
    assert named(pairs.findings, "left_out").examples == ("2.txt",)


def test_patterns_and_folders_of_tables_have_no_hidden_files(tmp_path: Path) -> None:
    fill(tmp_path, "1.png", "._p.parquet", ".q.parquet", "near/._a.jsonl")
    for number in (1, 2):
        table = pa.table({"image": ["1.png"], "caption": [f"caption {number}"]})
        parquet.write_table(table, tmp_path / f"{number}.parquet")
    assert list(read_pairs(f"{tmp_path}/*.parquet").captions) == ["caption 1", "caption 2"]
    row = '{"image": "../1.png", "caption": "a", "negative_caption": "b"}\n'
    (tmp_path / "near/a.jsonl").write_text(row)
    assert read_near_misses(str(tmp_path / "near")).categories == ["a"]
