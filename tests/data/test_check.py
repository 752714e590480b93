"""The check of data: every planted fault is found and named, and clean data has no findings."""

import io
import itertools
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from clipkit.data import Pairs, Report, check, fix, quick_findings, read_pairs
from clipkit.data.checks.batch import expected_false_negatives
from clipkit.data.checks.duplicates import Duplicates
from clipkit.data.checks.leaks import find_exact_leaks
from clipkit.data.sequences import Strings
from clipkit.errors import DataError, OutputError
from tests.conftest import write_csv
from tests.data.scenes import InMemory, files_named, scene

BROKEN = ("images", "captions")
HEADER = ["image", "caption"]
CLEAN = 24


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
    return write_csv(folder / "d.csv", HEADER, clean_rows(folder, range(CLEAN)))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data to check against: scenes 500 to 507."""
    folder = tmp_path_factory.mktemp("other")
    return write_csv(folder / "e.csv", HEADER, clean_rows(folder, range(500, 508)))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clean data with one or more of each fault."""
    folder = tmp_path_factory.mktemp("faulty")
    rows = clean_rows(folder, range(CLEAN))
    (folder / "truncated.jpg").write_bytes((folder / "001.jpg").read_bytes()[:900])
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "page.jpg").write_text("<!DOCTYPE html><html><body>404</body></html>")
    (folder / "noise.png").write_bytes(bytes(range(256)))
    (folder / "copy.jpg").write_bytes((folder / "002.jpg").read_bytes())
    Image.open(folder / "003.jpg").save(folder / "again.jpg", quality=75)
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
    return write_csv(folder / "d.csv", HEADER, rows)


def checked(data: Path, other: Path | None = None) -> tuple[Pairs, Report]:
    pairs = read_pairs(str(data), broken=BROKEN)
    against = None if other is None else read_pairs(str(other), broken=BROKEN)
    report = check(
        pairs, against, token_counts=lambda texts: [len(text.split()) + 2 for text in texts], context_length=32,
        image_size=64, batch_size=4, workers=2,
    )  # fmt: skip
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


def test_planted_faults_are_found_and_nothing_else(faulty: Path, other: Path) -> None:
    _, report = checked(faulty, other)
    found = {finding.name: finding for finding in report.findings}
    assert set(found) == set(PLANTED)
    for name, (severity, examples) in PLANTED.items():
        assert found[name].severity == severity, name
        assert found[name].advice, name
        for example in examples:
            assert any(example in shown for shown in found[name].examples), (name, found[name].examples)
        if examples and name != "boilerplate_captions":
            assert found[name].count == len(examples), name
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    values = json.loads(json.dumps(report.to_dict()))
    assert set(values) == {"task", "data", "against", "facts", "counts", "findings"}
    assert sum(values["counts"].values()) == len(values["findings"])
    for finding in values["findings"]:
        assert set(finding) == {"name", "severity", "message", "advice", "step", "count", "share", "examples"}
        assert 0 < finding["share"] <= 1
        assert len(finding["examples"]) <= 10
    assert values["facts"]["caption_length"]["unit"] == "tokens"
    assert values["facts"]["caption_length"]["max"] == 42


def test_clean_data_has_no_findings(clean: Path, other: Path, shapes: Path) -> None:
    _, report = checked(clean, other)
    assert report.findings == []
    assert report.facts["images"] == CLEAN
    assert report.facts["captions"] == 2 * CLEAN
    assert report.facts["width"]["max"] == 96
    assert report.facts["batch"] == {"size": 4, "same_caption": 0.0, "same_image": 0.0, "rows": 0.0, "assumed": False}
    assert check(read_pairs(str(shapes / "captions.csv")), batch_size=4).findings == []
    assert [finding.name for finding in check(read_pairs(str(clean)), batch_size=25).findings] == ["batch_too_large"]


