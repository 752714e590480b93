"""Cards of exports: their code runs as printed, and real files and raw strings get the model's features."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clipkit
from clipkit.errors import ModelError
from clipkit.images import InMemory, open_image
from clipkit.models import DualEncoder, compose
from clipkit.models.export import export
from clipkit.models.export import onnx_example as example
from clipkit.models.export.comparison import Comparison
from clipkit.models.export.samples import CAPTIONS, image_files
from clipkit.models.publish.card import export_card, kept_card
from clipkit.models.publish.layout import Layout
from clipkit.models.publish.usage import first_code, usage
from clipkit.recipe import ModelRecipe
from tests.models.families import SMALL, build

BOTH = ("image", "text")
QUOTES = ["the girl’s “red” dress", "black &amp; white", "ＡＢＣ"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    return clipkit.load(build("clip", tmp_path_factory.mktemp("base") / "clip"), device="cpu")


@pytest.fixture(scope="module")
def of_open_clip(model: DualEncoder, tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    folder = tmp_path_factory.mktemp("base") / "open_clip"
    export(model, "open_clip", folder)
    return clipkit.load(folder, device="cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    contents = image_files(32)
    for number, content in enumerate(contents.values()):
        (folder / str(number)).write_bytes(content)
    return {kind: folder / str(number) for number, kind in enumerate(contents)}


def run(folder: Path, images: list[Path] | None = None, texts: list[str] | None = None) -> dict[str, Any]:
    """Run the first code block of a folder's card, as printed or with other inputs."""
    code = first_code((folder / "README.md").read_text(encoding="utf-8"))
    lines = code.splitlines()
    if images is not None:
        lines = [f"images = {list(map(str, images))!r}" if line.startswith("images = ") else line for line in lines]
    if texts is not None:
        lines = [f"texts = {texts!r}" if line.startswith("texts = ") else line for line in lines]
    variables: dict[str, Any] = {}
    exec(compile("\n".join(lines), "README.md", "exec"), variables)
    return variables


def blocks(folder: Path) -> list[str]:
    text = (folder / "README.md").read_text(encoding="utf-8")
    return [part.partition("```")[0] for part in text.split("```python\n")[1:]]


@pytest.mark.parametrize("to", ["open_clip", "transformers", "sentence-transformers"])
@pytest.mark.parametrize("source", ["transformers", "open_clip"])
def test_card_computes_the_features_of_every_kind_of_file_and_caption(
    to: str, source: str, model: DualEncoder, of_open_clip: DualEncoder, files: dict[str, Path], tmp_path: Path
) -> None:
    exported = model if source == "transformers" else of_open_clip
    proof = export(exported, to, tmp_path / "it's out")
    assert max(proof.image_difference, proof.text_difference) < 1e-5
    even = [file for kind, file in files.items() if not kind.startswith("odd")]
    for code in blocks(tmp_path / "it's out"):  # as printed
        exec(compile(code, "README.md", "exec"), {})
    found = run(tmp_path / "it's out", even, list(CAPTIONS.values()))
    for features, expected in (
        (found["image_features"], exported.encode_image(even)),
        (found["text_features"], exported.encode_text(CAPTIONS.values())),
    ):
        torch.testing.assert_close(features.cpu(), expected, atol=1e-5, rtol=0)


def test_card_is_needed_where_the_libraries_differ(
    model: DualEncoder, of_open_clip: DualEncoder, tmp_path: Path
) -> None:
    """The notes state what happens without the card's code, by kind, with the size."""
    there = " ".join(export(model, "open_clip", tmp_path / "open_clip").notes)
    back = " ".join(export(of_open_clip, "transformers", tmp_path / "transformers").notes)
    for notes in (there, back):
        assert all(kind in notes for kind in ("transparency", "16 bits", "EXIF rotation", "HTML entities"))
        assert "curly quotes" in notes
        assert "odd number of pixels" in notes
    card = (tmp_path / "open_clip" / "README.md").read_text()
    assert "curly quotes" in card


def test_captions_of_the_user_are_tried_as_they_are(model: DualEncoder, tmp_path: Path) -> None:
    proof = export(model, "open_clip", tmp_path / "out", captions=QUOTES)
    assert proof.captions == 3
    assert proof.text_difference < 1e-5
    assert any("girl’s" in note for note in proof.notes)


