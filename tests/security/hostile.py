"""Files that are not what their names say, for tests."""

import contextlib
import functools
import io
import os
import socket
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(/tmp/clipkit-was-here) (w) file closefile\n"
    b"showpage\n%%EOF\n"
)


def iptc(content: bytes, size: tuple[int, int] = (8, 8), compression: int = 5) -> bytes:
    """IPTC records that contain a file, which Pillow opens in any format."""

    def record(tag: tuple[int, int], value: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, *tag, len(value)) + value

    head = record((3, 20), struct.pack(">H", size[0])) + record((3, 30), struct.pack(">H", size[1]))
    head += record((3, 60), b"\1\0") + record((3, 120), bytes([compression]))
    return head + bytes([0x1C, 8, 10, 132, 0]) + struct.pack(">I", len(content)) + content + b"\0" * 5


def png(width: int, height: int, color: int = 2, transparent: bool = False) -> bytes:
    """A PNG of one color, which is as small as its compression allows; color 0: 1 bit gray, 2: RGB, 3: palette."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    bits = 8 if color == 2 else 1
    row = 1 + (width * (3 if color == 2 else 1) * bits + 7) // 8
    compressed = zlib.compressobj(9)
    rows = b"".join(compressed.compress(bytes(row * 64)) for _ in range(height // 64))
    rows += compressed.compress(bytes(row * (height % 64))) + compressed.flush()
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))]
    parts += [chunk(b"PLTE", b"\xff\0\0\0\xff\0")] * (color == 3) + [chunk(b"tRNS", b"\0")] * transparent
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", rows), chunk(b"IEND", b"")])


def ico(content: bytes) -> bytes:
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(content), 22) + content


def container(name: str) -> bytes:
    """An ICNS file with a large PNG."""
    inner = png(30_000, 20_000, 0)
    return b"icns" + struct.pack(">I", 16 + len(inner)) + b"ic07" + struct.pack(">I", 8 + len(inner)) + inner


def saved(kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(content, kind, **options)
    return content.getvalue()


@functools.cache
def images() -> dict[str, bytes]:
    """Contents that must never be decoded."""
    strip = saved_strip()
    placeable = struct.pack("<IHhhhhHIH", 0x9AC6CDD7, 0, 0, 0, 100, 100, 96, 0, 0) + b"\1\0\t\0" + bytes(30)
    return {
        "eps.jpg": EPS,
        "eps-in-iptc.jpg": iptc(EPS),
        "eps-in-iptc-in-iptc.jpg": iptc(iptc(EPS)),
        "strip-in-iptc.jpg": iptc(strip),
        "jpeg-in-iptc.jpg": iptc(saved("JPEG")),
        "raw-in-iptc.jpg": iptc(bytes(64), (8, 8), 1),
        "eps-preview.png": saved("EPS"),
        "bomb-in-iptc.png": iptc(png(30_000, 20_000, 0)),
        "bomb.ico": ico(png(30_000, 20_000, 0)),
        "bomb-in-icns.png": container("icns"),
        "picture.wmf.jpg": placeable,
        "grib.jpg": b"GRIB" + bytes(100),
        "bufr.jpg": b"BUFR" + bytes(100),
        "hdf5.jpg": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "fits.jpg": b"SIMPLE  =                    T".ljust(2880),
        "compressed.png": png(13_000, 13_000, 3, transparent=True),
    }


def saved_strip() -> bytes:
    content = io.BytesIO()
    Image.new("L", (4000, 8)).save(content, "PNG")
    return content.getvalue()


@contextlib.contextmanager
def special_files(folder: Path) -> Iterator[list[str]]:
    """Names of paths in a folder that are no regular files, and of sparse and pseudo files."""
    names = {
        "pipe.jpg": lambda path: os.mkfifo(path),
        "folder.jpg": lambda path: path.mkdir(),
        "dangling.jpg": lambda path: path.symlink_to("nowhere.jpg"),
        "loop.jpg": lambda path: path.symlink_to(path.name),
        "zero.jpg": lambda path: path.symlink_to("/dev/zero"),
        "random.jpg": lambda path: path.symlink_to("/dev/urandom"),
        "null.jpg": lambda path: path.symlink_to("/dev/null"),
        "terminal.jpg": lambda path: path.symlink_to("/dev/tty"),
        "messages.jpg": lambda path: path.symlink_to("/proc/kmsg"),
        "events.jpg": lambda path: path.symlink_to("/proc/self/environ"),
        "to-pipe.jpg": lambda path: path.symlink_to("pipe.jpg"),
        "sparse.jpg": lambda path: _sparse(path, 7 << 30),
        "sparse.png": lambda path: _sparse(path, 1 << 40),
    }
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(folder):
        listening.bind("socket.jpg")
        for name, make in names.items():
            make(folder / name)
        yield ["socket.jpg", *names]


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Any]]:
    """Refuse to start processes; return a function that gives the attempts."""
    started: list[Any] = []

    def refuse(*given: Any, **_: Any) -> None:
        started.append(given)
        raise OSError("no process may be started")

    for name in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, refuse)
    for name in ("system", "popen", "posix_spawn", "execv", "execve", "spawnv"):
        monkeypatch.setattr(os, name, refuse)
    return lambda: started