def test_fixed_copy_has_no_errors_and_lists_what_was_dropped(faulty: Path, other: Path, tmp_path: Path) -> None:
    pairs, report = checked(faulty, other)
    kept = fix(pairs, report, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["captions.csv", "dropped.jsonl"]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    cleaned, again = checked(tmp_path / "out" / "captions.csv", other)
    names = {finding.name for finding in again.findings}
    assert not [finding for finding in again.findings if finding.severity == "error"]
    assert not names & {"duplicate_images", "near_duplicate_images", "repeated_captions"}
    assert (len(cleaned.images), len(cleaned.captions)) == (kept["images"], kept["captions"])
    # The larger copy of 004.jpg takes its place.
    assert {Path(image).name for image in cleaned.images} == (
        {f"{seed:03d}.jpg" for seed in range(CLEAN)} - {"004.jpg"} | {"tiny.png", "wide.jpg", "resized.png"}
    )
    captions: dict[str, set[str]] = {}
    for image, text in zip(cleaned.image_of_caption.tolist(), cleaned.captions, strict=True):
        captions.setdefault(cleaned.images[image].name, set()).add(text)
    assert "what is in copy.jpg is told" in captions["002.jpg"]
    assert captions["resized.png"] == {
        "scene 4 in many colors", "scene 4 in soft light", "what is in resized.png is told"
    }  # fmt: skip
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    reasons = {entry["image"]: entry["reason"] for entry in dropped if "caption" not in entry}
    assert reasons["leaked.jpg"].endswith("= 500.jpg")
    assert reasons["copy.jpg"] == "is the same image as 002.jpg"
    assert reasons["004.jpg"] == "is the same image as resized.png"
    assert "the file does not exist" in reasons["missing.jpg"]
    lost = {(entry["image"], entry["reason"]) for entry in dropped if "caption" in entry}
    assert {("006.jpg", "empty caption"), ("005.jpg", "an earlier row has the same image and caption")} <= lost
    # Every row is kept or listed.
    assert kept["captions"] + sum("caption" in entry for entry in dropped) == len(pairs.captions)


def test_fix_overwrites_nothing_and_leaves_nothing_after_an_error(clean: Path, tmp_path: Path) -> None:
    class Gone(InMemory):
        def read_bytes(self) -> bytes:
            raise OSError("gone")

    pairs, report = checked(clean)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("dear")
    for folder in (tmp_path / "mine", tmp_path / "mine" / "work.txt", tmp_path / "none" / "out"):
        with pytest.raises(OutputError, match=str(folder)):
            fix(pairs, report, folder)
    (tmp_path / "empty").mkdir()
    assert fix(pairs, report, tmp_path / "empty")["captions"] == 2 * CLEAN
    missing = read_pairs(str(write_csv(tmp_path / "g.csv", HEADER, [["no.jpg", "x y"]])), broken=BROKEN)
    with pytest.raises(DataError, match="every row"):
        fix(missing, check(missing), tmp_path / "gone")
    lost = Pairs("x", [Gone(b"")], ["a dog"], np.zeros(1, np.int64))
    with pytest.raises(DataError, match="can no longer be read"):
        fix(lost, Report("x", None, {}, []), tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty", "g.csv", "mine"]


def test_no_image_is_merged_into_a_dropped_one(tmp_path: Path) -> None:
    """The leaked image is the largest, and between the two others in brightness."""
    soft = scene(0).point(lambda value: 60 + value // 4)
    lighter, lightest = (soft.point(lambda value, by=by: value + by) for by in (6, 12))
    soft.save(tmp_path / "there.png")
    lighter.resize((192, 144)).save(tmp_path / "leaked.png")
    lightest.save(tmp_path / "kept.png")
    there = read_pairs(str(write_csv(tmp_path / "e.csv", HEADER, [["there.png", "what is there"]])))
    rows = [["leaked.png", "it is leaked"], ["kept.png", "it is kept"]]
    pairs = read_pairs(str(write_csv(tmp_path / "d.csv", HEADER, rows)))
    report = check(pairs, there, batch_size=2)
    assert {"near_duplicate_images", "leaked_near_images"} <= {finding.name for finding in report.findings}
    fix(pairs, report, tmp_path / "out", drop_most=True)
    cleaned = read_pairs(str(tmp_path / "out" / "captions.csv"))
    assert [image.name for image in cleaned.images] == ["kept.png"]
    assert list(cleaned.captions) == ["it is kept"]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_images_in_archives_and_tables_are_checked_and_copied(kind: str, clean: Path, tmp_path: Path) -> None:
    contents = [(clean.parent / f"{seed:03d}.jpg").read_bytes() for seed in (0, 1, 2, 0)] + [b"\xff\xd8 broken"]
    texts = ["the first scene", "the second scene", "the third scene", "the first once more", "nothing at all"]
    source = tmp_path / {"tar": "s-000.tar", "parquet": "d.parquet"}[kind]
    if kind == "tar":
        with tarfile.open(source, "w") as tar:
            for number, (content, text) in enumerate(zip(contents, texts, strict=True)):
                for extension, data in (("jpg", content), ("txt", text.encode())):
                    member = tarfile.TarInfo(f"{number:03d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    else:
        images = [{"bytes": content, "path": f"{number}.jpg"} for number, content in enumerate(contents)]
        parquet.write_table(pa.table({"image": images, "caption": texts}), source)
    pairs = read_pairs(str(source), broken=BROKEN)
    report = check(pairs, batch_size=2)
    found = {finding.name: finding.count for finding in report.findings}
    assert found["broken_images"] == found["duplicate_images"] == 1
    fix(pairs, report, tmp_path / "out")
    cleaned = read_pairs(str(tmp_path / "out" / "captions.csv"))
    assert [image.name for image in cleaned.images] == ["000000.jpg", "000001.jpg", "000002.jpg"]
    assert cleaned.image_of_caption.tolist() == [0, 1, 2, 0]
    assert [image.read_bytes() for image in cleaned.images] == contents[:3]
    assert not {"error", "warning"} & {finding.severity for finding in check(cleaned, batch_size=2).findings}


def test_captions_alone_and_images_alone(faulty: Path, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", ["caption"], [["a dog"], [""], ["img_0001.jpg"], ["a dog"]])
    text = read_pairs(str(table), images=False, broken=BROKEN)
    report = check(text)
    assert {finding.name for finding in report.findings} == {"empty_captions", "file_name_captions"}
    assert report.findings[0].examples == ("row 2",)
    assert fix(text, report, tmp_path / "t") == {"images": 0, "captions": 3, "dropped": 1}
    assert read_pairs(str(tmp_path / "t" / "captions.csv"), images=False).captions[1] == "img_0001.jpg"
    images = read_pairs(str(faulty.parent), captions=False, broken=BROKEN)
    report = check(images)
    names = {finding.name for finding in report.findings}
    assert {"broken_images", "duplicate_images"} <= names
    assert not [name for name in names if "caption" in name]
    fix(images, report, tmp_path / "p")
    again = check(read_pairs(str(tmp_path / "p" / "captions.csv"), captions=False))
    assert "error" not in {finding.severity for finding in again.findings}


def test_negative_captions_and_paraphrases_stay_with_their_caption(clean: Path, tmp_path: Path) -> None:
    image = str(clean.parent / "000.jpg")
    rows = [[image, "a b", "c", "d"], [image, "", "e", "f"], [image, "g h", "i", "j"]]
    table = write_csv(tmp_path / "d.csv", [*HEADER, "negative_caption", "paraphrase"], rows)
    pairs = read_pairs(str(table), broken=BROKEN)
    fix(pairs, check(pairs), tmp_path / "out")
    cleaned = read_pairs(str(tmp_path / "out" / "captions.csv"))
    assert (cleaned.negatives, cleaned.paraphrases) == (["c", "i"], ["d", "j"])


def test_quick_findings_open_no_image(faulty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = read_pairs(str(faulty), broken=BROKEN)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("opened"))
    found = {finding.name: finding for finding in quick_findings(pairs)}
    assert found["missing_images"].examples == ("missing.jpg",)
    assert found["broken_images"].examples == ("zero.jpg (the file is empty)",)
    assert {"empty_captions", "boilerplate_captions", "repeated_captions"} <= set(found)
    assert "leaked_images" not in found
    one = Pairs("x", pairs.images, Strings.of(["same old words"] * len(pairs.images)), np.arange(len(pairs.images)))
    assert any("most of the images" in finding.message for finding in quick_findings(one))


def test_exact_leaks_equal_those_of_the_whole_check(faulty: Path, other: Path) -> None:
    pairs, report = checked(faulty, other)
    against = read_pairs(str(other))
    assert find_exact_leaks(pairs, against) == {image: leak for image, leak in report.leaked.items() if leak.exact}
    assert find_exact_leaks(against, read_pairs(str(faulty), broken=BROKEN)).keys() == {0}


def test_expected_false_negatives_equal_those_of_drawn_batches() -> None:
    rng = np.random.default_rng(0)
    images = np.array([0, 0, 1, 2, 2, 2, 3, 4, 5, 5, 6, 7])
    texts = ["a", "b", "a", "a", "a", "c", "b", "d", "c", "a", "", ""]
    pairs = Pairs("x", files_named(8), Strings.of(texts), images)
    duplicates = Duplicates(np.array([0, 1, 0, 3, 4, 5, 6, 7]), np.array([[0, 4], [6, 7]]))
    expected = expected_false_negatives(pairs, duplicates, 4)
    same_image_pairs = {(0, 2), (0, 4), (2, 4), (6, 7)}
    same_caption, same_image, rows, draws = 0, 0, 0, 20_000
    for _ in range(draws):
        batch = sorted(rng.choice(8, 4, replace=False).tolist())
        drawn = {image: texts[int(rng.choice(pairs.captions_of_image[image]))] for image in batch}
        for one, second in itertools.combinations(batch, 2):
            same_caption += bool(drawn[one]) and drawn[one] == drawn[second]
            same_image += (one, second) in same_image_pairs
        rows += sum(
            any(
                (drawn[one] and drawn[one] == drawn[two]) or (min(one, two), max(one, two)) in same_image_pairs
                for two in batch
                if two != one
            )
            for one in batch
        )
    assert expected["same_caption"] == pytest.approx(same_caption / draws, rel=0.03)
    assert expected["same_image"] == pytest.approx(same_image / draws, rel=0.03)
    assert expected["rows"] == pytest.approx(rows / draws, rel=0.1)
    whole = expected_false_negatives(pairs, duplicates, 100)
    assert (whole["size"], whole["same_image"]) == (100, 4)


def test_rare_false_negatives_are_not_reported(clean: Path, tmp_path: Path) -> None:
    rows = [[str(clean.parent / f"{seed:03d}.jpg"), "a scene as any other"] for seed in (0, 1)]
    rows += [[str(clean.parent / f"{seed:03d}.jpg"), f"scene {seed} in full"] for seed in range(CLEAN)]
    report = check(read_pairs(str(write_csv(tmp_path / "d.csv", HEADER, rows))), batch_size=2)
    assert 0 < report.facts["batch"]["same_caption"] < 0.01
    assert [(finding.name, finding.severity) for finding in report.findings] == [("shared_captions", "warning")]


def photograph(seed: int, side: int = 128) -> np.ndarray:
    """Draw large shapes and fine ones, with values in 0 … 1."""
    shapes = np.asarray(scene(seed, side, side).convert("L")) / 255
    return (0.8 * shapes + 0.2 * np.random.default_rng(seed).random((side, side))).astype(np.float32)


@pytest.mark.parametrize("kind", ["float", "12 bits", "nearly black"])
def test_images_that_differ_are_never_merged(kind: str, tmp_path: Path) -> None:
    rows = []
    for seed in range(12):
        values = photograph(seed)
        pixels = {"float": values, "12 bits": (values * 4095).astype(np.uint16)}.get(
            kind, (values * 15).astype(np.uint8)
        )
        Image.fromarray(pixels).save(tmp_path / f"{seed}.tif")
        rows.append([f"{seed}.tif", f"a photograph with number {seed}"])
    pairs = read_pairs(str(write_csv(tmp_path / "d.csv", HEADER, rows)))
    report = check(pairs, batch_size=2)
    assert [(found.name, found.count) for found in report.findings] == (
        [("flat_images", 12)] if kind == "nearly black" else []
    )
    assert fix(pairs, report, tmp_path / "out") == {"images": 12, "captions": 12, "dropped": 0}


def test_images_that_look_alike_are_merged_only_if_they_are_copies(tmp_path: Path) -> None:
    """A drawing with another detail, a brighter copy and a crop are reported and kept; encodings are merged."""
    image = scene(7, 320, 240)
    detail = image.copy()
    detail.paste((90, 60, 60), (150, 110, 166, 126))
    image.save(tmp_path / "0.png")
    image.save(tmp_path / "1.jpg", quality=40)
    image.resize((160, 120)).save(tmp_path / "2.webp", quality=60)
    detail.save(tmp_path / "3.png")
    image.point(lambda value: min(255, int(value * 1.1))).save(tmp_path / "4.png")
    image.crop((5, 4, 315, 236)).save(tmp_path / "5.png")
    dot = image.copy()
    dot.paste((255, 255, 255) if sum(image.getpixel((200, 60))) < 380 else (0, 0, 0), (200, 60, 204, 64))
    dot.save(tmp_path / "6.png")
    names = ["0.png", "1.jpg", "2.webp", "3.png", "4.png", "5.png", "6.png"]
    pairs = read_pairs(str(write_csv(tmp_path / "d.csv", HEADER, [[name, f"what {name} shows"] for name in names])))
    report = check(pairs, batch_size=2)
    found = {finding.name: finding.count for finding in report.findings}
    assert found["near_duplicate_images"] >= 4
    fix(pairs, report, tmp_path / "out")
    cleaned = read_pairs(str(tmp_path / "out" / "captions.csv"))
    assert [image.name for image in cleaned.images] == ["0.png", "3.png", "4.png", "5.png", "6.png"]
    assert cleaned.image_of_caption.tolist() == [0, 0, 0, 1, 2, 3, 4]


def test_half_of_the_data_is_never_dropped_silently(clean: Path, tmp_path: Path) -> None:
    rows = [[f"{seed:03d}.jpg", "a caption" if seed < 3 else ""] for seed in range(6)]
    table = write_csv(clean.parent / "half.csv", HEADER, rows)
    pairs = read_pairs(str(table), broken=BROKEN)
    with pytest.raises(DataError, match="3 of the 6 captions.*empty caption.*--drop-most"):
        fix(pairs, check(pairs, batch_size=2), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert fix(pairs, check(pairs, batch_size=2), tmp_path / "out", drop_most=True)["captions"] == 3
    missing = write_csv(
        clean.parent / "missing.csv", HEADER, [[f"{seed:03d}.jpg", f"c {seed}"] for seed in (0, 98, 99)]
    )
    gone = read_pairs(str(missing), broken=BROKEN)
    with pytest.raises(DataError, match=r"2 of the 3 images.*does not exist"):
        fix(gone, check(gone, batch_size=2), tmp_path / "gone")


def test_a_copy_per_caption_is_merged_although_it_is_most_of_the_images(clean: Path, tmp_path: Path) -> None:
    content = (clean.parent / "000.jpg").read_bytes()
    table = pa.table({"image": pa.array([content] * 5, pa.binary()), "caption": [f"caption {row}" for row in range(5)]})
    parquet.write_table(table, tmp_path / "d.parquet")
    pairs = read_pairs(str(tmp_path / "d.parquet"))
    assert fix(pairs, check(pairs, batch_size=2), tmp_path / "out")["captions"] == 5
