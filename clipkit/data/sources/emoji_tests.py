"""Sources `twemoji:near_misses`, `twemoji:associations` and `twemoji:landmarks`: small emoji datasets for tests."""

import csv
import json
from pathlib import Path

import numpy as np

from clipkit.data.sources.emoji import EmojiData, build_emoji_data, copy_image, read_emoji
from clipkit.errors import DataError
from clipkit.files import cache_folder, locked, write_whole

_CANDIDATES = 10
_RIGHT = 3
_WORDS = {
    "Activities": "sport", "Animals & Nature": "animal", "Flags": "country", "Food & Drink": "meal",
    "Objects": "tool", "People & Body": "person", "Smileys & Emotion": "feeling", "Symbols": "sign",
    "Travel & Places": "journey",
}  # fmt: skip


def emoji_test(source: str) -> Path:
    """Write the file of an emoji test to the cache folder; return its path.

    Args:
        source: `twemoji:near_misses`, `twemoji:associations` or `twemoji:landmarks`.

    Raises:
        UnreachedError: the packages of the extra `demo` are not installed.
        DataError: the source is unknown.
    """
    writers = {"near_misses": _near_misses, "associations": _associations, "landmarks": _landmarks}
    content = source.removeprefix("twemoji:")
    if content not in writers:
        raise DataError(
            f"{source}: {content!r} is unknown; use one of {', '.join(f'twemoji:{one}' for one in writers)}"
        )
    folder = cache_folder() / "twemoji"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):  # another process may be writing the same files
        return writers[content](build_emoji_data(folder))


def _near_misses(data: EmojiData) -> Path:
    """Write a test with a correct name ("green apple") and a wrong name ("green square") for held-out emoji.

    The two names differ in one word. Emoji without such a wrong name are left out.
    """
    names = _column(data.held_out, "caption")
    alike: dict[tuple[str, ...], list[str]] = {}
    for name in dict.fromkeys(names.values()):
        words = name.split()
        for place in range(len(words)):
            if len(words) > 1:
                alike.setdefault((*words[:place], "", *words[place + 1 :]), []).append(name)
    rows = []
    for image, name in names.items():
        others = next((found for found in alike.values() if name in found and len(found) > 1), None)
        if others is not None:
            rows.append([image, name, others[(others.index(name) + 1) % len(others)]])
    file = data.folder / "near_misses.csv"
    lines = [",".join(f'"{value}"' for value in row) for row in [["image", "caption", "negative_caption"], *rows]]
    write_whole(file, "\n".join(lines) + "\n")
    return file


def _associations(data: EmojiData) -> Path:
    """Write three tests per Unicode group. Each has a word and ten images, of which three belong to the group."""
    groups = _column(data.held_out_labels, "label")
    generator = np.random.default_rng(0)
    rows = []
    for group, word in _WORDS.items():
        inside, outside = ([image for image, own in groups.items() if (own == group) is same] for same in (True, False))
        for _ in range(3):
            right = [inside[k] for k in generator.choice(len(inside), _RIGHT, replace=False)]
            wrong = [outside[k] for k in generator.choice(len(outside), _CANDIDATES - _RIGHT, replace=False)]
            candidates = [(right + wrong)[k] for k in generator.permutation(_CANDIDATES)]
            rows.append({"cue": word, "candidates": candidates, "associations": right})
    file = data.folder / "associations.jsonl"
    write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))
    return file


def _landmarks(data: EmojiData) -> Path:
    """Write an image retrieval test. The queries are the held-out emoji that have variants, e.g. with a skin tone.

    The gallery contains these variants, and the held-out emoji without variants.

    A variant with the gender of the query and another skin tone is an easy match. A variant with another gender and a
    skin tone is a hard match. A variant with another gender and no skin tone is ignored.
    """
    held_out = set(_column(data.held_out, "caption"))
    emoji = read_emoji()
    queries = {one.family: one for one in emoji if one.file in held_out}
    gallery = [one for one in emoji if one.family in queries and one != queries[one.family]]
    truth: dict[str, dict[str, list[int]]] = {}
    for position, one in enumerate(gallery):
        query = queries[one.family]
        if one.without_tone == query.without_tone:
            grade = "easy"
        else:
            grade = "junk" if one.codes == one.without_tone else "hard"
        truth.setdefault(query.file, {"easy": [], "hard": [], "junk": []})[grade].append(position)
    lone = [one for one in queries.values() if one.file not in truth]
    for one in [*gallery, *lone]:
        copy_image(one, data.folder)
    file = data.folder / "landmarks.json"
    names = [one.file for one in [*gallery, *lone]]
    write_whole(file, json.dumps({"imlist": names, "qimlist": list(truth), "gnd": list(truth.values())}))
    return file


def _column(file: Path, name: str) -> dict[str, str]:
    with file.open(encoding="utf-8", newline="") as rows:
        return {row["image"]: row[name] for row in csv.DictReader(rows)}
