from pathlib import Path

import pytest

from clipkit.data import AnyFeed, IndexedFeed, read_pairs, stream_feed
from clipkit.errors import DataError


def test_indexed_and_streamed_data_have_one_interface(shapes: Path, tmp_path: Path) -> None:
    pairs = read_pairs(str(shapes / "captions.csv"))
    stream = stream_feed("http://127.0.0.1:9/a-{0..2}.tar", samples=100)
    assert stream is not None
    feeds: list[AnyFeed] = [IndexedFeed(pairs), stream]
    assert [feed.can_index for feed in feeds] == [True, False]
    assert [feed.depends_on_workers for feed in feeds] == [False, True]
    assert [feed.name for feed in feeds] == [pairs.name, "http://127.0.0.1:9/a-{0..2}.tar"]
    assert feeds[0].counts == {"images": len(pairs.images), "captions": len(pairs.captions)}
    assert feeds[1].counts == {"images": 100, "captions": 100}
    assert feeds[0].fingerprint == pairs.fingerprint != feeds[1].fingerprint
    assert feeds[0].image_name(3) == str(pairs.images[3])
    assert feeds[1].image_name(255) == "sample 00000000000000ff"
    assert [len(feed.pairs.images) for feed in feeds] == [len(pairs.images), 0]
    assert [feed.sampler("one", 10, 0).steps_per_epoch for feed in feeds] == [len(pairs.images) // 10, 10]
    for feed in feeds:
        with pytest.raises(DataError, match="batch_size is 101"):
            feed.sampler("one", 101, 0)


def test_a_source_that_is_not_a_stream_has_no_stream_feed() -> None:
    assert stream_feed("photos.csv", samples=None) is None
    with pytest.raises(DataError, match=r"data\.samples"):
        stream_feed("http://127.0.0.1:9/a.tar", samples=None)
