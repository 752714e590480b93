"""Images made as small as training needs them, in shards: once, instead of at every epoch."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from clipkit.data.encoded import Encoded, encoded
from clipkit.data.manifest import Done, Manifest, Settings, Skipped, begin
from clipkit.data.output_folder import alone_in, as_output_errors
from clipkit.data.pairs import Pairs, read_pairs
from clipkit.data.sequences import Files
from clipkit.data.shards import WRITERS, Format, ShardSample, ShardWriter, read_shard
from clipkit.errors import DataError, Interrupted, OutputError, UserError
from clipkit.images import Stored

# Images in work or waiting for their turn, for each worker: enough that a large one holds nobody up.
_AHEAD = 8
_DIGITS = 6


@dataclass(frozen=True)
class Prepared:
    """A folder of shards that is complete."""

    folder: Path
    pattern: str
    """What to give as data: `DIR/shards-{000000..000005}.tar` or `DIR/*.parquet`."""
    images: int
    """In the shards."""
    shards: int
    source_bytes: int
    """Of the files of those images before."""
    bytes: int
    """Of the shards."""
    skipped: list[Skipped]
    """The images that are left out, because they are missing or broken."""


def read_for_shards(source: str) -> Pairs:
    """Pairs of any source, with captions where it has any; images may be missing or broken.

    Raises:
        DataError: the source cannot be read, has no images, or one of its captions is empty.

    Example:
        >>> prepare(read_for_shards("photos/"), "small", size=224).images    # doctest: +SKIP
        6000
    """
    try:
        return read_pairs(source, broken=("images",))
    except DataError as error:
        # Whether it is for want of captions, or because one is empty, or something else.
        alone = read_pairs(source, captions=False, broken=("images", "captions"))
        if alone.has_captions:
            raise error from None
        return alone


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
    """Write images, their short side resized down to `size`, with all their captions into shards.

    The order is the source's. The same source and settings give the same bytes, whatever the number of workers and
    interruptions. Interrupted, the same call goes on; prepared.json in the folder says `"complete": true` only when
    everything is there and was read back. An image that is broken is left out and listed in skipped.jsonl.

    Args:
        pairs: images, with captions or without.
        out: a folder that is new, empty, or was begun with this source and these settings.
        size: short side in pixels; smaller images stay as they are, upright RGB ones of them byte for byte.
        quality: of JPEG, 1 to 100.
        lossless: PNG instead of JPEG.
        format: tar, as WebDataset's, or parquet, as the Hub's.
        shard_size: images of the source in a shard.
        workers: threads; None for as many as there are cores.

    Raises:
        DataError: there are no images, or all are broken.
        OutputError: the folder holds something else or cannot be written to.
        Interrupted: Ctrl-C; what is finished stays.

    Example:
        >>> prepare(read_pairs("captions.csv"), "small").pattern    # doctest: +SKIP
        'small/shards-{000000..000005}.tar'
    """
    settings = Settings(size=size, quality=quality, lossless=lossless, format=format, shard_size=shard_size)
    _check(pairs, settings, workers)
    out = Path(out).expanduser()
    workers = workers or os.cpu_count() or 1
    with as_output_errors(out), alone_in(out):
        manifest = begin(pairs, out, settings)
        try:
            with _Workers(workers) as pool:
                made = _make(pairs, manifest, pool)
                return _verified(pairs, manifest, made, pool)
        except KeyboardInterrupt:
            total = len(_stretches(pairs, settings))
            raise Interrupted(
                f"interrupted with {len(manifest.done)} of {total} shards finished in {out}; the same command goes on",
                130,
            ) from None


def _check(pairs: Pairs, settings: Settings, workers: int | None) -> None:
    if not pairs.has_images:
        raise DataError(f"{pairs.name}: has captions alone; there are no images to prepare")
    if settings.format not in WRITERS:
        raise UserError(f"{settings.format} is no format of shards; give {' or '.join(WRITERS)}")
    if not 1 <= settings.quality <= 100:
        raise UserError(f"a quality of {settings.quality} is none of JPEG's; give 1 to 100")
    numbers = {"size": settings.size, "shard_size": settings.shard_size, "workers": 1 if workers is None else workers}
    for name, number in numbers.items():
        if number < 1:
            raise UserError(f"{name} is {number}; give 1 or more")


def _stretches(pairs: Pairs, settings: Settings) -> list[range]:
    """The images that go into each shard."""
    count = len(pairs.images)
    return [range(start, min(start + settings.shard_size, count)) for start in range(0, count, settings.shard_size)]


class _Workers(ThreadPoolExecutor):
    """Threads: Pillow lets others work while it decodes, resizes and encodes."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.shutdown(cancel_futures=True)  # of what was not asked for, nothing is waited for


