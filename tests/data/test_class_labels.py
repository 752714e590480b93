"""Labels: missing ones are no class, classes come from the names that the data records, and codes are no names."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from clipkit.data import read_classes, read_labeled, read_pairs
from clipkit.data.prompts import code_findings, paired_names, positions_of_numbers
from clipkit.errors import DataError
from tests.conftest import draw, write_csv
from tests.data.test_folders import fill, named

NAMES = ["zebra", "ape", "bee", "cow"]


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    return [str(fill(tmp_path, "0.png", "1.png", "2.png", "3.png") / f"{number}.png") for number in range(4)]


def _saved(folder: Path, paths: list[str], labels: list[Any]) -> str:
    from datasets import ClassLabel, Dataset, Features, Image

    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    images = [{"bytes": Path(path).read_bytes(), "path": "0.png"} for path in paths]
    Dataset.from_dict({"image": images, "label": labels}, features=features).save_to_disk(folder / "saved")
    return str(folder / "saved")


def _parquet_of_bytes(folder: Path, paths: list[str], labels: list[Any]) -> str:
    from datasets import load_from_disk

    load_from_disk(_saved(folder, paths, labels)).to_parquet(folder / "bytes.parquet")
    return str(folder / "bytes.parquet")


def _parquet_of_paths(folder: Path, paths: list[str], labels: list[Any]) -> str:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"image": Value("string"), "label": ClassLabel(names=NAMES)})
    Dataset.from_dict({"image": paths, "label": labels}, features=features).to_parquet(folder / "paths.parquet")
    return str(folder / "paths.parquet")


def _hub(folder: Path, paths: list[str], labels: list[Any]) -> str:
    (folder / "hub/data").mkdir(parents=True)
    Path(_parquet_of_bytes(folder, paths, labels)).rename(folder / "hub/data/test-00000-of-00001.parquet")
    return f"hf:{folder / 'hub'}:test"


Form = Callable[[Path, list[str], list[Any]], str]


@pytest.mark.parametrize("form", [_saved, _parquet_of_bytes, _parquet_of_paths, _hub], ids=lambda f: f.__name__)
def test_recorded_names_are_the_classes_and_missing_labels_are_none(
    form: Form, paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    labels = [1, -1, None, 0] if form is not _hub else [1, -1, -1, 0]
    source = form(tmp_path, paths, labels)
    labeled = read_labeled(source)
    assert labeled.classes == NAMES  # also those without images, in the order of the data
    assert (labeled.labels.tolist(), len(labeled.images)) == ([1, 0], 2)
    assert "2 of 4 rows" in named(labeled.findings, "unlabeled_images").message
    assert "2 of its 4 classes" in named(labeled.findings, "classes_without_images").message
    pairs = read_pairs(source)  # the captions are the class names
    assert list(pairs.captions) == ["ape", "zebra"]
    assert named(pairs.findings, "unlabeled_images").count == 2
    assert "'label'" in named(pairs.findings, "captions_from_labels").message


def test_a_split_without_labels_is_an_error(paths: list[str], tmp_path: Path) -> None:
    source = _saved(tmp_path, paths, [-1] * 4)
    for read in (read_labeled, read_pairs):
        with pytest.raises(DataError, match="none of its 4 rows has a label") as caught:
            read(source)
        assert "\n" not in str(caught.value)


def test_a_class_number_without_a_name_is_an_error(paths: list[str], tmp_path: Path) -> None:
    table = pa.table({"image": paths, "label": [0, 1, 2, 9]})
    features = {"image": {"dtype": "string", "_type": "Value"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "p.parquet")
    with pytest.raises(DataError, match="class number 9, but only 4"):
        read_labeled(str(tmp_path / "p.parquet"))


def test_lists_of_classes_are_named(paths: list[str], tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    features = Features({"image": Value("string"), "label": Sequence(ClassLabel(names=NAMES))})
    data = Dataset.from_dict({"image": paths, "label": [[0, 1], [], [2], [1, -1]]}, features=features)
    data.to_parquet(tmp_path / "p.parquet")
    labeled = read_labeled(str(tmp_path / "p.parquet"))
    assert (labeled.several, labeled.classes) == (True, NAMES)
    assert [row.nonzero()[0].tolist() for row in labeled.labels] == [[0, 1], [], [2], [1]]


@pytest.mark.parametrize(
    "labels",
    [pa.array([3, -1, 7, None]), pa.array([3.0, -1.0, 7.0, float("nan")]),
     pa.array(["a", None, "b", None]), pa.array([b"", None, b"", None])],
    ids=["numbers", "floats", "strings", "bytes"],
)  # fmt: skip
def test_null_labels_of_columns_without_names(labels: pa.Array, paths: list[str], tmp_path: Path) -> None:
    parquet.write_table(pa.table({"image": paths, "label": labels}), tmp_path / "p.parquet")
    source = str(tmp_path / "p.parquet")
    if pa.types.is_binary(labels.type):
        with pytest.raises(DataError, match="but must contain texts or lists"):
            read_labeled(source)
        return
    labeled = read_labeled(source)
    assert len(labeled.images) == len(labeled.classes) == 2
    assert named(labeled.findings, "unlabeled_images").count == 2


def test_a_column_of_nulls_is_an_error(paths: list[str], tmp_path: Path) -> None:
    parquet.write_table(pa.table({"image": paths, "label": pa.nulls(4)}), tmp_path / "p.parquet")
    with pytest.raises(DataError, match="none of its 4 rows has a label"):
        read_labeled(str(tmp_path / "p.parquet"))


def test_null_in_json_and_minus_one_in_csv_mean_no_label(paths: list[str], tmp_path: Path) -> None:
    rows = [{"image": path, "label": label} for path, label in zip(paths, ["a", None, "b", "a"], strict=True)]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_labeled(str(tmp_path / "l.jsonl")).labels.tolist() == [0, 1, 0]
    numbers = write_csv(
        tmp_path / "l.csv", ["image", "label"], [[path, "-1" if path == paths[0] else "7"] for path in paths]
    )
    labeled = read_labeled(str(numbers))
    assert (labeled.classes, len(labeled.images)) == (["7"], 3)
    words = write_csv(tmp_path / "m.csv", ["image", "label"], [[paths[0], "-1"], [paths[1], "x"]])
    assert read_labeled(str(words)).classes == ["-1", "x"]  # a name like any other


def test_tables_and_tars_without_captions_give_class_names(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    table = write_csv(tmp_path / "l.csv", ["image", "category"], [[path, f"kind {path[-5]}"] for path in paths])
    with tarfile.open(tmp_path / "l.tar", "w") as tar:
        for number, path in enumerate(paths):
            for ending, content in (("png", Path(path).read_bytes()), ("cls", f"kind {number}".encode())):
                member = tarfile.TarInfo(f"{number}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (tmp_path / "l.jsonl").write_text("\n".join(json.dumps({"image": p, "label": f"kind {p[-5]}"}) for p in paths))
    (tmp_path / "prompts.txt").write_text("a sketch of {c}\n")
    for source in (table, tmp_path / "l.tar", tmp_path / "l.jsonl"):
        pairs = read_pairs(str(source))
        assert list(pairs.captions) == ["kind 0", "kind 1", "kind 2", "kind 3"]
        assert read_pairs(f"{source}?templates={tmp_path / 'prompts.txt'}").captions[0] == "a sketch of kind 0"
    assert "'category'" in named(read_pairs(str(table)).findings, "captions_from_labels").message
    with pytest.raises(DataError, match=r"no caption column .*, title"):  # neither captions nor labels
        read_pairs(str(write_csv(tmp_path / "n.csv", ["image", "words"], [[paths[0], "x"]])))


def test_options_without_effect_are_errors(paths: list[str], tmp_path: Path) -> None:
    table = write_csv(tmp_path / "c.csv", ["image", "caption"], [[paths[0], "x"]])
    for option in ("templates=imagenet", "classes=imagenet"):
        with pytest.raises(DataError, match=f"the option {option.partition('=')[0]} has no effect"):
            read_pairs(f"{table}?{option}")
    for source in (table, _saved(tmp_path, paths, [0, 1, 2, 3])):
        with pytest.raises(DataError, match="has no splits, so the option split has no effect"):
            read_labeled(f"{source}?split=test")


def test_an_image_with_two_labels_is_reported(paths: list[str], tmp_path: Path) -> None:
    rows = [[paths[0], "a"], [paths[1], "b"], [paths[0], "b"], [paths[2], "a"]]
    labeled = read_labeled(str(write_csv(tmp_path / "l.csv", ["image", "label"], rows)))
    finding = named(labeled.findings, "several_labels")
    assert (labeled.several, finding.severity, finding.count) == (True, "warning", 1)
    assert finding.examples == (f"{paths[0]}: a, b",)


def test_equal_images_of_a_table_with_two_labels_stay_two_images(paths: list[str], tmp_path: Path) -> None:
    labeled = read_labeled(_saved(tmp_path, [paths[0], paths[1], paths[0], paths[1]], [0, 1, 2, 1]))
    assert (labeled.several, labeled.labels.tolist()) == (False, [0, 1, 2, 1])
    finding = named(labeled.findings, "same_image_labels")
    assert (finding.count, finding.severity) == (1, "warning")
    assert "zebra" in finding.examples[0]


@pytest.mark.parametrize(
    ("labels", "count", "positions"),
    [
        (["0", "1", "10", "2"], 11, [0, 1, 10, 2]),
        (["1", "10", "2"], 10, [0, 9, 1]),
        (["003", "01", "2"], 3, [2, 0, 1]),
        (["10", "30", "20"], 3, [0, 2, 1]),  # by order
        (["3", "7"], 10, None),  # from 0 or from 1?
        (["0", "10"], 10, None),
        (["1", "01"], 2, None),
        (["1", "x"], 2, None),
        ([], 2, None),
    ],
)
def test_positions_of_numbers(labels: list[str], count: int, positions: list[int] | None) -> None:
    found = positions_of_numbers(labels, count)
    assert (None if found is None else [found[label] for label in labels]) == positions


@pytest.mark.parametrize(
    ("folders", "names", "paired"),
    [
        (["0", "1", "10", "2"], [f"name {n}" for n in range(11)], {"10": "name 10", "2": "name 2", "3": "name 3"}),
        (["1", "10", "2"], [f"name {n}" for n in range(1, 11)], {"1": "name 1", "10": "name 10", "3": "name 3"}),
        (["ape", "zebra"], ["zebra", "ape"], {"ape": "ape", "zebra": "zebra"}),
        (["Great_Dane", "pug"], ["pug", "great dane"], {"Great_Dane": "great dane", "pug": "pug"}),
        (["a", "b"], ["first", "second"], {"a": "first", "b": "second"}),
    ],
)
def test_classnames_are_paired_with_folders(
    folders: list[str], names: list[str], paired: dict[str, str], tmp_path: Path
) -> None:
    fill(tmp_path, *(f"{folder}/1.png" for folder in folders))
    (tmp_path / "classnames.txt").write_text("\n".join(names))
    labeled = read_labeled(str(tmp_path))
    assert labeled.class_names is not None
    found = dict(zip(labeled.classes, labeled.class_names, strict=True))
    assert {label: found[label] for label in paired} == paired
    assert len(found) == len(names)
    captions = {Path(str(image)).parent.name: text for image, text in zip(*_pairs(tmp_path), strict=True)}
    assert all(captions[folder] == found[folder] for folder in folders)


def _pairs(folder: Path) -> tuple[Any, Any]:
    pairs = read_pairs(str(folder))
    return pairs.images, pairs.captions


def test_names_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    fill(tmp_path, "3/1.png", "7/1.png")
    (tmp_path / "classnames.txt").write_text("\n".join(map(str, range(100, 110))))
    with pytest.raises(DataError, match=r"classnames\.txt: has 10 names for 2 classes"):
        read_labeled(str(tmp_path))
    with pytest.raises(DataError, match="no name for the class 'b'"):
        paired_names("n.json", ["a", "b"], {"a": "an a"})


def test_codes_are_no_class_names(tmp_path: Path) -> None:
    fill(tmp_path / "wordnet", "n01440764/1.png", "n02979186/1.png")
    pairs = read_pairs(str(tmp_path / "wordnet"))
    finding = named(pairs.findings, "coded_class_names")
    assert "n01440764" in finding.message
    assert "classes=imagenet" in finding.advice
    fixed = read_pairs(f"{tmp_path / 'wordnet'}?classes=imagenet")
    assert (list(fixed.captions), list(fixed.findings)) == (["tench", "cassette player"], [])
    assert read_labeled(f"{tmp_path / 'wordnet'}?classes=imagenet").class_names == ["tench", "cassette player"]
    fill(tmp_path / "numbers", "10/1.png", "9/1.png")
    assert "a 10." in named(read_pairs(str(tmp_path / "numbers")).findings, "coded_class_names").message
    assert code_findings("x", ["7up", "cola"]) == [] == code_findings("x", ["7", "cola"])
    assert code_findings("x", ["1.0", "2.0"])  # pandas' numbers with gaps


def test_numbers_are_positions_in_the_table_of_imagenet() -> None:
    table = read_classes("imagenet")
    named = paired_names("x", ["0", "217", "999"], table)
    assert len(named) == 1000
    assert (named["0"], named["217"], named["999"]) == ("tench", "English Springer Spaniel", "toilet paper")


def test_images_of_one_name_in_a_saved_dataset(tmp_path: Path) -> None:
    """Three folders with images of the same names and sizes, as `datasets` saves them."""
    from datasets import ClassLabel, Dataset, Features, Image

    images, labels = [], []
    for label, color in enumerate(("red", "green", "blue")):
        for number in range(30):
            image = draw(color, "circle", size=16)
            image.putpixel((number % 16, number // 16), (label, number, 7))
            encoded = io.BytesIO()
            image.save(encoded, "BMP")  # all files have the same size
            images.append({"bytes": encoded.getvalue(), "path": f"{number}.png"})
            labels.append(label)
    features = Features({"image": Image(), "label": ClassLabel(names=["red", "green", "blue"])})
    Dataset.from_dict({"image": images, "label": labels}, features=features).save_to_disk(tmp_path / "saved")
    labeled = read_labeled(str(tmp_path / "saved"))
    assert (len(labeled.images), labeled.several, labeled.labels.tolist()) == (90, False, labels)
    assert labeled.findings == []
    assert len(read_pairs(str(tmp_path / "saved")).images) == 90


def test_rows_are_one_image_if_bytes_and_names_are_equal(paths: list[str], tmp_path: Path) -> None:
    content = [Path(path).read_bytes() for path in paths]
    rows = [(0, "a.png"), (1, "a.png"), (0, "b.png"), (0, None), (1, None), (0, None), (0, "a.png")]
    table = {
        "image": [{"bytes": content[number], "path": name} for number, name in rows],
        "caption": [f"row {row}" for row in range(len(rows))],
    }
    parquet.write_table(pa.table(table), tmp_path / "p.parquet")
    pairs = read_pairs(str(tmp_path / "p.parquet"))
    assert pairs.image_of_caption.tolist() == [0, 1, 2, 3, 4, 3, 0]
    unnamed = pa.table({"image": pa.array([content[n] for n in (0, 1, 0)], pa.binary()), "caption": ["a", "b", "c"]})
    parquet.write_table(unnamed, tmp_path / "u.parquet")
    assert read_pairs(str(tmp_path / "u.parquet")).image_of_caption.tolist() == [0, 1, 0]


def test_rows_of_other_splits_and_columns_are_other_images(paths: list[str], tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict, Features, Image, Value

    from clipkit.data import join

    features = Features({"left": Image(), "right": Image(), "caption": Value("string")})
    images = [{"bytes": Path(path).read_bytes(), "path": "0.png"} for path in paths]
    split = {
        name: Dataset.from_dict({"left": [one], "right": [other], "caption": [f"{name} caption"]}, features=features)
        for name, one, other in (("train", *images[:2]), ("test", *images[2:]))
    }
    DatasetDict(split).save_to_disk(tmp_path / "saved")
    sources = [f"{tmp_path}/saved?split={name}&image={side}" for name in split for side in ("left", "right")]
    assert len(join([read_pairs(source) for source in sources], [1] * 4).images) == 4
    again = join([read_pairs(sources[0]), read_pairs(sources[0])], [1, 2])
    assert len(again.images) == 1


def test_the_share_for_validation_does_not_depend_on_repeated_names(paths: list[str], tmp_path: Path) -> None:
    from clipkit.data import split

    content = [Path(path).read_bytes() for path in paths]
    for number, order in enumerate(([0, 1, 2, 3], [3, 1, 0, 2])):
        table = {
            "image": [{"bytes": content[row], "path": "0.png"} for row in order],
            "caption": [f"image {row}" for row in order],
        }
        parquet.write_table(pa.table(table), tmp_path / f"{number}.parquet")
    kept = [sorted(split(read_pairs(str(tmp_path / f"{number}.parquet")), 0.5)[1].captions) for number in (0, 1)]
    assert kept[0] == kept[1]
