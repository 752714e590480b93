"""Preparation of data for fast training: writes resized images with their captions into shards."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import get_args

from tqdm.auto import tqdm

from clipkit.data.encoded import Encoded, encoded
from clipkit.data.manifest import Block, Manifest, Settings, Skipped, open_manifest
from clipkit.data.output_folder import alone_in, as_output_errors
from clipkit.data.pairs import Pairs, read_pairs
from clipkit.data.sequences import Files
from clipkit.data.shards import Format, ShardSample, write_shard
from clipkit.errors import DataError, Interrupted, UserError

# Images per worker that are being encoded or wait to be written: enough that one large image does not stop the others.
_AHEAD = 8
_DIGITS = 6


@dataclass(frozen=True)
class Prepared:
    """Result of `prepare`: a complete folder of shards."""

    folder: Path
    pattern: str
    """Source of the prepared data: `DIR/shards-{000000..000005}.tar` or `DIR/*.parquet`."""
    images: int
    """Number of images in the shards."""
    shards: int
    source_bytes: int
    """Total size of these images' source files."""
    bytes: int
    """Total size of the shards."""
    skipped: list[Skipped]
    """Images that were skipped because they are missing or broken."""


def read_for_shards(source: str) -> Pairs:
    """Read images, with captions if the source has captions. Images may be missing or broken.

    Raises:
        DataError: the source cannot be read, has no images, or has an empty caption.

    Example:
        >>> prepare(read_for_shards("photos/"), "small", size=224).images    # doctest: +SKIP
        6000
    """
    try:
        return read_pairs(source, broken=("images",))
    except DataError as error:
        images = read_pairs(source, captions=False, broken=("images", "captions"))
        if images.has_captions:  # the source has captions, so the first error has another reason
            raise error from None
        return images