def _make(pairs: Pairs, manifest: Manifest, pool: _Workers) -> list[int]:
    """Make every shard that is missing or damaged; which stretches those were."""
    settings, stretches = manifest.settings, _stretches(pairs, manifest.settings)
    damaged = _damaged(manifest, range(len(manifest.done)), pool)
    missing = [*damaged, *range(len(manifest.done), len(stretches))]
    if missing and manifest.complete:
        manifest.complete = False
        manifest.write()
    for stretch in damaged:
        manifest.skipped.pop(stretch, None)
        if (name := manifest.done[stretch].name) is not None:
            (manifest.folder / name).unlink(missing_ok=True)
    if missing:
        manifest.write_skipped()  # without what a kill cut short, to which lines would be added
    encode = partial(_encoded_at, pairs.images, settings)
    places = list(chain.from_iterable(stretches[stretch] for stretch in missing))
    total, ready = len(pairs.images), _in_order(pool, encode, places)
    with tqdm(total=total, initial=total - len(places), desc="images", unit="", disable=None, leave=False) as bar:
        for stretch in missing:
            # Not strict: that would take the first image of the next shard.
            own = _counted(zip(stretches[stretch], ready, strict=False), bar)
            manifest.finish(stretch, *_make_one(pairs, manifest, stretch, own))
    return missing


def _damaged(manifest: Manifest, stretches: Sequence[int], pool: _Workers) -> list[int]:
    found = pool.map(partial(_found, manifest), stretches)
    bar = tqdm(found, total=len(stretches), desc="verifying", unit="", disable=None, leave=False)
    return [stretch for stretch, whole in zip(stretches, bar, strict=True) if not whole]


def _found(manifest: Manifest, stretch: int) -> bool:
    """Whether a finished stretch is as it was written."""
    done = manifest.done[stretch]
    if done.skipped != len(manifest.skipped.get(stretch, [])):
        return False
    return done.name is None or read_shard(manifest.folder / done.name) == done.shard


def _make_one(
    pairs: Pairs, manifest: Manifest, stretch: int, images: Iterable[tuple[int, Encoded | DataError]]
) -> tuple[Done, list[Skipped]]:
    before = manifest.done[stretch] if stretch < len(manifest.done) else None
    name = before.name if before is not None else None
    if name is None:
        number = sum(own.name is not None for own in manifest.done[:stretch])
        name = f"shards-{number:0{_DIGITS}d}.{manifest.settings.format}"
    source_bytes, skipped = 0, []
    with _writer(manifest.folder / name, pairs, manifest.settings) as writer:
        for place, own in images:
            if isinstance(own, DataError):
                skipped.append(Skipped(place, _name(pairs, place), str(own)))
                continue
            source_bytes += own.source_bytes
            writer.add(ShardSample(_key(pairs, place), _name(pairs, place), own, _texts(pairs, place)))
        if before is not None and (before.name is None) != (not writer.samples):
            # The numbers of the shards behind it would no longer be right.
            raise DataError(
                f"{pairs.name}: other images can be read than when {manifest.folder} was begun; give --out another "
                "folder"
            )
        if writer.samples:
            made = writer.finish()
            done = Done(
                name=name,
                samples=made.samples,
                skipped=len(skipped),
                source_bytes=source_bytes,
                bytes=made.bytes,
                sha256=made.sha256,
            )
            return done, skipped
    return Done(name=None, samples=0, skipped=len(skipped), source_bytes=0), skipped


