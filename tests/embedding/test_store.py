"""Stores of tensors on disk: rows come back as they were, and a damaged, used or too large store is handled."""

import os
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clipkit.embedding import cached
from clipkit.embedding.cached import is_used, remove, stored_inputs
from clipkit.embedding.store import PartWriter, Store
from clipkit.embedding.store_folder import HeldStore, Machine, NotStoredError, build_store, make_room, open_store
from clipkit.processes import Processes


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path))


def machine() -> Machine:
    return Machine.of(Processes.alone())


def build(key: str, rows: Tensor) -> HeldStore:
    return build_store(key, machine(), len(rows), lambda writer, share: writer.append({"x": rows[share]}), {})


def test_rows_of_several_parts_come_back_in_any_order(tmp_path: Path) -> None:
    from clipkit.embedding.store import write_index

    rows = torch.randn(7, 3, 2)
    parts = [PartWriter(tmp_path, number) for number in (0, 1)]
    first, second = parts[0].append({"x": rows[[1, 0, 2]]}), parts[1].append({"x": rows[3:]})
    table = torch.stack([torch.tensor([0] * 3 + [1] * 4), torch.cat([first[[1, 0, 2]], second])], dim=1)
    write_index(tmp_path, [part.close() for part in parts], table, False, {})
    store = Store(tmp_path)
    store.verify()
    for order in (torch.tensor([6, 0, 3, 1]), torch.tensor([2, 1]), torch.arange(7)):
        assert torch.equal(store.take(order)["x"], rows[order])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_tokens_are_stored_without_padding(tmp_path: Path, dtype: torch.dtype) -> None:
    lengths = torch.tensor([2, 5, 1])
    mask = (torch.arange(5) < lengths[:, None]).long()
    states, ids = torch.randn(3, 5, 4).to(dtype) * mask[:, :, None], torch.randint(1, 99, (3, 5)) * mask

    outside = torch.randn(3, 6)

    def write(writer: PartWriter, share: slice) -> Tensor:
        return writer.append({"attention_mask": mask, "input_ids": ids, "activations": states, "outside": outside})

    store = build_store("tokens", machine(), 3, write, {}, of_tokens=True)
    assert store.nbytes == int(lengths.sum()) * (4 * dtype.itemsize + 8) + 3 * 4 + outside.nbytes
    taken = store.take(torch.tensor([2, 0]), {"input_ids": 7})
    assert torch.equal(taken["attention_mask"], mask[[2, 0], :2])
    assert torch.equal(taken["activations"], states[[2, 0], :2])
    assert torch.equal(taken["outside"], outside[[2, 0]])
    assert taken["input_ids"].tolist() == [[int(ids[2, 0]), 7], ids[0, :2].tolist()]
    assert store.lengths(torch.arange(3)).tolist() == lengths.tolist()


def test_a_type_that_overflows_is_refused() -> None:
    def write(writer: PartWriter, share: slice) -> Tensor:
        return writer.append({"activations": torch.full((1, 2, 2), 1e6)})

    with pytest.raises(NotStoredError, match="bf16"):
        build_store("large", machine(), 1, write, {}, dtype=torch.float16)
    assert not stored_inputs()


@pytest.mark.parametrize("file", ["0.x.bin", "rows.bin", "index.json"])
@pytest.mark.parametrize("change", ["flip", "cut", "remove"])
def test_damage_is_noticed_and_the_store_removed(
    file: str, change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = build("key", torch.randn(5, 2)).folder
    assert open_store("key", machine()) is not None
    content = bytearray((folder / file).read_bytes())
    if change == "flip":
        content[len(content) // 2] ^= 1
    (folder / file).unlink()
    if change != "remove":
        (folder / file).write_bytes(content[: -1 if change == "cut" else None])
    assert open_store("key", machine()) is None
    assert "damaged" in caplog.text or (file, change) == ("index.json", "remove")
    assert open_store("key", machine()) is None
    assert len(build("key", torch.randn(5, 2))) == 5


def test_a_failure_leaves_nothing_behind() -> None:
    def fails(writer: PartWriter, share: slice) -> Tensor:
        writer.append({"x": torch.ones(1, 2)})
        raise OSError(28, "No space left on device")

    with pytest.raises(NotStoredError, match="No space left"):
        build_store("key", machine(), 2, fails, {})
    assert not stored_inputs()


def test_the_least_recently_used_are_removed_but_nothing_that_is_in_use() -> None:
    for number, key in enumerate(("old", "used", "new")):
        folder = build(key, torch.zeros(1000, 25)).folder  # 100 kB
        os.utime(folder / ".lock", times=(number, number))
    held = open_store("used", machine())
    assert held is not None
    os.utime(held.folder / ".lock", times=(1, 1))
    assert is_used(held.folder)
    assert not make_room(100_000, 400_000, machine())
    assert {one.folder.name for one in stored_inputs()} == {"used", "new"}
    assert not make_room(100_000, 250_000, machine())
    assert {one.folder.name for one in stored_inputs()} == {"used"}
    assert "data.store.disk" in make_room(200_000, 250_000, machine())
    assert not remove(held.folder)
    del held
    assert remove(cached.stores_folder() / "used")


def test_a_full_disk_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1_000_000}))
    assert "1.0 MB" in make_room(2_000_000, 10**9, machine())


def test_use_is_recorded() -> None:
    folder = build("key", torch.zeros(1, 1)).folder
    os.utime(folder / ".lock", times=(1, 1))
    assert stored_inputs()[0].used == 1
    open_store("key", machine())
    assert time.time() - stored_inputs()[0].used < 60