def test_images_of_the_user_are_tried_as_files(model: DualEncoder, files: dict[str, Path], tmp_path: Path) -> None:
    several = [
        files["palette with transparency"],
        str(files["CMYK"]),
        InMemory("row 3", files["EXIF rotation"].read_bytes()),
        Image.new("RGBA", (40, 40), (0, 0, 255, 40)),
        np.zeros((32, 32, 4), np.uint8),
        Image.new("CMYK", (40, 40)),
    ]
    proof = export(model, "open_clip", tmp_path / "out", images=several)
    assert proof.images == 6
    assert proof.image_difference < 1e-5


def test_difference_is_refused_by_kind(model: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal about captions does not blame images."""
    from clipkit.models.export.open_clip import OpenClip

    layout = OpenClip.layout
    monkeypatch.setattr(OpenClip, "layout", lambda *of: Layout("open_clip", None, layout(*of).sides))
    with pytest.raises(ModelError, match=r"captions differ.*curly quotes") as caught:
        export(model, "open_clip", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert "odd number" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_card_without_code_is_not_a_comparison(
    model: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipkit.models.export.exporting.first_code", lambda usage: "")
    with pytest.raises(NotImplementedError, match="open_clip"):
        export(model, "open_clip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tower", ["image", "text"])
def test_card_of_a_single_tower_runs(tower: str, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    parts = {
        "image": {"image": {"name": "timm:test_vit", "pretrained": False}},
        "text": {"text": {"name": "hf:bert", "pretrained": False, "tokenizer": "open_clip:ViT-B-32", "config": SMALL}},
    }
    export(compose(ModelRecipe.model_validate(parts[tower])), "sentence-transformers", tmp_path / "out")
    assert run(tmp_path / "out")[f"{tower}_features"].ndim == 2


@pytest.mark.slow
@pytest.mark.parametrize("source", ["transformers", "open_clip"])
def test_onnx_folder_runs_as_printed(
    source: str, model: DualEncoder, of_open_clip: DualEncoder, files: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    exported = model if source == "transformers" else of_open_clip
    export(exported, "onnx", tmp_path / "out")
    assert run(tmp_path / "out")["probabilities"].shape == (1, 2)
    found = run(tmp_path / "out", list(files.values()), list(CAPTIONS.values()))
    image, text = exported.encode_image(files.values()), exported.encode_text(CAPTIONS.values())
    torch.testing.assert_close(torch.from_numpy(found["image_features"]), image, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.from_numpy(found["text_features"]), text, atol=1e-4, rtol=0)
    command = [sys.executable, str(tmp_path / "out" / "example.py")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in output.splitlines()} == {"red", "blue"}


def test_helpers_of_cards_equal_clipkit(files: dict[str, Path]) -> None:
    variables: dict[str, Any] = {}
    code = first_code(usage(Layout("transformers", "CLIPModel", BOTH, context_length=9, repairs=True)))
    start, end = code.index("def rgb"), code.index("images = ")
    exec("import html, ftfy, numpy as np\nfrom PIL import Image, ImageOps\n" + code[start:end], variables)
    for kind, file in files.items():
        expected = np.asarray(open_image(file))
        assert np.array_equal(np.asarray(variables["rgb"](file)), expected), kind
        assert np.array_equal(np.asarray(example.rgb(file)), expected), kind
    import open_clip

    clean = open_clip.tokenizer.get_clean_fn("whitespace")
    for caption in CAPTIONS.values():
        assert variables["repaired"](caption) == clean(caption) == example.repaired(caption)


def test_card_of_an_export_is_not_pushed(model: DualEncoder, tmp_path: Path) -> None:
    """It names a local folder."""
    export(model, "transformers", tmp_path / "out")
    clipkit.load(tmp_path / "out", device="cpu").save(tmp_path / "saved")
    assert (tmp_path / "out" / "README.md").is_file()
    assert kept_card(tmp_path / "out", tmp_path / "saved") is None


def test_names_of_folders_are_quoted() -> None:
    card = export_card(Layout("open_clip", None, BOTH), 'a "b": #1', [])
    compile(first_code(card), "README.md", "exec")
    import yaml

    assert yaml.safe_load(card.split("---\n")[1])["model_name"] == 'a "b": #1'


def test_nan_is_a_difference() -> None:
    compared = Comparison(["a"], torch.full((1, 2), float("nan")), torch.ones(1, 2))
    with pytest.raises(ModelError, match="a nan"):
        compared.check(1e-5, "images", "model")