@contextmanager
def _writer(path: Path, pairs: Pairs, settings: Settings) -> Iterator[ShardWriter]:
    writer = WRITERS[settings.format](path, _roles(pairs))
    try:
        yield writer
    finally:
        writer.drop()


def _encoded_at(images: Sequence[Path | Stored], settings: Settings, place: int) -> Encoded | DataError:
    try:
        return encoded(images[place], settings.size, settings.quality, settings.lossless)
    except DataError as error:
        return error


def _in_order(
    pool: _Workers, encode: Callable[[int], Encoded | DataError], places: Sequence[int]
) -> Iterator[Encoded | DataError]:
    """Results in order, of which only so many are waiting at a time."""
    ahead: deque[Future[Encoded | DataError]] = deque()
    for place in places:
        ahead.append(pool.submit(encode, place))
        if len(ahead) >= _AHEAD * pool.count:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def _counted(
    images: Iterable[tuple[int, Encoded | DataError]], bar: "tqdm[NoReturn]"
) -> Iterator[tuple[int, Encoded | DataError]]:
    for own in images:
        yield own
        bar.update()


def _verified(pairs: Pairs, manifest: Manifest, made: list[int], pool: _Workers) -> Prepared:
    """Read back what was made, and say in the manifest that all is there."""
    folder, done = manifest.folder, manifest.done
    shards = [own for own in done if own.name is not None]
    if not shards:
        first = manifest.skipped[0][0].reason
        manifest.forget()
        with suppress(OSError):
            folder.rmdir()
        raise DataError(f"{pairs.name}: none of its {len(pairs.images)} images can be used; the first: {first}")
    if not manifest.complete:
        if damaged := _damaged(manifest, made, pool):
            name = done[damaged[0]].name or manifest.skipped_file.name
            raise OutputError(
                f"{folder / name}: is not as it was written; check the disk, and give the same command again"
            )
        if sum(own.samples + own.skipped for own in done) != len(pairs.images):
            raise OutputError(f"{folder}: has not all of the {len(pairs.images)} images; delete it and begin again")
        manifest.write_skipped()
        manifest.complete = True
        manifest.write()
    return Prepared(
        folder,
        _pattern(folder, manifest.settings.format, len(shards)),
        sum(own.samples for own in done),
        len(shards),
        sum(own.source_bytes for own in done),
        sum(own.bytes for own in done),
        [own for stretch in sorted(manifest.skipped) for own in manifest.skipped[stretch]],
    )


def _pattern(folder: Path, format: Format, shards: int) -> str:
    if format == "parquet":
        return str(folder / "*.parquet")
    first, last = f"{0:0{_DIGITS}d}", f"{shards - 1:0{_DIGITS}d}"
    return str(folder / f"shards-{first if shards == 1 else f'{{{first}..{last}}}'}.tar")


def _key(pairs: Pairs, place: int) -> str:
    return f"{place:0{max(_DIGITS, len(str(len(pairs.images) - 1)))}d}"


def _name(pairs: Pairs, place: int) -> str:
    """As the source has it: with the folders below its own."""
    return pairs.images.names[place] if isinstance(pairs.images, Files) else pairs.images[place].name


def _roles(pairs: Pairs) -> list[str]:
    return list(_texts(pairs, 0))


def _texts(pairs: Pairs, place: int) -> dict[str, list[str]]:
    if not pairs.has_captions:
        return {}
    columns = {"caption": pairs.captions, "negative_caption": pairs.negatives, "paraphrase": pairs.paraphrases}
    rows = pairs.captions_of_image[place].tolist()
    return {role: [own[row] for row in rows] for role, own in columns.items() if own is not None}