def prepare(
    pairs: Pairs,
    out: str | Path,
    *,
    size: int = 256,
    quality: int = 90,
    lossless: bool = False,
    format: Format = "tar",
    shard_size: int = 1000,
    workers: int | None = None,
) -> Prepared:
    """Resize images to a short side of `size` pixels, and write them with all their captions into shards.

    The images keep the order of the source. The same source and settings give the same bytes, for any number of workers
    and interruptions. To continue after an interruption, call this function again with the same arguments. When all
    shards are finished, prepared.json contains `"complete": true`. Broken images are skipped and listed in
    skipped.jsonl.

    Args:
        pairs: images, with or without captions.
        out: a new or empty folder, or a folder that was started with the same source and settings.
        size: short side in pixels. Smaller images are not resized, and files of smaller upright RGB images are copied.
        quality: JPEG quality, 1 to 100.
        lossless: PNG instead of JPEG.
        format: tar (the layout of WebDataset) or parquet (the layout of the Hugging Face Hub).
        shard_size: images of the source per shard, including broken images.
        workers: threads; None: one per core.

    Raises:
        DataError: there are no images, or all images are broken.
        OutputError: the folder cannot be written to, contains other files, or has a damaged shard.
        Interrupted: Ctrl-C; finished shards are kept.

    Example:
        >>> prepare(read_pairs("captions.csv"), "small").pattern    # doctest: +SKIP
        'small/shards-{000000..000005}.tar'
    """
    settings = Settings(size=size, quality=quality, lossless=lossless, format=format, shard_size=shard_size)
    _check_arguments(pairs, settings, workers)
    folder = Path(out).expanduser()
    with as_output_errors(folder), alone_in(folder):
        manifest = open_manifest(pairs, folder, settings)
        manifest.check_shards()
        threads = workers or os.cpu_count() or 1
        pool = ThreadPoolExecutor(threads)  # Pillow releases Python's lock while it works
        try:
            _write_blocks(pairs, manifest, pool, _AHEAD * threads)
        except KeyboardInterrupt:
            blocks = -(-len(pairs.images) // shard_size)
            raise Interrupted(
                f"interrupted with {len(manifest.shards)} of {blocks} shards finished in {folder}; run the same "
                "command again to resume",
                130,
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
        if not manifest.files:
            manifest.remove()
            reason = manifest.skipped[0].reason
            raise DataError(
                f"{pairs.name}: none of its {len(pairs.images)} images can be used (reason for the first: "
                f"{reason}); replace the images"
            )
        manifest.complete = True
        manifest.write()
    return Prepared(
        folder,
        _pattern(folder, format, len(manifest.files)),
        sum(block.samples for block in manifest.files),
        len(manifest.files),
        sum(block.source_bytes for block in manifest.files),
        sum(block.bytes for block in manifest.files),
        manifest.skipped,
    )


def _check_arguments(pairs: Pairs, settings: Settings, workers: int | None) -> None:
    if not pairs.has_images:
        raise DataError(f"{pairs.name}: has captions but no images; give data with images")
    if settings.format not in get_args(Format):
        raise UserError(f"format {settings.format} is not supported; use {' or '.join(get_args(Format))}")
    if not 1 <= settings.quality <= 100:
        raise UserError(f"quality {settings.quality} is invalid; give a value from 1 to 100")
    for name, number in (("size", settings.size), ("shard_size", settings.shard_size), ("workers", workers)):
        if number is not None and number < 1:
            raise UserError(f"{name} {number} is invalid; give 1 or more")


def _write_blocks(pairs: Pairs, manifest: Manifest, pool: ThreadPoolExecutor, most_ahead: int) -> None:
    """Encode the images that are not yet in a shard, and write them into shards."""
    count, size = len(pairs.images), manifest.settings.shard_size
    starts = range(len(manifest.shards) * size, count, size)
    images = _encode_in_order(pairs, range(min(starts.start, count), count), manifest.settings, pool, most_ahead)
    with tqdm(images, total=count, initial=starts.start, desc="images", unit="", disable=None, leave=False) as bar:
        encoded_images = iter(bar)
        for _ in starts:
            manifest.shards.append(_write_block(pairs, manifest, islice(encoded_images, size)))
            manifest.write()


def _write_block(pairs: Pairs, manifest: Manifest, images: Iterable[tuple[int, Encoded | DataError]]) -> Block:
    skipped: list[Skipped] = []
    source_bytes: list[int] = []

    def samples() -> Iterator[ShardSample]:
        for position, image in images:
            if isinstance(image, DataError):
                skipped.append(Skipped(position, _name(pairs, position), str(image)))
            else:
                source_bytes.append(image.source_bytes)
                yield ShardSample(_key(pairs, position), _name(pairs, position), image, _texts(pairs, position))

    path = manifest.folder / f"shards-{len(manifest.files):0{_DIGITS}d}.{manifest.settings.format}"
    sha256 = write_shard(path, samples())
    return Block(
        name=path.name if sha256 is not None else None,
        samples=len(source_bytes),
        source_bytes=sum(source_bytes),
        bytes=path.stat().st_size if sha256 is not None else 0,
        sha256=sha256 or "",
        skipped=skipped,
    )


def _encode_in_order(
    pairs: Pairs, positions: range, settings: Settings, pool: ThreadPoolExecutor, most_ahead: int
) -> Iterator[tuple[int, Encoded | DataError]]:
    """Encode images in parallel. Yield (position, encoded image or error) in the given order.

    At most `most_ahead` images are encoded in advance.
    """

    def encode(position: int) -> tuple[int, Encoded | DataError]:
        try:
            return position, encoded(pairs.images[position], settings.size, settings.quality, settings.lossless)
        except DataError as error:
            return position, error

    ahead: deque[Future[tuple[int, Encoded | DataError]]] = deque()
    for position in positions:
        ahead.append(pool.submit(encode, position))
        if len(ahead) >= most_ahead:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def _pattern(folder: Path, format: Format, shards: int) -> str:
    if format == "parquet":
        return str(folder / "*.parquet")
    first, last = f"{0:0{_DIGITS}d}", f"{shards - 1:0{_DIGITS}d}"
    return str(folder / f"shards-{first if shards == 1 else f'{{{first}..{last}}}'}.tar")


def _key(pairs: Pairs, position: int) -> str:
    return f"{position:0{max(_DIGITS, len(str(len(pairs.images) - 1)))}d}"


def _name(pairs: Pairs, position: int) -> str:
    """Return the path of an image in the source's folder, or its name in an archive or table."""
    return pairs.images.names[position] if isinstance(pairs.images, Files) else pairs.images[position].name


def _texts(pairs: Pairs, position: int) -> dict[str, list[str]]:
    """Return the texts of an image by role, as in `Pairs.texts`."""
    rows = pairs.captions_of_image[position].tolist()
    return {role: [texts[row] for row in rows] for role, texts in pairs.texts.items()}
