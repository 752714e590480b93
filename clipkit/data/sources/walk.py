"""Search of a folder for data files; a finding reports the files that are ignored."""

import mimetypes
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from PIL import Image

from clipkit.errors import DataError
from clipkit.findings import Finding
from clipkit.image_formats import FORMATS

# Names of files of operating systems and programs, in lower case. Names that begin with a dot are always ignored.
_OF_SYSTEMS = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "#recycle", "$recycle.bin",
    "system volume information", "lost+found", "__pycache__",
}  # fmt: skip
_HIDDEN = "hidden or system names"
_NOT_TEXT, _CIRCLES = "names that are not UTF-8", "links to a folder that contains them"
_EXAMPLES = 3


@dataclass(frozen=True)
class Walk:
    """Files in a folder and its subfolders, as paths relative to the folder, sorted by name within each folder."""

    root: Path
    files: list[str]
    """All files that are not ignored. A link to a missing file is listed, too."""
    empty: list[str]
    """Folders directly below the root that contain no files."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Names that are ignored, by reason."""

    @cached_property
    def images(self) -> list[str]:
        """Image files: files with the extension of a format that can be decoded."""
        endings = {ending for ending, name in Image.registered_extensions().items() if name in FORMATS}
        return [file for file in self.files if PurePosixPath(file).suffix.lower() in endings]

    @cached_property
    def tops(self) -> list[str]:
        """Top-level folders that contain images, also in their subfolders."""
        return list(dict.fromkeys(image.partition("/")[0] for image in self.images if "/" in image))

    def findings(self, used: Collection[str]) -> list[Finding]:
        """Return a finding that lists the ignored files, e.g. hidden files; [] if no file is ignored.

        Args:
            used: files that the reader uses besides the images, e.g. text files with captions.
        """
        read = {*self.images, *used}
        others = [file for file in self.files if file not in read]
        images = [file for file in others if (mimetypes.guess_type(file)[0] or "").startswith("image/")]
        groups = self.left_out | {
            "images in a format that cannot be decoded": images,
            "files of other types, or text files without an image": [
                file for file in others if file not in set(images)
            ],
        }
        parts = [f"{len(names):,} {reason} ({_some(names)})" for reason, names in groups.items() if names]
        if not parts:
            return []
        count = sum(map(len, groups.values()))
        return [
            Finding(
                "left_out",
                "warning" if images or self.left_out.keys() - {_HIDDEN} else "note",
                f"{self.root}: files that are ignored: {', '.join(parts)}",
                "convert or rename these files if they belong to the data",
                count=count,
                examples=tuple(name for names in groups.values() for name in names[:_EXAMPLES]),
            )
        ]


def _some(names: list[str]) -> str:
    return ", ".join(names[:_EXAMPLES]) + ", …" * (len(names) > _EXAMPLES)


def walk(root: Path) -> Walk:
    """List the files in a folder and its subfolders. A link that leads back to a parent folder is ignored.

    Hidden names (with a dot at the beginning) and system names, such as `__MACOSX` and `Thumbs.db`, are ignored.
    Ignored folders are not searched.

    Raises:
        DataError: a folder cannot be listed.
    """
    found = Walk(root, [], [])

    def visit(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> None:
        try:
            with os.scandir(folder) as opened:
                entries = sorted(opened, key=lambda entry: entry.name)
            status = folder.stat()
        except OSError as error:
            raise DataError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from None
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            found.left_out.setdefault(_CIRCLES, []).append(prefix.removesuffix("/"))
            return
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith(".") or entry.name.lower() in _OF_SYSTEMS:
                found.left_out.setdefault(_HIDDEN, []).append(name)
            elif not _is_text(entry.name):
                found.left_out.setdefault(_NOT_TEXT, []).append(ascii(name))
            elif _is_folder(entry):
                before = len(found.files)
                visit(folder / entry.name, f"{name}/", (*above, identity))
                if not prefix and len(found.files) == before:
                    found.empty.append(name)
            else:
                found.files.append(name)

    visit(root, "", ())
    return found


def matching(pattern: Path) -> list[Path]:
    """Return the files that match a path such as `data/*.csv`, sorted by name. `*` does not match hidden files."""
    is_hidden = pattern.name.startswith(".")
    return sorted(file for file in pattern.parent.glob(pattern.name) if is_hidden or not file.name.startswith("."))


def _is_text(name: str) -> bool:
    """Return whether a name can be encoded as UTF-8, as tables and messages require."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # the entry is a link to itself
        return False
