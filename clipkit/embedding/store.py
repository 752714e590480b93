"""Store: tensors on disk with one row per item, in memory-mapped files that are written once and never changed.

A store consists of parts and an index. Each part contains the rows that one process has written.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from clipkit.embedding.cached import INDEX
from clipkit.files import write_whole
from clipkit.models.cut import OUTSIDE
from clipkit.parsing import parse_json

_ROWS = "rows"
_LENGTHS = "lengths"
_MASK = "attention_mask"
_FORMAT = 1
_BLOCK = 1 << 24  # number of bytes that are read at once to compute a checksum

Inputs = dict[str, Tensor]


class DamagedError(Exception):
    """Error: files of a store are missing or incomplete, or were changed after they were written."""


class PartWriter:
    """Writer of one part of a store: the rows of one process, in the order in which it computes them.

    Args:
        folder: folder of the unfinished store.
        number: number of the part, from 0.
        of_tokens: whether the tensors (B, L, …) contain one vector per token. Padding tokens, at which
            `attention_mask` (B, L) is 0, are then not written. The optional tensor `outside` (B, C) has one vector per
            row.
        dtype: type in which tensors with more than two dimensions are stored; None: unchanged.
    """

    def __init__(self, folder: Path, number: int, of_tokens: bool = False, dtype: torch.dtype | None = None) -> None:
        self.folder = folder
        self.number = number
        self.of_tokens = of_tokens
        self.dtype = dtype
        self.rows = 0
        self.bad: dict[int, str] = {}
        """Unreadable items: row in the store -> reason."""
        self._files: dict[str, tuple[BinaryIO, dict[str, Any]]] = {}

    def append(self, tensors: Mapping[str, Tensor]) -> Int[Tensor, " B"]:
        """Write B rows of each tensor to this part of the store; return the positions of the rows in the part.

        Args:
            tensors: name -> tensor; the same names in each call.

        Raises:
            OSError: the disk is full.
            OverflowError: a value is not finite after its conversion to `dtype`.
        """
        count = len(next(iter(tensors.values())))
        mask = tensors[_MASK].bool() if self.of_tokens else None
        for name, given in tensors.items():
            if mask is not None and name == _MASK:
                self._write(_LENGTHS, mask.sum(dim=1).int())
                continue
            value = given
            if self.dtype is not None and value.ndim > 2:
                value = value.to(self.dtype)
                if not value.isfinite().all():
                    raise OverflowError
            self._write(name, value if mask is None or name == OUTSIDE else value[mask])
        self.rows += count
        return torch.arange(self.rows - count, self.rows)

    def _write(self, name: str, value: Tensor) -> None:
        if name not in self._files:
            file = _file(self.folder, self.number, name).open("wb")
            dtype = str(value.dtype).removeprefix("torch.")
            self._files[name] = file, {"dtype": dtype, "row": list(value.shape[1:]), "bytes": 0, "crc32": 0}
        opened, entry = self._files[name]
        content = _bytes_of(value)
        opened.write(content)
        entry["bytes"] += len(content)
        entry["crc32"] = zlib.crc32(content, entry["crc32"])

    def close(self) -> dict[str, Any]:
        """Close the files of this part; return the entry of the part for `write_index`."""
        for file, _ in self._files.values():
            file.close()
        tensors = {name: entry for name, (_, entry) in self._files.items()}
        return {"number": self.number, "rows": self.rows, "tensors": tensors, "bad": self.bad}


def write_index(
    folder: Path, parts: Sequence[dict[str, Any]], rows: Int[Tensor, "R 2"], of_tokens: bool, about: Mapping[str, Any]
) -> None:
    """Write the index of a store, which completes the store.

    Args:
        folder: folder with the files of all parts.
        parts: result of `PartWriter.close` for each part, ordered by the number of the part.
        rows: number of the part and position in this part, for each row of the store; both -1 for unreadable items.
        of_tokens: as in `PartWriter`.
        about: description of the content.
    """
    content = _bytes_of(rows)
    (folder / f"{_ROWS}.bin").write_bytes(content)
    index = {
        "format": _FORMAT,
        "about": dict(about),
        "of_tokens": of_tokens,
        "parts": list(parts),
        _ROWS: {"count": len(rows), "crc32": zlib.crc32(content)},
    }
    write_whole(folder / INDEX, json.dumps(index))


class Store:
    """Complete store of tensors, opened for reading.

    Args:
        folder: folder of the store.

    Raises:
        DamagedError: files are missing or have a wrong size, or the index is invalid. Only `verify` reads the content.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            index = parse_json((folder / INDEX).read_text(encoding="utf-8"))
            if index["format"] != _FORMAT:
                raise DamagedError
            self.about: dict[str, Any] = index["about"]
            self.of_tokens: bool = index["of_tokens"]
            self.bad = {int(row): str(reason) for part in index["parts"] for row, reason in part["bad"].items()}
            """Unreadable items: row -> reason."""
            self._parts = [part for part in index["parts"] if part["rows"]]
            self._crc32: int = index[_ROWS]["crc32"]
            table = np.fromfile(folder / f"{_ROWS}.bin", dtype="<i8").reshape(index[_ROWS]["count"], 2)
            self._tensors = [self._opened(part) for part in self._parts]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise DamagedError from error
        numbers = [part["number"] for part in self._parts]
        part_of = np.full(max(numbers, default=-1) + 2, -1)  # the last entry belongs to number -1: unreadable items
        part_of[numbers] = np.arange(len(numbers))
        self._table = table
        self._part = part_of[table[:, 0]]
        self._position: NDArray[np.int64] = table[:, 1]
        self._ends = [np.cumsum(tensors[_LENGTHS].numpy()) for tensors in self._tensors] if self.of_tokens else []

    def _opened(self, part: Mapping[str, Any]) -> Inputs:
        opened = {}
        for name, entry in part["tensors"].items():
            # Mode c (copy-on-write), because torch warns about read-only memory; nothing is written to it.
            memory = np.memmap(_file(self.folder, part["number"], name), dtype=np.uint8, mode="c")
            if memory.nbytes != entry["bytes"]:
                raise DamagedError
            opened[name] = torch.from_numpy(memory).view(getattr(torch, entry["dtype"])).view(-1, *entry["row"])
        return opened

    def __len__(self) -> int:
        return len(self._part)

    @property
    def nbytes(self) -> int:
        """Total size of the stored tensors in bytes."""
        return sum(entry["bytes"] for part in self._parts for entry in part["tensors"].values())

    def exist(self, rows: Int[Tensor, " B"]) -> Bool[Tensor, " B"]:
        """Return a mask of the given rows, False for rows whose item could not be read."""
        return torch.from_numpy(self._part[rows.numpy()] >= 0)

    def lengths(self, rows: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Return the number of tokens of each given row; 0 if the store does not contain tokens."""
        if not self.of_tokens:
            return torch.zeros(len(rows), dtype=torch.int64)
        places = zip(self._part[rows.numpy()].tolist(), self._position[rows.numpy()].tolist(), strict=True)
        return torch.tensor([int(self._tensors[part][_LENGTHS][position]) for part, position in places])

    def verify(self, share: slice = slice(None)) -> None:
        """Read the files of a store and compare their checksums with the index.

        Args:
            share: parts to read; default: all.

        Raises:
            DamagedError: a file was changed or cannot be read.
        """
        if zlib.crc32(self._table.tobytes()) != self._crc32:
            raise DamagedError
        parts = self._parts[share]
        files = [(_file(self.folder, p["number"], n), e["crc32"]) for p in parts for n, e in p["tensors"].items()]
        with ThreadPoolExecutor(4) as pool:
            if not all(pool.map(_is_unchanged, files)):
                raise DamagedError

    def take(self, rows: Int[Tensor, " B"], padding: Mapping[str, int] | None = None) -> Inputs:
        """Return the stored tensors of the given rows, by name. Tokens are padded to the longest of these rows.

        Args:
            rows: positions of stored rows in the store.
            padding: name of a tensor -> its padding value; 0 for the other tensors.
        """
        numbers = rows.numpy()
        parts, positions = self._part[numbers], self._position[numbers]
        if self.of_tokens:
            return self._tokens(parts, positions, padding or {})
        taken: Inputs = {}
        for part, tensors in enumerate(self._tensors):
            here = torch.from_numpy(np.flatnonzero(parts == part))
            if len(here):
                wanted = torch.from_numpy(positions[here.numpy()])
                for name, tensor in tensors.items():
                    if len(here) == len(rows):
                        taken[name] = tensor.index_select(0, wanted)
                        continue
                    if name not in taken:
                        taken[name] = tensor.new_empty(len(rows), *tensor.shape[1:])
                    taken[name][here] = tensor.index_select(0, wanted)
        return taken

    def _tokens(self, parts: NDArray[np.int64], positions: NDArray[np.int64], padding: Mapping[str, int]) -> Inputs:
        ends = [int(self._ends[part][position]) for part, position in zip(parts, positions, strict=True)]
        lengths = [
            int(self._tensors[part][_LENGTHS][position]) for part, position in zip(parts, positions, strict=True)
        ]
        first = self._tensors[parts[0]]
        taken = {
            name: tensor.new_full((len(parts), max(lengths), *tensor.shape[1:]), padding.get(name, 0))
            for name, tensor in first.items()
            if name not in (_LENGTHS, OUTSIDE)
        }
        for row, (part, end, length) in enumerate(zip(parts.tolist(), ends, lengths, strict=True)):
            for name, value in taken.items():
                value[row, :length] = self._tensors[part][name][end - length : end]
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        if OUTSIDE in first:
            rows = zip(parts.tolist(), positions.tolist(), strict=True)
            taken[OUTSIDE] = torch.stack([self._tensors[part][OUTSIDE][position] for part, position in rows])
        return {**taken, _MASK: mask.long()}


def _file(folder: Path, number: int, name: str) -> Path:
    return folder / f"{number}.{name}.bin"


def _bytes_of(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _is_unchanged(file_and_sum: tuple[Path, int]) -> bool:
    file, expected = file_and_sum
    crc = 0
    try:
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK):
                crc = zlib.crc32(block, crc)
    except OSError:
        return False
    return crc == expected
