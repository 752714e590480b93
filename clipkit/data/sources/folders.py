"""Folders of images: with a table of metadata, with a text file beside each, in class folders, or alone."""

from pathlib import Path

import pyarrow as pa
from PIL import Image

from clipkit.data.sequences import Files
from clipkit.data.sources.columns import Rows, Wanted
from clipkit.data.sources.delimited import read_delimited
from clipkit.data.sources.json_lines import read_json_lines, strings_or_lists
from clipkit.errors import DataError

_METADATA = ("metadata.csv", "metadata.jsonl")


def read_folder(path: Path, wanted: Wanted) -> Rows:
    """Rows of a folder: of its metadata.csv or .jsonl, else images with the .txt beside each, else class folders.

    In a .txt each line that is not empty is a caption.

    Raises:
        DataError: there are no images, or not the captions or labels that are needed.
    """
    for name in _METADATA:
        if (path / name).is_file():
            return (read_delimited if name.endswith(".csv") else read_json_lines)(path / name, wanted)
    everywhere = images_in(path, "**/*")
    texts = {file.with_suffix("") for file in path.glob("**/*.txt")}
    if "caption" in (*wanted.needed, *wanted.optional) and any(file.with_suffix("") in texts for file in everywhere):
        return _with_texts(path, everywhere, texts)
    alone, inside = images_in(path), images_in(path, "*/*")
    if alone and inside:
        raise DataError(
            f"{path}: has {len(alone)} images of its own, as {alone[0].name}, beside {len(inside)} in class folders, "
            f"as {inside[0].relative_to(path)}; keep one of the two kinds"
        )
    if alone and "caption" in wanted.needed:
        raise DataError(
            f"{path}: is a folder of images without captions; put a .txt beside each, or metadata.csv with the "
            "columns file_name and text, or give a table, or a folder of class folders"
        )
    if alone and "label" in wanted.needed:
        raise DataError(f"{path}: holds no class folders with images; it should look like {path / 'cat' / '1.jpg'}")
    if not alone and not inside:
        raise DataError(f"{path}: holds no images and no class folders; it should look like {path / 'cat' / '1.jpg'}")
    classes = pa.array([file.parent.name for file in inside], pa.large_string())
    columns = {} if alone else {"label": classes}
    return _of_files(path, alone or inside, columns)


def images_in(path: Path, pattern: str = "*") -> list[Path]:
    """Files that are named as images, in alphabetical order."""
    known = Image.registered_extensions()
    return sorted(file for file in path.glob(pattern) if file.suffix.lower() in known)


def _with_texts(path: Path, images: list[Path], texts: set[Path]) -> Rows:
    captions = []
    for file in images:
        text = file.with_suffix(".txt")
        try:
            content = text.read_text(encoding="utf-8-sig") if file.with_suffix("") in texts else ""
        except UnicodeDecodeError as error:
            raise DataError(f"{text}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None
        except OSError as error:
            raise DataError(f"{text}: cannot be read ({error.strerror}); check it") from None
        lines = [line.strip() for line in content.splitlines() if line.strip()]
        captions.append(lines if len(lines) > 1 else (lines or [""])[0])
    return _of_files(path, images, {"caption": strings_or_lists(captions)})


def _of_files(path: Path, images: list[Path], columns: dict[str, pa.Array]) -> Rows:
    names = pa.array([str(file.relative_to(path)) for file in images], pa.large_string())
    return Rows(str(path), columns, Files.of(path, names), names, row="image")
