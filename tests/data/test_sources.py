"""Every kind of source gives the same pairs and the same batches."""

import io
import itertools
import json
import tarfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torchvision.transforms.v2 import functional as F

from clipkit.data import EpochSampler, InputMaker, Pairs, Policy, TextView, pair_loader, read_labeled, read_pairs
from clipkit.errors import DataError
from clipkit.recipe import steps_of
from tests.conftest import write_csv

_COUNT = 200


class Made:
    """200 images, each with one to three captions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        generator = np.random.default_rng(0)
        self.names = [f"{place:03d}.png" for place in range(_COUNT)]
        self.captions = [[f"image {place}, wording {row}" for row in range(1 + place % 3)] for place in range(_COUNT)]
        (folder / "photos").mkdir()
        for name in self.names:
            pixels = generator.integers(0, 256, (9 + len(name), 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name)

    def bytes_of(self, name: str) -> bytes:
        return (self.folder / "photos" / name).read_bytes()

    def rows(self, prefix: str = "photos/") -> list[list[str]]:
        return [
            [prefix + name, caption] for name, own in zip(self.names, self.captions, strict=True) for caption in own
        ]

    def embedded(self) -> list[dict[str, Any]]:
        return [{"bytes": self.bytes_of(name), "path": name} for name in self.names]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


def _csv(made: Made, out: Path) -> str:
    return str(write_csv(made.folder / "p.csv", ["image", "caption"], made.rows()))


def _tsv(made: Made, out: Path) -> str:
    lines = ["title\turl", *(f"{caption}\t{name}" for name, caption in made.rows())]
    (made.folder / "p.tsv").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    return str(made.folder / "p.tsv")


def _jsonl(made: Made, out: Path) -> str:
    rows = zip(made.names, made.captions, strict=True)
    lines = [json.dumps({"file_name": f"photos/{name}", "text": own}) for name, own in rows]
    (made.folder / "p.jsonl").write_text("\n".join(lines))
    return str(made.folder / "p.jsonl")


def _parquet_of_paths(made: Made, out: Path) -> str:
    table = {"path": [f"photos/{name}" for name in made.names], "captions": made.captions}
    parquet.write_table(pa.table(table), made.folder / "p.parquet")
    return str(made.folder / "p.parquet")


def _parquet_of_bytes(made: Made, out: Path) -> str:
    table = pa.table({"image": made.embedded(), "caption": made.captions})
    parquet.write_table(table.slice(0, 90), out / "part-0.parquet")
    parquet.write_table(table.slice(90), out / "part-1.parquet")
    return str(out / "part-*.parquet")


def _parquet_a_row_a_caption(made: Made, out: Path) -> str:
    rows = made.rows("")
    images = [{"bytes": made.bytes_of(name), "path": name} for name, _ in rows]
    parquet.write_table(pa.table({"img": images, "sentence": [text for _, text in rows]}), out / "rows.parquet")
    return str(out / "rows.parquet")


def _metadata(made: Made, out: Path) -> str:
    for name in made.names:
        (out / name).write_bytes(made.bytes_of(name))
    write_csv(out / "metadata.csv", ["file_name", "text"], made.rows(""))
    return str(out)


def _texts(made: Made, out: Path) -> str:
    for name, own in zip(made.names, made.captions, strict=True):
        (out / name).write_bytes(made.bytes_of(name))
        (out / name).with_suffix(".txt").write_text("\n".join(own) + "\n")
    return str(out)


def _saved(made: Made, out: Path) -> str:
    from datasets import Dataset, Image, Value
    from datasets.features import Features

    features = Features({"image": Image(), "caption": [Value("string")]})
    data = Dataset.from_dict({"image": made.embedded(), "caption": made.captions}, features=features)
    # Shuffled and put back: an indices mapping on top of the rows.
    order = np.random.default_rng(1).permutation(_COUNT)
    data.select(order).select(np.argsort(order)).save_to_disk(out / "saved")
    return str(out / "saved")


def _hub(made: Made, out: Path) -> str:
    for split in ("train", "test"):
        table = pa.table({"image": made.embedded(), "caption": made.captions})
        (out / "data").mkdir(exist_ok=True)
        parquet.write_table(table, out / "data" / f"{split}-00000-of-00001.parquet")
    return f"hf:{out}:train"


def _tars(made: Made, out: Path) -> str:
    write_shards(made, out, (70,))
    return str(out / "shards-{000..001}.tar")


def write_shards(made: Made, out: Path, cuts: tuple[int, ...], broken: Collection[str] = ()) -> None:
    """Write tars of consecutive samples, split at these positions, with some broken images."""
    for shard, (start, end) in enumerate(itertools.pairwise((0, *cuts, _COUNT))):
        with tarfile.open(out / f"shards-{shard:03d}.tar", "w") as tar:
            for place in range(start, end):
                name = made.names[place]
                _add(tar, f"./{name}", b"<html>" if name in broken else made.bytes_of(name))
                _add(tar, f"./{place:03d}.json", json.dumps({"caption": made.captions[place]}).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


FORMS = [
    _csv, _tsv, _jsonl, _parquet_of_paths, _parquet_of_bytes, _parquet_a_row_a_caption, _metadata, _texts, _saved,
    _hub, _tars,
]  # fmt: skip


def _batches(pairs: Pairs, workers: int = 0) -> list[dict[str, torch.Tensor]]:
    def pixels(image: Image.Image) -> dict[str, torch.Tensor]:
        return {"pixel_values": F.pil_to_tensor(image)}

    def tokenize(texts: list[str]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([list(text.encode().ljust(40)[:40]) for text in texts])}

    sampler = EpochSampler(pairs, "one", 40, seed=3)
    policy = Policy(steps_of("moco"), 8, pixels, pixels, seed=3)
    slices = sampler.slices(2, 2 + sampler.steps_per_epoch, slice(0, 40))
    maker = InputMaker({"image_features": policy}, {"text_features": TextView("same", pairs)}, tokenize)
    return [
        {
            "pixels": batch.inputs["image_features"]["pixel_values"],
            "tokens": batch.inputs["text_features"]["input_ids"],
            "image_ids": batch.image_ids,
            "caption_ids": batch.caption_ids,
        }
        for batch in pair_loader(pairs, slices, maker, workers, sampler.replacement)
    ]


@pytest.fixture(scope="module")
def expected(made: Made) -> list[dict[str, torch.Tensor]]:
    """Batches made directly from the images and captions."""
    counts = [len(own) for own in made.captions]
    pairs = Pairs(
        "made",
        [made.folder / "photos" / name for name in made.names],
        [caption for own in made.captions for caption in own],
        np.repeat(np.arange(_COUNT), counts),
    )
    return _batches(pairs)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__.strip("_"))
def test_every_source_gives_the_same_batches(
    form: Callable[[Made, Path], str],
    made: Made,
    expected: list[dict[str, torch.Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    out = tmp_path / "out"
    out.mkdir()
    source = form(made, out)
    for workers in (0, 2) if form is _tars else (0,):  # the second time from the kept index
        found = _batches(read_pairs(source), workers)
        assert len(found) == len(expected) == 5
        for own, other in zip(found, expected, strict=True):
            for name, values in own.items():
                assert torch.equal(values, other[name]), name


def test_columns_are_found_by_name(made: Made, tmp_path: Path) -> None:
    assert read_pairs(_tsv(made, tmp_path)).found == {"image": "url", "caption": "title"}
    assert read_pairs(_jsonl(made, tmp_path)).found == {"image": "file_name", "caption": "text"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", b"image,caption\na.png,x, y\n", "line 2 has 3 fields, but the header has 2; .* quotation marks"),
        ("p.csv", b'image,caption\na.png,x\na.png,"open\na.png,y\n', "line 3 has an opening quotation mark"),
        ("p.csv", b"image,caption\na.png,x\na.png,caf\xe9\n", "line 3 is not UTF-8 .byte 0xe9 at position 10"),
        ("p.csv", b"image,caption,caption\na.png,x,y\n", "has 2 columns named caption"),
        ("p.csv", b'"image\n', "no caption column"),
        ("p.jsonl", b'{"image": "a.png", "caption": "x"}\n{"image": 3, "caption": "x"}\n', "line 2: image is 3"),
        ("p.jsonl", b'{"image": "a.png", "caption": "x"}\n{"image": \n', "line 2 is not JSON"),
        ("p.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("p.jsonl", b'{"image": "a.png", "caption": "\\ud800"}\n', "line 1: caption contains half of a surrogate pair"),
        ("p.jsonl", b'{"image": "a.png", "caption": "caf\xe9"}\n', "line 1 is not UTF-8"),
        ("p.jsonl", b"\n", "is empty"),
        ("p.jsonl", b'{"image": "a.png", "caption": []}\n', "row 1 has no caption"),
        ("p.jsonl", b'{"image": ["a.png"], "caption": "x"}\n', "the column image contains lists"),
        (
            "p.jsonl",
            b'{"image": "a.png", "caption": ["x", "y"], "paraphrase": ["z"]}\n',
            "row 1 has different numbers of paraphrases and captions",
        ),
        ("p.json", b'{"0": {"image": "a.png"}}', "no caption column"),
        ("p.json", b'["a.png"]', "row 1 is not a JSON object"),
        ("p.json", b"3", "must be a list of rows, or an object"),
        ("p.json", b"[]", "is empty"),
        ("p.json", b"{", "is not JSON"),
        ("p.parquet", b"PAR1 no", "cannot be read as Parquet"),
        ("p.tar", b"\x07" * 2000, "is not a tar file, or is truncated"),
        ("p.tar", b"\0" * 10240, "contains no samples"),
        ("p-{0..1}.tar", b"", "2 of its 2 shards are missing"),
        ("p.doc", b"", r"p\.doc: .*supported sources: hf:NAME"),
    ],
)
def test_errors_name_the_problem_in_one_line(
    name: str, content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    if "{" not in name:  # a name that exists is that file, and not a pattern
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_pairs(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_truncated_tar_is_refused(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    source = Path(_tars(made, tmp_path).replace("{000..001}", "000"))
    read_pairs(str(source))  # also caches its index
    whole = source.read_bytes()
    for end in (len(whole) // 2, len(whole) // 2 + 700, 10241):
        source.write_bytes(whole[:end])
        with pytest.raises(DataError, match="is truncated"):
            read_pairs(str(source))


def test_labels_are_read_from_saved_datasets_and_tars(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import ClassLabel, Dataset, Image
    from datasets.features import Features

    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    features = Features({"image": Image(), "label": ClassLabel(names=["zebra", "ape"])})
    data = Dataset.from_dict({"image": made.embedded()[:3], "label": [1, 0, 1]}, features=features)
    data.save_to_disk(tmp_path / "saved")
    with tarfile.open(tmp_path / "l.tar", "w") as tar:
        for place, label in enumerate(("ape", "zebra", "ape")):
            _add(tar, f"{place}.png", made.bytes_of(made.names[place]))
            _add(tar, f"{place}.cls", label.encode())
    saved = read_labeled(str(tmp_path / "saved"))  # in the order of the feature's names
    assert (saved.classes, saved.labels.tolist()) == (["zebra", "ape"], [1, 0, 1])
    tar = read_labeled(str(tmp_path / "l.tar"))
    assert (tar.classes, tar.labels.tolist()) == (["ape", "zebra"], [0, 1, 0])


def test_class_folders_with_templates(shapes: Path, tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/1.png", "cat/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((shapes / "images/00.png").read_bytes())
    (tmp_path / "templates.txt").write_text("a photo of a {c}\na sketch of a {c}\n")
    pairs = read_pairs(f"{tmp_path}?templates={tmp_path / 'templates.txt'}")
    assert list(pairs.captions) == ["a photo of a cat", "a sketch of a cat"] * 2 + [
        "a photo of a dog",
        "a sketch of a dog",
    ]
    assert pairs.image_of_caption.tolist() == [0, 0, 1, 1, 2, 2]
    assert pairs.caption_ids.tolist() == [0, 1, 0, 1, 4, 5]


def test_take_keeps_all_captions_of_the_images(made: Made, tmp_path: Path) -> None:
    pairs = read_pairs(_jsonl(made, tmp_path))
    part = pairs.take(np.array([5, 1]))
    assert [image.name for image in part.images] == ["005.png", "001.png"]
    assert list(part.captions) == [*made.captions[5], *made.captions[1]]
    assert part.image_of_caption.tolist() == [0, 0, 0, 1, 1]
