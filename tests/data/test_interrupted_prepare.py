"""Preparing data after an interruption or a kill gives the same bytes."""

import signal
import tarfile
import time
from pathlib import Path

import pytest

from clipkit.data import read_pairs
from clipkit.data.prepare import prepare
from clipkit.data.shards import Format
from clipkit.errors import Interrupted, OutputError
from tests.data.test_prepare import FORMATS, MODULE, bytes_in, interrupt, is_complete
from tests.forked import Running


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("after", [0, 4, 6])
def test_interrupted_run_resumes_with_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Format, after: int
) -> None:
    (source.parent / "09.png").write_bytes(b"broken")
    pairs, out = read_pairs(str(source)), tmp_path / "out"
    prepare(pairs, tmp_path / "whole", size=24, format=format, shard_size=4, workers=5)
    with monkeypatch.context() as patched:
        interrupt(patched, after)
        with pytest.raises(Interrupted, match=f"{after // 4} of 3 shards") as stop:
            prepare(pairs, out, size=24, format=format, shard_size=4, workers=1)
    assert stop.value.code == 130
    assert not is_complete(out)
    finished = [f"shards-{number:06d}.{format}" for number in range(after // 4)]
    assert sorted(name for name in bytes_in(out) if "shards" in name) == finished
    time.sleep(1.1)  # a time in a header would be different
    images = interrupt(monkeypatch, 99)
    made = prepare(pairs, out, size=24, format=format, shard_size=4, workers=1)
    assert len(images) == 11 - after // 4 * 4  # finished shards are not made again
    assert [skipped.image for skipped in made.skipped] == [1]
    assert bytes_in(out) == bytes_in(tmp_path / "whole")
    assert is_complete(out)


def test_shards_appear_only_when_they_are_finished(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, out = read_pairs(str(source)), tmp_path / "out"
    unfinished = set()

    def observe() -> None:
        unfinished.update(file.name for file in out.glob(".shards*"))
        for file in out.glob("shards*"):
            with tarfile.open(file) as tar:
                assert len(tar.getmembers()) == 8
        assert not is_complete(out)

    interrupt(monkeypatch, 99, observe)
    monkeypatch.setattr(MODULE, "_AHEAD", 1)
    prepare(pairs, out, size=24, shard_size=4, workers=1)
    assert unfinished == {f".shards-00000{number}.tar.writing" for number in range(3)}
    assert not list(out.glob(".*"))


SLOW = """
import sys, time
import clipkit.data.prepare
from clipkit.data import read_pairs
from clipkit.data.prepare import prepare
module = sys.modules["clipkit.data.prepare"]
encode = module.encoded
def slow(*arguments):
    time.sleep(0.15)
    return encode(*arguments)
module.encoded = slow
prepare(read_pairs(sys.argv[1]), sys.argv[2], size=24, shard_size=3, workers=1)
"""


def test_killed_run_resumes_and_two_runs_exclude_each_other(source: Path, tmp_path: Path) -> None:
    pairs, out = read_pairs(str(source)), tmp_path / "out"
    prepare(pairs, tmp_path / "whole", size=24, shard_size=3)
    running = Running(["-c", SLOW, source, out])
    end = time.monotonic() + 60
    while not (list(out.glob("shards-000000.tar")) and list(out.glob(".shards-*"))) and time.monotonic() < end:
        time.sleep(0.01)
    with pytest.raises(OutputError, match="another process"):
        prepare(pairs, out, size=24, shard_size=3)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert list(out.glob(".shards-*.writing"))
    assert not is_complete(out)
    prepare(pairs, out, size=24, shard_size=3)
    assert bytes_in(out) == bytes_in(tmp_path / "whole")
