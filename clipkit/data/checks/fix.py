"""A cleaned copy of data, with a list of what was left out of it."""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from uuid import uuid4

from PIL import Image

from clipkit.data.checks.captions import normalised
from clipkit.data.checks.images import names_of
from clipkit.data.checks.whole import Report
from clipkit.data.pairs import Pairs
from clipkit.data.sources.remote import Remote
from clipkit.errors import DataError, OutputError, one_line
from clipkit.images import Stored


def check_place(out: Path, data: str | None = None) -> None:
    """Before anything is read: whether a cleaned copy may be written there.

    Args:
        out: the folder to be.
        data: the source, as the user wrote it, of which the copy must not become a part.

    Raises:
        OutputError: something is there, its parent is not, or it lies within the data.
    """
    place = out.absolute()
    try:
        taken = place.is_symlink() or (place.exists() and (not place.is_dir() or any(place.iterdir())))
    except OSError as error:
        raise OutputError(f"{out}: cannot be written to ({error.strerror}); give another folder") from None
    if taken:
        raise OutputError(f"{out}: is there already; give a new folder, or an empty one")
    if not place.parent.is_dir():
        raise OutputError(f"{out}: there is no folder {place.parent}; make it first")
    source = None if data is None else Path(data.partition("?")[0]).expanduser()
    if source is not None and source.is_dir() and place.resolve().is_relative_to(source.resolve()):
        raise OutputError(f"{out}: would become a part of {data}; give a folder outside of it")


def fix(pairs: Pairs, report: Report, out: Path) -> dict[str, int]:
    """Write OUT/captions.csv and OUT/dropped.jsonl.

    Broken and leaked images are left out, and empty captions; of images that are the same the largest is kept, with
    the captions of all; of equal captions of one image the first is kept. Images that are files stay where they
    are, those in tars and tables are written to OUT/images.

    Args:
        pairs: what was checked.
        report: what `check` found in it.
        out: a folder that is not there, or is empty.

    Returns:
        how many images and captions the copy has, and how many were dropped: images, captions, dropped.

    Raises:
        OutputError: the folder holds something, or cannot be written.
        DataError: nothing is left, or an image is no longer there.
    """
    check_place(out)
    rows, dropped = _sorted_out(pairs, report)
    if not rows:
        raise DataError(f"{pairs.name}: nothing is left after the fix; see what the check finds")
    aside = out.absolute().parent / f".{out.name}.{uuid4().hex[:8]}.writing"
    try:
        aside.mkdir()
        kept = _write_rows(pairs, rows, aside, out)
        with (aside / "dropped.jsonl").open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in dropped)
        aside.replace(out)
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be written ({error.strerror or one_line(error)}); give another place"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return {"images": kept, "captions": len(rows) if pairs.has_captions else 0, "dropped": len(dropped)}


def _sorted_out(pairs: Pairs, report: Report) -> tuple[list[tuple[int, int]], list[dict[str, str]]]:
    """Rows that are kept, as (image, position of the caption), and what is dropped, with reasons."""
    name = names_of(pairs) if pairs.has_images else lambda place: f"row {place + 1}"
    dropped: list[dict[str, str]] = []
    out_of_set = {place: f"cannot be opened: {error}" for place, error in report.broken.items()}
    out_of_set |= {place: f"is in {report.against}: {other}" for place, other in report.leaked.items()}
    keepers = report.keepers.tolist()
    for place in range(len(keepers)):
        if place in out_of_set:
            dropped.append({"image": name(place), "reason": out_of_set[place]})
        elif keepers[place] != place:
            dropped.append({"image": name(place), "reason": f"is the same image as {name(keepers[place])}"})
    rows: list[tuple[int, int]] = []
    seen: set[tuple[int, str]] = set()
    texts: Sequence[str] = normalised(pairs.captions).to_pylist() if pairs.has_captions else pairs.captions
    for row, (image, text) in enumerate(zip(pairs.image_of_caption.tolist(), texts, strict=True)):
        reason = out_of_set.get(image)
        kept = keepers[image]
        if reason is None and pairs.has_captions and not text:
            reason = "empty caption"
        elif reason is None and (kept, text) in seen:
            reason = "its image has this caption already"
        if reason is None:
            seen.add((kept, text))
            rows.append((kept, row))
        elif pairs.has_captions:
            dropped.append({"image": name(image), "caption": pairs.captions[row], "reason": reason})
    return rows, dropped


def _write_rows(pairs: Pairs, rows: list[tuple[int, int]], folder: Path, out: Path) -> int:
    """The table, and the images that need a place; returns how many images there are."""
    columns: list[tuple[str, Callable[[int, int], str]]] = []
    written: dict[int, str] = {}

    def image(place: int, _: int) -> str:
        if place not in written:
            written[place] = _place_of(pairs, place, len(written), folder, out)
        return written[place]

    if pairs.has_images:
        columns.append(("image", image))
    for name, texts in (
        ("caption", pairs.captions if pairs.has_captions else None),
        ("negative_caption", pairs.negatives),
        ("paraphrase", pairs.paraphrases),
    ):
        if texts is not None:
            columns.append((name, _of_row(texts)))
    with (folder / "captions.csv").open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([name for name, _ in columns])
        writer.writerows(_values(columns, rows))
    return len(written)


def _of_row(texts: Sequence[str]) -> Callable[[int, int], str]:
    return lambda _, row: texts[row]


def _values(columns: list[tuple[str, Callable[[int, int], str]]], rows: list[tuple[int, int]]) -> Iterator[list[str]]:
    for place, row in rows:
        yield [of(place, row) for _, of in columns]


def _place_of(pairs: Pairs, place: int, number: int, folder: Path, out: Path) -> str:
    """What the table says of an image; one that is no file of its own becomes one."""
    image = pairs.images[place]
    if isinstance(image, Remote):
        return image.address
    if not isinstance(image, Stored):
        try:
            return os.path.relpath(_real(image.parent) / image.name, _real(out.parent) / out.name)
        except ValueError:  # on another drive
            return str(image.absolute())
    try:
        content = image.read_bytes()
    except OSError as error:
        raise DataError(f"{image}: can no longer be read ({one_line(error)}); check again") from None
    (folder / "images").mkdir(exist_ok=True)
    name = f"images/{number:06d}{_ending(image.name, content)}"
    (folder / name).write_bytes(content)
    return name


@cache
def _real(folder: Path) -> Path:
    """A way up through a link would lead elsewhere."""
    return folder.resolve()


def _ending(name: str, content: bytes) -> str:
    own = Path(name).suffix.lower()
    if own in Image.registered_extensions():
        return own
    with Image.open(io.BytesIO(content)) as opened:
        kind = (opened.format or "").lower()
    return {"jpeg": ".jpg", "tiff": ".tif"}.get(kind, f".{kind}")
