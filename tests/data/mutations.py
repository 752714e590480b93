"""Small sound files of every kind, and ways to damage them."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, features
from pyarrow import parquet

HTML = b"<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not found</body></html>\n"
Change = Callable[[bytes, np.random.Generator], bytes]


def _pixels(seed: int = 0, channels: tuple[int, ...] = (3,)) -> np.ndarray:
    """Return a gradient with noise, which no codec compresses to almost nothing."""
    noise = np.random.default_rng(seed).integers(0, 60, (40, 48, *channels))
    return (noise + np.linspace(0, 190, 48).reshape(1, 48, *(1 for _ in channels))).astype(np.uint8)


def _saved(image: Image.Image, kind: str, **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def images() -> dict[str, bytes]:
    """Return an image file of each kind, by name."""
    rgb, grey = Image.fromarray(_pixels()), Image.fromarray(_pixels(channels=()))
    rgba, frames = rgb.copy(), [Image.fromarray(_pixels(seed)).convert("P") for seed in range(3)]
    rgba.putalpha(grey)
    deep = Image.fromarray(_pixels(channels=()).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x829A] = 6, "an image that was turned", 0.01
    palette = rgb.convert("P")
    return {
        "rgb.jpg": _saved(rgb, "JPEG"),
        "cmyk.jpg": _saved(rgb.convert("CMYK"), "JPEG"),
        "grey.jpg": _saved(grey, "JPEG"),
        "progressive.jpg": _saved(rgb, "JPEG", progressive=True),
        "turned.jpg": _saved(rgb, "JPEG", exif=exif),
        "rgb.png": _saved(rgb, "PNG"),
        "palette.png": _saved(palette, "PNG", transparency=3),
        "deep.png": _saved(deep, "PNG"),
        "alpha.png": _saved(rgba, "PNG"),
        "turned.png": _saved(rgb, "PNG", exif=exif),
        "moving.gif": _saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "moving.png": _saved(rgb, "PNG", save_all=True, append_images=[frame.convert("RGB") for frame in frames]),
        "lossy.webp": _saved(rgb, "WEBP", exif=exif),
        "lossless.webp": _saved(rgba, "WEBP", lossless=True),
        "plain.tiff": _saved(rgb, "TIFF"),
        "packed.tiff": _saved(rgb, "TIFF", compression="tiff_lzw"),
        "deep.tiff": _saved(deep, "TIFF"),
        "rgb.bmp": _saved(rgb, "BMP"),
        "palette.bmp": _saved(palette, "BMP"),
        "rgb.ico": _saved(rgb, "ICO", sizes=[(32, 32)]),
        "rgb.jp2": _saved(rgb, "JPEG2000"),
        "rgb.ppm": _saved(rgb, "PPM"),
        "rgb.tga": _saved(rgb, "TGA"),
        "rgb.pcx": _saved(rgb, "PCX"),
        **({"rgb.avif": _saved(rgb, "AVIF")} if "avif" in features.get_supported() else {}),  # from Pillow 11.3 on
        "interlaced.png": _interlaced(),
    }


def _interlaced() -> bytes:
    """Return an interlaced PNG of 4 × 4 pixels, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    pixels = _pixels()
    rows = b"".join(
        b"\0" + row.tobytes() for x, y, across, down in passes for row in pixels[y::down, x::across] if row.size
    )
    high, wide = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", wide, high, 8, 2, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


ROWS = 30


def tables(folder: Path) -> dict[str, bytes]:
    """Return a table or archive of each kind, by name; write their images to `folder`."""
    contents = list(images().items())
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    names, captions, files = [], [], []
    for row in range(ROWS):
        name, content = contents[row % len(contents)]
        names.append(f"photos/{row:02d}-{name}")
        captions.append(f"image {row}, “{name}”, at a café")
        files.append(content)
        (folder / names[-1]).write_bytes(content)
    quoted = [f'"{caption}"' for caption in captions]
    lines = ["image,caption", *(f"{name},{caption}" for name, caption in zip(names, quoted, strict=True))]
    tabs = ["title\turl", *(f"{caption}\t{name}" for name, caption in zip(names, captions, strict=True))]
    objects = [
        json.dumps({"file_name": name, "text": [caption, caption.upper()]}, ensure_ascii=row % 2 == 0)
        for row, (name, caption) in enumerate(zip(names, captions, strict=True))
    ]
    return {
        "t.csv": "\n".join(lines).encode() + b"\n",
        "t.tsv": "\r\n".join(tabs).encode(),
        "t.jsonl": "\n".join(objects).encode(),
        "t.tar": _tar(names, captions, files),
        "paths.parquet": _parquet({"path": names, "caption": captions}),
        "lists.parquet": _parquet({"path": names, "captions": [[own, own + "!"] for own in captions]}),
        "bytes.parquet": _parquet({"image": _embedded(names, files), "caption": captions}),
    }


def _embedded(names: list[str], files: list[bytes]) -> list[dict[str, object]]:
    return [{"bytes": content, "path": name} for name, content in zip(names, files, strict=True)]


def _parquet(columns: dict[str, list]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file, row_group_size=12)
    return file.getvalue()


