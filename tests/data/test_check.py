"""The check of data: every planted fault is found and named, and clean data has none."""

import io
import itertools
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from clipkit.data import Pairs, Report, check, fix, quick_findings, read_pairs
from clipkit.data.checks.batch import expected_false_negatives
from clipkit.data.checks.captions import normalized
from clipkit.data.checks.duplicates import Duplicates, find_duplicates
from clipkit.data.checks.scan import ImageScan, scan_images
from clipkit.data.sequences import Files, Strings
from clipkit.errors import DataError, OutputError
from clipkit.images import Stored
from tests.conftest import write_csv

BROKEN = ("images", "captions")
CLEAN = 24


def scene(seed: int, width: int = 96, height: int = 72) -> Image.Image:
    """Something with the soft large forms of a photo, another one for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


class InMemory(Stored):
    def __init__(self, content: bytes) -> None:
        self.content = content

    @property
    def name(self) -> str:
        return "image.jpg"

    @property
    def size(self) -> int:
        return len(self.content)

    def read_bytes(self) -> bytes:
        return self.content


def looked_at(images: list[Image.Image]) -> ImageScan:
    return scan_images([_in_memory(image) for image in images], workers=2)


def _in_memory(image: Image.Image) -> InMemory:
    written = io.BytesIO()
    image.save(written, format="JPEG", quality=90)
    return InMemory(written.getvalue())


def count_words(texts: list[str]) -> list[int]:
    """A tokenizer of words, with a token at the start and the end."""
    return [len(text.split()) + 2 for text in texts]


def clean_rows(folder: Path, seeds: range) -> list[list[str]]:
    folder.mkdir(exist_ok=True)
    rows = []
    for seed in seeds:
        scene(seed).save(folder / f"{seed:03d}.jpg", quality=92)
        rows += [[f"{seed:03d}.jpg", f"scene {seed} in {words}"] for words in ("many colors", "soft light")]
    return rows


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    return write_csv(folder / "d.csv", ["image", "caption"], clean_rows(folder, range(CLEAN)))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What it is checked against: scenes 500 to 507."""
    folder = tmp_path_factory.mktemp("other")
    return write_csv(folder / "e.csv", ["image", "caption"], clean_rows(folder, range(500, 508)))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clean set with one or more of each fault."""
    folder = tmp_path_factory.mktemp("faulty")
    rows = clean_rows(folder, range(CLEAN))
    own = Image.open(folder / "003.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "001.jpg").read_bytes()[:900])
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "page.jpg").write_text("<!DOCTYPE html><html><body>404</body></html>")
    (folder / "noise.png").write_bytes(bytes(range(256)))
    (folder / "copy.jpg").write_bytes((folder / "002.jpg").read_bytes())
    own.save(folder / "again.jpg", quality=40)
    Image.open(folder / "004.jpg").resize((200, 150)).save(folder / "resized.png")
    scene(100, 20, 20).save(folder / "tiny.png")
    scene(101, 400, 40).save(folder / "wide.jpg")
    scene(500).save(folder / "leaked.jpg", quality=92)
    scene(501).save(folder / "leaked_again.jpg", quality=50)
    names = ["truncated.jpg", "zero.jpg", "page.jpg", "noise.png", "missing.jpg", "copy.jpg", "again.jpg"]
    names += ["resized.png", "tiny.png", "wide.jpg", "leaked.jpg", "leaked_again.jpg"]
    rows += [[name, f"what is in {name} is told"] for name in names]
    rows += [
        ["005.jpg", "Scene 5, in soft light."],
        ["006.jpg", ""],
        ["007.jpg", "sunset"],
        ["008.jpg", "IMG_2041.JPG"],
        ["009.jpg", "https://example.org/p/9"],
        ["010.jpg", "Untitled"],
        ["010.jpg", "a photo of"],
        ["011.jpg", "word " * 40],
        ["012.jpg", "scene 503 in soft light"],
        *([f"{seed:03d}.jpg", "buy this print in our shop"] for seed in range(13, 19)),
        ["019.jpg", "a rare thing to say"],
        ["020.jpg", "a rare thing to say"],
    ]
    return write_csv(folder / "d.csv", ["image", "caption"], rows)


def checked(data: Path, other: Path | None = None, batch_size: int = 4) -> tuple[Pairs, Report]:
    pairs = read_pairs(str(data), broken=BROKEN)
    against = None if other is None else read_pairs(str(other), broken=BROKEN)
    report = check(
        pairs, against, token_counts=count_words, context_length=32, image_size=64, batch_size=batch_size, workers=2
    )
    return pairs, report


PLANTED = {
    "missing_images": ("error", ["missing.jpg"]),
    "broken_images": ("error", ["truncated.jpg", "zero.jpg", "page.jpg (is a web page", "noise.png"]),
    "duplicate_images": ("warning", ["copy.jpg = 002.jpg"]),
    "near_duplicate_images": ("warning", ["again.jpg ~ 003.jpg", "resized.png ~ 004.jpg"]),
    "tiny_images": ("warning", ["tiny.png (20 × 20)"]),
    "extreme_shapes": ("warning", ["wide.jpg (400 × 40)"]),
    "small_images": ("note", ["tiny.png", "wide.jpg"]),
    "leaked_images": ("error", ["leaked.jpg = 500.jpg"]),
    "leaked_near_images": ("error", ["leaked_again.jpg ~ 501.jpg"]),
    "leaked_captions": ("warning", ["'scene 503 in soft light' (012.jpg)"]),
    "empty_captions": ("error", ["006.jpg"]),
    "one_word_captions": ("warning", ["'sunset' (007.jpg)"]),
    "file_name_captions": ("warning", ["'IMG_2041.JPG' (008.jpg)"]),
    "url_captions": ("warning", ["(009.jpg)"]),
    "stock_captions": ("warning", ["'Untitled' (010.jpg)", "'a photo of' (010.jpg)"]),
    "cut_captions": ("warning", ["42 tokens: 'word word"]),
    "boilerplate_captions": ("warning", ["'buy this print in our shop' (on 6 images)"]),
    "shared_captions": ("note", ["(019.jpg)", "(020.jpg)"]),
    "repeated_captions": ("warning", ["'Scene 5, in soft light.' (005.jpg)"]),
    "false_negatives": ("warning", []),
}


def test_every_planted_fault_is_found_and_named_and_nothing_else(faulty: Path, other: Path) -> None:
    _, report = checked(faulty, other)
    found = {finding.name: finding for finding in report.findings}
    assert set(found) == set(PLANTED)
    for name, (severity, examples) in PLANTED.items():
        assert found[name].severity == severity, name
        assert found[name].advice, name
        for example in examples:
            assert any(example in own for own in found[name].examples), (name, found[name].examples)
        if examples and name != "boilerplate_captions":
            assert found[name].count == len(examples), name
    assert [finding.severity for finding in report.findings] == sorted(
        (finding.severity for finding in report.findings), key=["error", "warning", "note"].index
    )


def test_a_clean_set_has_none(clean: Path, other: Path, shapes: Path) -> None:
    _, report = checked(clean, other)
    assert report.findings == []
    assert report.facts["images"] == CLEAN
    assert report.facts["captions"] == 2 * CLEAN
    assert report.facts["width"]["max"] == 96
    assert report.facts["batch"] == {"size": 4, "same_caption": 0.0, "same_image": 0.0}
    assert check(read_pairs(str(shapes / "captions.csv")), batch_size=4).findings == []


def test_the_fix_leaves_nothing_of_it(faulty: Path, other: Path, tmp_path: Path) -> None:
    pairs, report = checked(faulty, other)
    kept = fix(pairs, report, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["captions.csv", "dropped.jsonl"]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    cleaned, again = checked(tmp_path / "out" / "captions.csv", other)
    names = {finding.name for finding in again.findings}
    assert not [finding for finding in again.findings if finding.severity == "error"]
    assert not names & {"duplicate_images", "near_duplicate_images", "repeated_captions"}
    assert (len(cleaned.images), len(cleaned.captions)) == (kept["images"], kept["captions"])
    # 24 clean ones, the tiny and the wide one; the larger copy of 004.jpg in its place.
    assert {Path(image).name for image in cleaned.images} == (
        {f"{seed:03d}.jpg" for seed in range(CLEAN)} - {"004.jpg"} | {"tiny.png", "wide.jpg", "resized.png"}
    )
    images = cleaned.image_of_caption.tolist()
    of: dict[str, set[str]] = {}
    for image, text in zip(images, cleaned.captions, strict=True):
        of.setdefault(cleaned.images[image].name, set()).add(text)
    assert "what is in copy.jpg is told" in of["002.jpg"]
    assert of["resized.png"] == {
        "scene 4 in many colors", "scene 4 in soft light", "what is in resized.png is told"
    }  # fmt: skip
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    reasons = {one["image"]: one["reason"] for one in dropped if "caption" not in one}
    assert reasons["leaked.jpg"].endswith("= 500.jpg")
    assert reasons["copy.jpg"] == "is the same image as 002.jpg"
    assert reasons["004.jpg"] == "is the same image as resized.png"
    assert "there is no such file" in reasons["missing.jpg"]
    lost = {(one["image"], one["reason"]) for one in dropped if "caption" in one}
    assert ("006.jpg", "empty caption") in lost
    assert ("005.jpg", "its image has this caption already") in lost
    # Nothing gets lost in between: each row is kept or told of.
    assert kept["captions"] + sum("caption" in one for one in dropped) == len(pairs.captions)


def test_the_fix_overwrites_nothing(faulty: Path, clean: Path, tmp_path: Path) -> None:
    pairs, report = checked(clean)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("dear")
    for place in (tmp_path / "mine", tmp_path / "mine" / "work.txt", tmp_path / "none" / "out"):
        with pytest.raises(OutputError, match="already exists|there is no folder"):
            fix(pairs, report, place)
    (tmp_path / "empty").mkdir()
    assert fix(pairs, report, tmp_path / "empty")["captions"] == 2 * CLEAN
    gone = read_pairs(str(write_csv(tmp_path / "g.csv", ["image", "caption"], [["no.jpg", "x y"]])), broken=BROKEN)
    report = check(gone)
    with pytest.raises(DataError, match="nothing is left"):
        fix(gone, report, tmp_path / "gone")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty", "g.csv", "mine"]


def test_a_fix_that_fails_leaves_nothing(tmp_path: Path) -> None:
    class Gone(InMemory):
        def read_bytes(self) -> bytes:
            raise OSError("gone")

    pairs = Pairs("x", [Gone(b"")], ["a dog"], np.zeros(1, np.int64))
    with pytest.raises(DataError, match="can no longer be read"):
        fix(pairs, Report("x", None, {}, [], representatives=np.zeros(1, np.int64)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_merged_into_what_is_dropped(tmp_path: Path) -> None:
    """The leaked image is the largest, and between the two others in brightness."""
    soft = scene(0).point(lambda value: 60 + value // 4)
    lighter, lightest = (soft.point(lambda value, by=by: value + by) for by in (6, 12))
    soft.save(tmp_path / "there.png")
    lighter.resize((192, 144)).save(tmp_path / "leaked.png")
    lightest.save(tmp_path / "own.png")
    header = ["image", "caption"]
    there = read_pairs(str(write_csv(tmp_path / "e.csv", header, [["there.png", "what is there"]])))
    rows = [["leaked.png", "it is leaked"], ["own.png", "it is our own"]]
    pairs = read_pairs(str(write_csv(tmp_path / "d.csv", header, rows)))
    report = check(pairs, there, batch_size=2)
    assert {"near_duplicate_images", "leaked_near_images"} <= {finding.name for finding in report.findings}
    fix(pairs, report, tmp_path / "out")
    cleaned = read_pairs(str(tmp_path / "out" / "captions.csv"))
    assert [(image.name, text) for image, text in zip(cleaned.images, cleaned.captions, strict=True)] == [
        ("own.png", "it is our own")
    ]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_images_inside_of_something(kind: str, clean: Path, tmp_path: Path) -> None:
    contents = [(clean.parent / f"{seed:03d}.jpg").read_bytes() for seed in (0, 1, 2, 0)] + [b"\xff\xd8 broken"]
    texts = ["the first scene", "the second scene", "the third scene", "the first once more", "nothing at all"]
    if kind == "tar":
        source = str(tmp_path / "s-000.tar")
        with tarfile.open(source, "w") as tar:
            for number, (content, text) in enumerate(zip(contents, texts, strict=True)):
                for ending, data in (("jpg", content), ("txt", text.encode())):
                    member = tarfile.TarInfo(f"{number:03d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    else:
        source = str(tmp_path / "d.parquet")
        parquet.write_table(pa.table({"image": pa.array(contents, pa.binary()), "caption": texts}), source)
    pairs = read_pairs(source, broken=BROKEN)
    report = check(pairs, batch_size=2)
    found = {finding.name: finding for finding in report.findings}
    assert {"broken_images", "duplicate_images"} <= set(found)
    assert found["broken_images"].count == found["duplicate_images"].count == 1
    fix(pairs, report, tmp_path / "out")
    cleaned = read_pairs(str(tmp_path / "out" / "captions.csv"))
    assert [image.name for image in cleaned.images] == ["000000.jpg", "000001.jpg", "000002.jpg"]
    assert cleaned.image_of_caption.tolist() == [0, 1, 2, 0]
    assert [image.read_bytes() for image in cleaned.images] == contents[:3]
    assert not {"error", "warning"} & {finding.severity for finding in check(cleaned, batch_size=2).findings}


def test_images_alone_and_captions_alone(faulty: Path, tmp_path: Path) -> None:
    alone = read_pairs(str(faulty), captions=False, broken=BROKEN)
    text = read_pairs(
        str(write_csv(tmp_path / "t.csv", ["caption"], [["a dog"], [""], ["img_0001.jpg"], ["a dog"]])),
        images=False, broken=BROKEN,
    )  # fmt: skip
    report = check(text)
    assert {finding.name for finding in report.findings} == {"empty_captions", "file_name_captions"}
    assert report.findings[0].examples == ("row 2",)
    assert fix(text, report, tmp_path / "t") == {"images": 0, "captions": 3, "dropped": 1}
    assert read_pairs(str(tmp_path / "t" / "captions.csv"), images=False).captions[1] == "img_0001.jpg"
    folder = read_pairs(str(alone.images[0].parent), captions=False, broken=BROKEN)
    report = check(folder)
    names = {finding.name for finding in report.findings}
    assert {"broken_images", "duplicate_images"} <= names
    assert not [name for name in names if "caption" in name]
    fix(folder, report, tmp_path / "p")
    assert not [own for own in check(read_pairs(str(tmp_path / "p" / "captions.csv"), captions=False)).findings
                if own.severity == "error"]  # fmt: skip


def test_wrong_captions_and_paraphrases_stay_beside_theirs(clean: Path, tmp_path: Path) -> None:
    image = str(clean.parent / "000.jpg")
    header = ["image", "caption", "negative_caption", "paraphrase"]
    rows = [[image, "a b", "c", "d"], [image, "", "e", "f"], [image, "g h", "i", "j"]]
    pairs = read_pairs(str(write_csv(tmp_path / "d.csv", header, rows)), broken=BROKEN)
    fix(pairs, check(pairs), tmp_path / "out")
    cleaned = read_pairs(str(tmp_path / "out" / "captions.csv"))
    assert (cleaned.negatives, cleaned.paraphrases) == (["c", "i"], ["d", "j"])


def test_json(faulty: Path, other: Path) -> None:
    _, report = checked(faulty, other)
    found = json.loads(json.dumps(report.to_dict()))
    assert set(found) == {"task", "data", "against", "facts", "counts", "findings"}
    assert sum(found["counts"].values()) == len(found["findings"])
    for finding in found["findings"]:
        assert set(finding) == {"name", "severity", "message", "advice", "step", "count", "share", "examples"}
        assert 0 < finding["share"] <= 1
        assert len(finding["examples"]) <= 10
    assert found["facts"]["caption_length"]["unit"] == "tokens"
    assert found["facts"]["caption_length"]["max"] == 42


def test_quickly_without_opening_a_image(faulty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = read_pairs(str(faulty), broken=BROKEN)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("opened"))
    found = {finding.name: finding for finding in quick_findings(pairs)}
    assert found["missing_images"].examples == ("missing.jpg",)
    assert found["broken_images"].examples == ("zero.jpg (the file is empty)",)
    assert {"empty_captions", "boilerplate_captions", "repeated_captions"} <= set(found)
    assert "leaked_images" not in found
    one = Pairs("x", pairs.images, Strings.of(["same old words"] * len(pairs.images)), np.arange(len(pairs.images)))
    assert any("on most images" in finding.message for finding in quick_findings(one))


def test_classes_are_no_boilerplate() -> None:
    files = Files.of(Path(), pa.array([f"{place}.jpg" for place in range(100)], pa.large_string()))
    pairs = Pairs("x", files, Strings.of([("cat", "dog", "fish")[place % 3] for place in range(100)]), np.arange(100))
    assert [own.name for own in quick_findings(pairs) if "caption" in own.name] == ["captions_are_classes"]


@pytest.mark.parametrize(
    ("captions", "name"),
    [
        (["Image", "photo", "An image of", "no caption", "Untitled 12", "null", "N/A"], "stock_captions"),
        (["DSC_0012", "img-1234", "holiday.jpeg", "a/b/c.PNG"], "file_name_captions"),
        (["www.example.org/x", "HTTP://example.org"], "url_captions"),
        (["sunset", "Bäume!", "закат"], "one_word_captions"),
    ],
)  # fmt: skip
def test_captions_that_say_nothing(captions: list[str], name: str) -> None:
    good = ["a photo of a dog", "image of two cats", "see www.example.org for it", "test of strength", "一只狗在跑"]
    good += [
        "a test tube",
        "the image hangs askew",
        "no photo can show it",
        "10 dogs",
        "the unknown soldier",
        "salt and pepper",
        "fake image 北京",
    ]
    texts = captions + good
    files = Files.of(Path(), pa.array([f"{place}.jpg" for place in range(len(texts))], pa.large_string()))
    found = [own for own in quick_findings(Pairs("x", files, Strings.of(texts), np.arange(len(texts))))
             if own.name != "missing_images"]  # fmt: skip
    assert [(own.name, own.count) for own in found] == [(name, len(captions))]


def test_near_copies_are_found_and_other_images_are_not() -> None:
    scenes = [scene(seed) for seed in range(300)]
    changes: list[Callable[[Image.Image], Image.Image]] = [
        lambda own: own.resize((48, 36)),
        lambda own: own.crop((1, 1, 95, 71)),
        lambda own: own.point(lambda value: min(255, int(value * 1.05))),
    ]
    copies = [change(own) for own in scenes[:50] for change in changes]
    looked = looked_at(scenes + copies)
    found = {tuple(pair) for pair in find_duplicates(looked).near_pairs.tolist()}
    wanted = {(place, 300 + 3 * place + change) for place in range(50) for change in range(3)}
    family = {place: place if place < 300 else (place - 300) // 3 for place in range(len(looked))}
    assert all(family[one] == family[second] for one, second in found)
    assert len(wanted & found) >= 0.8 * len(wanted)  # noise is harder to know again than a photo


def test_one_hash_is_not_enough() -> None:
    """A figure with other hair: as light, of another color."""
    red, green = ((200, 40, 40), (0, 131, 60))
    looked = looked_at([_with_patch(color) for color in (red, green)])
    assert int(np.bitwise_count(looked.hashes[0] ^ looked.hashes[1])) <= 7
    assert not len(find_duplicates(looked).near_pairs)


def _with_patch(color: tuple[int, int, int]) -> Image.Image:
    image = scene(7)
    image.paste(color, (30, 20, 60, 50))
    return image


def test_blank_images_are_the_same_where_their_colors_are() -> None:
    blanks = [Image.new("RGB", (40 + place, 40), color)
              for place, color in enumerate([(9, 9, 9)] * 200 + [(200, 9, 9)] * 3 + [(90, 90, 90)])]  # fmt: skip
    same = find_duplicates(looked_at(blanks))
    assert len(same.near_pairs) < 200 * 65  # not every pair of a million blank ones
    groups = same.representatives(np.arange(len(blanks)))
    assert len(set(groups[:200].tolist())) < 10
    assert not set(groups[:200].tolist()) & set(groups[200:].tolist())
    assert len(set(groups[200:203].tolist())) == 1
    assert groups[203] == 203
    greys = find_duplicates(looked_at([Image.new("L", (32, 32), 100 + place % 3) for place in range(3)]))
    assert len(greys.near_pairs) == 3
    # The grain of a camera's black frame is all that a hash would see.
    rng = np.random.default_rng(0)
    grain = find_duplicates(
        looked_at([Image.fromarray(rng.integers(8, 14, (64, 64), dtype=np.uint8)) for _ in range(3)])
    )
    assert len(grain.near_pairs) == 3


def test_candidates_are_those_of_the_slow_way() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 63, 200, dtype=np.uint64)
    hashes = np.concatenate([hashes, hashes[:100]])
    for place in range(200, 300):
        for bit in rng.choice(64, place % 11, replace=False):
            hashes[place] ^= np.uint64(1) << np.uint64(bit)
    count = len(hashes)
    contents = np.frombuffer(rng.bytes(16 * count), "V16")
    miniatures = np.broadcast_to(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), (count, 8, 8, 3))
    looked = ImageScan({}, contents, hashes, miniatures, np.ones((count, 2), np.int32), np.ones(count, np.int64))
    slow = [[one, second] for one, second in itertools.combinations(range(count), 2)
            if bin(int(hashes[one]) ^ int(hashes[second])).count("1") <= 7]  # fmt: skip
    assert find_duplicates(looked).near_pairs.tolist() == slow


def test_leaks_are_those_of_the_other_set_alone() -> None:
    both = looked_at([scene(1), scene(2)]).followed_by(looked_at([scene(2), scene(3)]))
    assert find_duplicates(both).first.tolist() == [0, 1, 1, 3]


def test_kept_images_do_not_look_the_same() -> None:
    chain = Duplicates(np.array([0, 1, 2, 3, 0]), np.array([[0, 1], [1, 2], [2, 3]]))
    assert chain.representatives(np.array([0, 1, 2, 3, 4])).tolist() == [0, 0, 2, 2, 0]
    assert chain.representatives(np.array([9, 0, 2, 3, 9])).tolist() == [1, 1, 1, 3, 1]
    assert chain.pairs == 1 + 2 + 1 + 1


def test_false_negatives_to_expect_are_those_of_drawn_batches() -> None:
    rng = np.random.default_rng(0)
    images = np.array([0, 0, 1, 2, 2, 2, 3, 4, 5, 5, 6, 7])
    texts = ["a", "b", "a", "a", "a", "c", "b", "d", "c", "a", "", ""]
    files = Files.of(Path(), pa.array([f"{place}.jpg" for place in range(8)], pa.large_string()))
    pairs = Pairs("x", files, Strings.of(texts), images)
    same = Duplicates(np.array([0, 1, 0, 3, 4, 5, 6, 7]), np.array([[0, 4], [6, 7]]))
    found = expected_false_negatives(pairs, same, 4)
    alike_pairs = {(0, 2), (0, 4), (2, 4), (6, 7)}
    equal, shown, draws = 0, 0, 20_000
    for _ in range(draws):
        batch = sorted(rng.choice(8, 4, replace=False).tolist())
        said = {image: texts[int(rng.choice(pairs.captions_of_image[image]))] for image in batch}
        for one, second in itertools.combinations(batch, 2):
            equal += bool(said[one]) and said[one] == said[second]
            shown += (one, second) in alike_pairs
    assert found["same_caption"] == pytest.approx(equal / draws, rel=0.03)
    assert found["same_image"] == pytest.approx(shown / draws, rel=0.03)
    whole = expected_false_negatives(pairs, same, 100)
    assert (whole["size"], whole["same_image"]) == (100, 4)


def test_a_rare_false_negative_is_no_finding(clean: Path, tmp_path: Path) -> None:
    rows = [[str(clean.parent / f"{seed:03d}.jpg"), "a scene as any other"] for seed in (0, 1)]
    rows += [[str(clean.parent / f"{seed:03d}.jpg"), f"scene {seed} in full"] for seed in range(CLEAN)]
    report = check(read_pairs(str(write_csv(tmp_path / "d.csv", ["image", "caption"], rows))), batch_size=2)
    assert 0 < report.facts["batch"]["same_caption"] < 0.01
    assert [(finding.name, finding.severity) for finding in report.findings] == [("shared_captions", "warning")]


def test_a_batch_larger_than_the_data_is_told(clean: Path) -> None:
    assert [own.name for own in check(read_pairs(str(clean)), batch_size=25).findings] == ["batch_too_large"]


def test_normalized_captions() -> None:
    texts = ["A dog, running !", "a  dog running", "Ünder", "?!", "", "👍", "👎"]
    assert normalized(texts).to_pylist() == ["adogrunning", "adogrunning", "ünder", "?!", "", "👍", "👎"]


def test_upright_sizes(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(0).save(tmp_path / "turned.jpg", exif=exif)
    assert scan_images([tmp_path / "turned.jpg"]).sizes.tolist() == [[72, 96]]
