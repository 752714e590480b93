"""Labelled images from Flickr8k's captions, for measuring image towers: train.csv and dev.csv with image and label.

    python benchmarks/flickr8k_labels.py ../shared/flickr8k flickr8k_labels

An image is of a class when at least three of its five captions name it and no other class reaches three. Images of
no class or of several are left out.
"""

import argparse
import csv
import re
from pathlib import Path

from clipkit.data import Pairs, read_pairs

CLASSES = {
    "dog": r"dogs?|pupp(y|ies)",
    "bicycle": r"bikes?|bicycles?|bicyclists?|cyclists?|biker|motorcycles?|motorbikes?|dirtbikes?",
    "ball game": r"football|soccer|basketball|baseball|rugby|tennis|volleyball|hockey|lacrosse",
    "snow": r"snow\w*|ski\w*|sled\w*",
    "water": r"water|pool|ocean|sea|lake|river|surf\w*|waves?|beach|swim\w*",
    "climbing": r"climb\w*|cliff|rock face",
    "skateboard": r"skateboard\w*|skater|skate",
}
_AGREE = 3


def labels_of(pairs: Pairs) -> dict[Path, str]:
    """The class of each image that has one."""
    found = {}
    for image, rows in zip(pairs.images, pairs.captions_of_image, strict=True):
        said = [pairs.captions[row].lower() for row in rows]
        own = [
            name
            for name, words in CLASSES.items()
            if sum(re.search(rf"\b({words})\b", caption) is not None for caption in said) >= _AGREE
        ]
        if len(own) == 1:
            found[image] = own[0]
    return found


def main() -> None:
    """Write both files and print how many images they have."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part in ("train", "dev"):
        labels = labels_of(read_pairs(str(arguments.flickr8k / f"{part}.csv")))
        with (arguments.out / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["image", "label"])
            rows.writerows([str(image.resolve()), label] for image, label in labels.items())
        print(f"{part}: {len(labels)} images")


if __name__ == "__main__":
    main()
