"""Read the data given as arguments and print the result as JSON; run by test_hub_data."""

import json
import sys

from clipkit.data import read_pairs, stream_feed
from clipkit.errors import DataError


def captions_of(source: str) -> list[str]:
    streamed = stream_feed(source, 1)
    if streamed is None:
        return list(read_pairs(source).captions)
    samples = [sample for part in streamed.stream.parts for sample in streamed.stream.samples(part)]
    assert all(len(sample.image.read_bytes()) for sample in samples)
    return [caption for sample in samples for caption in sample.captions]


if __name__ == "__main__":
    found = []
    for source in sys.argv[1:]:
        try:
            found.append({"captions": captions_of(source)})
        except DataError as error:
            found.append({"error": str(error)})
    print(json.dumps(found))
