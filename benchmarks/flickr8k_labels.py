"""Derive image labels from Flickr8k's captions, for measuring image towers: train.csv and dev.csv with image and label.

    python benchmarks/flickr8k_labels.py ../shared/flickr8k flickr8k_labels

An image belongs to a class if at least three of its five captions name the class and no other class reaches three.
Images of no class or of several classes are left out.
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
    """Return the class of each image that belongs to exactly one."""
    labels = {}
    for image, rows in zip(pairs.images, pairs.captions_of_image, strict=True):
        captions = [pairs.captions[row].lower() for row in rows]
        classes = [
            name
            for name, words in CLASSES.items()
            if sum(re.search(rf"\b({words})\b", caption) is not None for caption in captions) >= _AGREE
        ]
        if len(classes) == 1:
            labels[image] = classes[0]
    return labels


def main() -> None:
    """Write both files and print the number of images in each."""
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
