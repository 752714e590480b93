"""Writer of a cleaned copy of a dataset, with a list of the dropped images and captions."""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from PIL import Image

from clipkit.data.checks.captions import normalized
from clipkit.data.checks.copies import confirmed_copies
from clipkit.data.checks.drop_list import DropList
from clipkit.data.checks.leaks import image_name
from clipkit.data.checks.report import Report
from clipkit.data.pairs import Pairs
from clipkit.data.sources.columns import split_options
from clipkit.data.sources.remote import Remote
from clipkit.errors import DataError, OutputError, one_line
from clipkit.files import replacing
from clipkit.image_formats import open_content
from clipkit.images import Stored, read_image


def check_output_folder(out: Path, data: str | None = None) -> None:
    """Check that a cleaned copy can be written to a folder. Call this before the data is read.

    Args:
        out: folder of the copy.
        data: source as given by the user. If the source is a folder, the copy must be outside of it.

    Raises:
        OutputError: the folder is not empty, its parent does not exist, or the folder is inside the data.
    """
    folder = out.absolute()
    try:
        taken = folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir())))
    except OSError as error:
        raise OutputError(f"{out}: cannot be written to ({error.strerror}); give another folder") from None
    if taken:
        raise OutputError(f"{out}: already exists and is not an empty folder; give a new or empty folder")
    if not folder.parent.is_dir():
        raise OutputError(f"{out}: the folder {folder.parent} does not exist; create it first")
    source = None if data is None else Path(split_options(data)[0]).expanduser()
    if source is not None and source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
        raise OutputError(f"{out}: lies inside the data {data}; give a folder outside of the data")


def fix(
    pairs: Pairs, report: Report, out: Path, drop_most: bool = False, drop: DropList | None = None
) -> dict[str, int]:
    """Write a cleaned copy of the data: OUT/captions.csv, and OUT/dropped.jsonl with the reasons.

    - Broken images, leaked images and empty captions are dropped.
    - Of images that have equal bytes, or that differ only in size and encoding, only the largest image is kept. This
      image gets the captions of the dropped images.
    - Of equal captions of one image, only the first caption is kept.

    Image files are not copied; the table contains their paths. Images from archives and tables are saved in OUT/images.

    Args:
        pairs: the data that was checked.
        report: result of `check`.
        out: a new or empty folder.
        drop_most: allow dropping half or more of the images or captions.
        drop: further images and captions to drop.

    Returns:
        `images` and `captions`: their numbers in the copy. `dropped`: number of lines in dropped.jsonl.

    Raises:
        OutputError: the folder is not empty or cannot be written to.
        DataError: nothing would be left; half or more would be dropped without `drop_most`; or an image can no longer
            be read.
    """
    check_output_folder(out)
    listed = drop or DropList()
    rows, dropped = _select_rows(pairs, report, listed)
    if not rows:
        raise DataError(
            f"{pairs.name}: every row has an error, so no row is left to copy; correct the data as the findings advise"
        )
    if not drop_most:
        _check_share_kept(pairs, len(report.broken.keys() | report.leaked.keys() | listed.images.keys()), dropped)
    try:
        with replacing(out) as temporary:
            temporary.mkdir()
            images = _write_rows(pairs, rows, temporary, out)
            with (temporary / "dropped.jsonl").open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in dropped)
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be written ({error.strerror or one_line(error)}); give another folder"
        ) from None
    return {"images": images, "captions": len(rows) if pairs.has_captions else 0, "dropped": len(dropped)}


def _representatives(pairs: Pairs, report: Report, drop: DropList) -> list[int]:
    """Return for each image the position of the image that is kept instead; a kept image has its own position."""
    if report.duplicates is None:
        return list(range(len(pairs.images)))
    rank = report.rank.copy()
    rank[list(drop.images)] = 1  # the worst rank, as for leaked images: prefer copies that are not dropped
    near = confirmed_copies(pairs.images, report.duplicates.near_pairs)
    merged = replace(report.duplicates, near_pairs=near).representatives(rank).tolist()
    first: dict[int, int] = {}  # dropped image -> its first copy that is not dropped
    return [
        first.setdefault(kept, image) if kept in drop.images and image not in drop.images else kept
        for image, kept in enumerate(merged)
    ]