def _tar(names: list[str], captions: list[str], files: list[bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for row, (name, caption, content) in enumerate(zip(names, captions, files, strict=True)):
            stem, ending = name.rsplit(".", 1)
            text = caption.encode() if row % 2 else json.dumps({"caption": caption}).encode()
            for own, bytes_ in ((ending, content), ("txt" if row % 2 else "json", text)):
                member = tarfile.TarInfo(f"{stem}.{own}")
                member.size = len(bytes_)
                tar.addfile(member, io.BytesIO(bytes_))
    return file.getvalue()


def _cut(content: bytes, generator: np.random.Generator) -> bytes:
    return content[: generator.integers(1, len(content))]


def _flipped(content: bytes, generator: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for place in generator.integers(0, len(content), generator.integers(1, 20)).tolist():
        changed[place] ^= int(generator.integers(1, 256))
    return bytes(changed)


def _flipped_head(content: bytes, generator: np.random.Generator) -> bytes:
    """Change the start of the file, which contains sizes, counts and offsets."""
    head = min(len(content), 600)
    return _flipped(content[:head], generator) + content[head:]


def _flipped_tail(content: bytes, generator: np.random.Generator) -> bytes:
    """Change the end of the file, where Parquet keeps sizes, counts and offsets."""
    head = max(0, len(content) - 600)
    return content[:head] + _flipped(content[head:], generator)


def _span(content: bytes, generator: np.random.Generator) -> tuple[int, int]:
    start = int(generator.integers(0, len(content)))
    return start, min(len(content), start + int(generator.integers(1, 1 + max(1, len(content) // 4))))


def _zeroed(content: bytes, generator: np.random.Generator) -> bytes:
    start, end = _span(content, generator)
    return content[:start] + bytes(end - start) + content[end:]


def _of_ones(content: bytes, generator: np.random.Generator) -> bytes:
    """Overwrite with the largest or most negative numbers."""
    start = int(generator.integers(0, len(content)))
    end = min(len(content), start + int(generator.integers(1, 9)))
    return content[:start] + b"\xff" * (end - start) + content[end:]


def _inserted(content: bytes, generator: np.random.Generator) -> bytes:
    place = int(generator.integers(0, len(content)))
    return content[:place] + generator.bytes(int(generator.integers(1, 300))) + content[place:]


def _removed(content: bytes, generator: np.random.Generator) -> bytes:
    start, end = _span(content, generator)
    return content[:start] + content[end:]


def _doubled(content: bytes, generator: np.random.Generator) -> bytes:
    start, end = _span(content, generator)
    return content[:end] + content[start:end] + content[end:]


def _mistyped(content: bytes, generator: np.random.Generator) -> bytes:
    """Overwrite with characters that have a meaning in tables."""
    signs = [
        b'"',
        b",",
        b"\n",
        b"\r",
        b"\t",
        b"\0",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b"\\",
        b"/",
        b"9",
        b"\xe2\x80\xa8",
        b"a" * 300,
    ]
    for _ in range(int(generator.integers(1, 4))):
        place = int(generator.integers(0, len(content)))
        content = content[:place] + signs[int(generator.integers(0, len(signs)))] + content[place + 1 :]
    return content


def _line_again(content: bytes, generator: np.random.Generator) -> bytes:
    """Repeat or remove lines."""
    lines = content.split(b"\n")
    place = int(generator.integers(0, len(lines)))
    return b"\n".join(
        lines[:place] + lines[place : place + 1] * (2 * int(generator.integers(0, 2))) + lines[place + 1 :]
    )


def _empty(content: bytes, generator: np.random.Generator) -> bytes:
    return b""


def _web_page(content: bytes, generator: np.random.Generator) -> bytes:
    return HTML


def _noise(content: bytes, generator: np.random.Generator) -> bytes:
    return generator.bytes(len(content))


def _other_encoding(content: bytes, generator: np.random.Generator) -> bytes:
    """Save text in another encoding; treat binary data as such a text."""
    encoding = ("utf-16", "utf-16-le", "utf-32", "cp1252", "cp037", "utf-8-sig")[int(generator.integers(0, 6))]
    try:
        return content.decode().encode(encoding, errors="replace")
    except UnicodeDecodeError:
        return content.decode("latin-1").encode()


def _other_kind(content: bytes, generator: np.random.Generator) -> bytes:
    """Replace the content with a file of another kind."""
    others = list(images().values())
    return others[int(generator.integers(0, len(others)))]


# The damage that leads to surprises comes several times.
CHANGES: tuple[Change, ...] = (
    _flipped_head, _flipped, _cut, _mistyped, _flipped_tail, _of_ones, _zeroed, _line_again, _flipped_head, _inserted,
    _removed, _mistyped, _doubled, _flipped_tail, _cut, _of_ones, _other_encoding, _flipped, _other_kind, _noise,
    _web_page, _empty,
)  # fmt: skip


def mutated(content: bytes, count: int, seed: int) -> list[tuple[str, bytes]]:
    """Return `count` damaged copies, each with the name of the change, or of two changes."""
    made = []
    for number in range(count):
        generator = np.random.default_rng([seed, number])
        change = CHANGES[number % len(CHANGES)]
        damaged, name = change(content, generator), change.__name__.strip("_")
        if damaged and generator.random() < 0.15:
            again = CHANGES[int(generator.integers(0, len(CHANGES)))]
            damaged, name = again(damaged, generator), f"{name}+{again.__name__.strip('_')}"
        made.append((f"{number:03d}-{name}", damaged))
    return made
