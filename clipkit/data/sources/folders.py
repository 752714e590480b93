"""Reader of image folders: with a metadata table, with a text file per image, with class folders, or images only."""

from pathlib import Path

import pyarrow as pa
from PIL import Image

from clipkit.data.prompts import read_lines
from clipkit.data.sequences import Files
from clipkit.data.sources.columns import ClassList, Rows, Wanted
from clipkit.data.sources.delimited import read_delimited
from clipkit.data.sources.json_rows import read_json_lines, strings_or_lists
from clipkit.data.sources.wds import CLASS_NAMES, TEMPLATES
from clipkit.errors import DataError
from clipkit.opening import read_text

_METADATA = {"metadata.csv": read_delimited, "metadata.jsonl": read_json_lines}


def read_folder(name: str, wanted: Wanted) -> Rows:
    """Read a folder: metadata.csv or .jsonl if present, else images with .txt files, else class folders, else images.

    Each line of a .txt that is not empty is a caption. Next to class folders there may be `classnames.txt`, with one
    name per line in the order of the folders, and `zeroshot_classification_templates.txt`.

    Raises:
        DataError: there are no images, or the needed captions or labels are missing.
    """
    path = Path(name)
    for file, read in _METADATA.items():
        if (path / file).is_file():
            return read(str(path / file), wanted)
    everywhere = images_in(path, "**/*")
    texts = {file.with_suffix("") for file in path.glob("**/*.txt")}
    if "caption" in (*wanted.needed, *wanted.optional) and any(file.with_suffix("") in texts for file in everywhere):
        return _with_texts(path, everywhere, texts)
    alone, inside = images_in(path), images_in(path, "*/*")
    if alone and inside:
        raise DataError(
            f"{path}: has images outside of class folders ({len(alone)}), such as {alone[0].name}, and "
            f"{len(inside)} in class folders, "
            f"such as {inside[0].relative_to(path)}; keep only one of the two"
        )
    if alone and "caption" in wanted.needed:
        raise DataError(
            f"{path}: has images without captions; add a .txt file for each image, or a metadata.csv with the "
            "columns file_name and text, or use a table or class folders"
        )
    if alone and "label" in wanted.needed:
        raise DataError(f"{path}: contains no class folders with images; create files such as {path / 'cat' / '1.jpg'}")
    if not alone and not inside:
        raise DataError(
            f"{path}: contains no images and no class folders; create files such as {path / 'cat' / '1.jpg'}"
        )
    if alone:
        return _of_files(path, alone, {})
    labels = [file.parent.name for file in inside]
    classes = _class_list(path, sorted({label.strip() for label in labels}))
    return _of_files(path, inside, {"label": pa.array(labels, pa.large_string())}, classes)


def _class_list(path: Path, labels: list[str]) -> ClassList:
    file = path / CLASS_NAMES
    names = read_lines(file) if file.is_file() else None
    if names is not None and len(names) != len(labels):
        raise DataError(
            f"{file}: has {len(names)} names for {len(labels)} class folders; give one name per line, in the "
            "alphabetical order of the folders"
        )
    templates = path / TEMPLATES
    return ClassList(labels, names, read_lines(templates) if templates.is_file() else None)


def images_in(path: Path, pattern: str = "*") -> list[Path]:
    """Return the files of a folder that have the extension of an image format, in alphabetical order."""
    known = Image.registered_extensions()
    return sorted(file for file in path.glob(pattern) if file.suffix.lower() in known)


def _with_texts(path: Path, images: list[Path], texts: set[Path]) -> Rows:
    captions = []
    for file in images:
        text = file.with_suffix(".txt")
        try:
            content = read_text(text) if file.with_suffix("") in texts else ""
        except UnicodeDecodeError as error:
            raise DataError(f"{text}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None
        except OSError as error:
            raise DataError(f"{text}: cannot be read ({error.strerror}); check the file and its permissions") from None
        lines = [line.strip() for line in content.splitlines() if line.strip()]
        captions.append(lines if len(lines) > 1 else (lines or [""])[0])
    return _of_files(path, images, {"caption": strings_or_lists(captions)})


def _of_files(path: Path, images: list[Path], columns: dict[str, pa.Array], classes: ClassList | None = None) -> Rows:
    names = pa.array([str(file.relative_to(path)) for file in images], pa.large_string())
    return Rows(str(path), columns, Files.of(path, names), names, row="image", classes=classes)