def _check_share_kept(pairs: Pairs, lost_images: int, dropped: Sequence[Mapping[str, str]]) -> None:
    """Raise an error if half or more of the images or captions would be dropped."""
    captions = sum("caption" in entry for entry in dropped)
    for lost, total, noun in (
        (lost_images, len(pairs.images) if pairs.has_images else 0, "images"),
        (captions, len(pairs.captions) if pairs.has_captions else 0, "captions"),
    ):
        if total and 2 * lost >= total:
            reasons = Counter(re.sub(r"( \(|: [=~] ).*", "", entry["reason"]) for entry in dropped).most_common(1)
            raise DataError(
                f"{pairs.name}: the copy would leave out {lost:,} of the {total:,} {noun} (most frequent "
                f"reason: {reasons[0][0]}); check that columns, folder and file names are correct, or add "
                "--drop-most to drop them"
            )


def _select_rows(pairs: Pairs, report: Report, drop: DropList) -> tuple[list[tuple[int, int]], list[dict[str, str]]]:
    """Return the rows to keep, as (image, row of the caption), and the dropped items with reasons."""
    unusable = {**drop.images} | {image: f"cannot be opened: {reason}" for image, reason in report.broken.items()}
    if report.against is not None:
        for image, leak in report.leaked.items():
            unusable[image] = f"is in {report.against.name}: {leak.describe(report.against)}"
    representatives = _representatives(pairs, report, drop)
    dropped: list[dict[str, str]] = []
    for image, kept in enumerate(representatives):
        if image in unusable:
            dropped.append({"image": image_name(pairs, image), "reason": unusable[image]})
        elif kept != image:
            dropped.append(
                {"image": image_name(pairs, image), "reason": f"is the same image as {image_name(pairs, kept)}"}
            )
    rows: list[tuple[int, int]] = []
    seen: set[tuple[int, str]] = set()
    texts: Sequence[str] = normalized(pairs.captions).to_pylist() if pairs.has_captions else pairs.captions
    for row, (image, text) in enumerate(zip(pairs.image_of_caption.tolist(), texts, strict=True)):
        kept = representatives[image]
        reason = unusable.get(image)
        if reason is None and pairs.has_captions and not text:
            reason = "empty caption"
        elif reason is None and pairs.has_captions and (image, pairs.captions[row].strip()) in drop.captions:
            reason = drop.captions[image, pairs.captions[row].strip()]
        elif reason is None and (kept, text) in seen:
            reason = "an earlier row has the same image and caption"
        if reason is None:
            seen.add((kept, text))
            rows.append((kept, row))
        elif pairs.has_captions:
            dropped.append({"image": image_name(pairs, image), "caption": pairs.captions[row], "reason": reason})
    return rows, dropped


def _write_rows(pairs: Pairs, rows: list[tuple[int, int]], folder: Path, out: Path) -> int:
    """Write the table captions.csv, and return the number of its images.

    Images from archives and tables are saved as files.
    """
    texts = pairs.texts
    written: dict[int, str] = {}
    with (folder / "captions.csv").open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(["image"] if pairs.has_images else []), *texts])
        for image, row in rows:
            if pairs.has_images and image not in written:
                written[image] = _path_in_table(pairs.images[image], len(written), folder, out)
            writer.writerow([*([written[image]] if written else []), *(column[row] for column in texts.values())])
    return len(written)


def _path_in_table(image: Path | Stored, number: int, folder: Path, out: Path) -> str:
    """Return the path of an image for captions.csv. An image from an archive or table is first saved as a file."""
    if isinstance(image, Remote):
        return image.address
    if not isinstance(image, Stored):
        try:
            return os.path.relpath(_resolved(image.parent) / image.name, _resolved(out.parent) / out.name)
        except ValueError:  # the folders are on different drives
            return str(image.absolute())
    try:
        content = read_image(image)
    except OSError as error:
        raise DataError(f"{image}: can no longer be read ({one_line(error)}); run the check again") from None
    (folder / "images").mkdir(exist_ok=True)
    name = f"images/{number:06d}{_extension(image.name, content)}"
    (folder / name).write_bytes(content)
    return name


@cache
def _resolved(folder: Path) -> Path:
    """Resolve symbolic links in the path of a folder, because `..` after a link leads to another folder."""
    return folder.resolve()


def _extension(name: str, content: bytes) -> str:
    extension = Path(name).suffix.lower()
    if extension in Image.registered_extensions():
        return extension
    with open_content(content) as opened:
        format = (opened.format or "").lower()
    return {"jpeg": ".jpg", "tiff": ".tif"}.get(format, f".{format}")
