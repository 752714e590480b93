"""Columns of tables in an index are read in the same form as their images and captions."""

import json
from pathlib import Path

import pytest

from clipkit.search.source import read_images

ROWS = [{"image": "a.png", "caption": "a dog", "year": 2020}, {"image": "b.png", "caption": "a cat", "year": 2021}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "image,caption,year\na.png,a dog,2020\nb.png,a cat,2021\n"),
        ("t.csv", "sep=;\nimage;caption;year\na.png;a dog;2020\nb.png;a cat;2021\n"),
        ("t.tsv", "image|caption|year\na.png|a dog|2020\nb.png|a cat|2021\n"),
        ("t.csv", "\ufeffimage\tcaption\tyear\na.png\ta dog\t2020\nb.png\ta cat\t2021\n"),
        ("t.jsonl", "\ufeff" + "\n\n".join(map(json.dumps, ROWS))),
        ("t.json", json.dumps(ROWS)),
        ("t.json", json.dumps({"first": ROWS[0], "second": ROWS[1]})),
    ],
)
def test_columns_of_every_form_of_table(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    images = read_images(str(tmp_path / name))
    assert images.captions == [["a dog"], ["a cat"]]
    assert images.columns.to_pydict() == {"year": [2020, 2021]}
