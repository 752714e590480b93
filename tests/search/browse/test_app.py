"""Views of the page through its server: their items are those of `Index` and `clipkit.search.curation`."""

import io
import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipkit.models import DualEncoder
from clipkit.search import Index
from clipkit.search.browse.app import App
from clipkit.search.browse.http import Request
from clipkit.search.curation import doubtful_captions, near_duplicates, neighbors_of, outliers
from clipkit.search.labels import doubtful_labels
from clipkit.search.map import map_of
from tests.search.browse.conftest import Client


def test_searches_give_what_the_index_gives(client: Client, browsed: Path, model: DualEncoder) -> None:
    index = Index(browsed, model=model)
    found = client.items(view="search", words=["a red square"], minus=["a circle"], like=[3], where="year > 2012")
    hits = index.search(["a red square"], minus=["a circle"], like=[3], where="year > 2012")
    assert [(item["row"], item["image"], item["captions"]) for item in found] == [
        (hit.row, hit.image, hit.captions) for hit in hits
    ]
    assert [item["score"] for item in found] == pytest.approx([hit.score for hit in hits])
    assert found[0]["columns"] == hits[0].columns
    assert (
        client.items(view="search", words=["a red square"], start=2, count=3)
        == client.items(view="search", words=["a red square"])[2:5]
    )


def test_all_images_and_filters(client: Client) -> None:
    assert [item["row"] for item in client.items(view="all")] == list(range(16))
    assert [item["row"] for item in client.items(view="all", start=10, count=3)] == [10, 11, 12]
    assert {item["columns"]["color"] for item in client.items(view="all", where="color = 'red'")} == {"red"}
    assert "hue" in client.error(view="all", where="hue = 'red'")


def test_near_duplicates_outliers_and_doubtful_captions(client: Client, browsed: Path) -> None:
    index = Index(browsed)
    pairs = near_duplicates(index, 0.5)
    found = client.items(view="duplicates", at_least=0.5, count=200)
    assert [(item["other"]["row"], item["row"]) for item in found] == [(one, other) for one, other, _ in pairs][:200]
    assert [item["row"] for item in client.items(view="outliers")] == [row for row, _ in outliers(index)]
    doubtful = doubtful_captions(index, 100)
    found = client.items(view="captions")
    assert [(item["row"], item["captions"]) for item in found] == [(one.row, [one.caption]) for one in doubtful]
    assert [item.get("other", item)["row"] for item in found] == [one.better_row for one in doubtful]
    red = client.items(view="captions", where="color = 'red'")
    assert [item["captions"] for item in red] == [item["captions"] for item in found if item["row"] < 4]


def test_labels_rows_and_the_map(client: Client, browsed: Path) -> None:
    index = Index(browsed)
    doubtful = doubtful_labels(index, "color", neighbors_of(index))
    found = client.items(view="labels", column="color")
    assert [(item["row"], item["suggested"], item["other"]["row"]) for item in found] == [
        (one.row, one.suggested, one.similar_row) for one in doubtful
    ]
    assert [item["row"] for item in client.items(view="rows", rows=[9, 2, 5], where="color = 'blue'")] == [9]
    assert [item["row"] for item in client.items(view="rows", rows=[9, 2, 5])] == [9, 2, 5]
    points = client.posted("/api/map", {"where": "color = 'red'", "color": "color"})
    assert (points["total"], points["rows"]) == (16, list(range(16)))
    assert [row for row, kept in zip(points["rows"], points["kept"], strict=True) if kept] == [0, 1, 2, 3]
    assert [points["names"][number] for number in points["colors"]] == index.rows["color"].to_pylist()
    assert np.allclose(np.array([points["x"], points["y"]]).T, map_of(index).positions, atol=1e-4)
    for body, named in (({"color": "hue"}, "hue"), ({"where": "hue = 1"}, "hue"), ({"path": "/etc"}, "path")):
        assert named in client.posted("/api/map", body, 400)["error"]


def test_one_index_has_nothing_to_compare_with(client: Client) -> None:
    assert "two indexes" in client.posted("/api/differences", {}, 400)["error"]
    assert "two indexes" in client.posted("/api/compare", {"query": {"view": "search", "words": ["x"]}}, 400)["error"]


def test_an_image_of_the_user(client: Client, browsed: Path) -> None:
    content = io.BytesIO()
    Index(browsed).image(5).save(content, "PNG")
    status, answer, _ = client.ask("POST", "/api/image", content.getvalue())
    assert status == 200
    name = json.loads(answer)["image"]
    assert client.items(view="search", images=[name])[0]["row"] == 5
    assert "no longer" in client.error(view="search", images=["other"])
    for broken in (b"", b"<svg onload='alert(1)'/>", content.getvalue()[:60]):
        assert client.ask("POST", "/api/image", broken)[0] == 400


def test_thumbnails_are_made_once(client: Client, browsed: Path) -> None:
    status, content, headers = client.ask("GET", "/0/thumbnail/2?v=1")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert Image.open(io.BytesIO(content)).format == "JPEG"
    file = browsed / "thumbnails.sqlite"
    stored = sqlite3.connect(file)
    key = Index(browsed).rows["content"][2].as_py()
    assert stored.execute("SELECT jpeg FROM thumbnails WHERE content = ?", (key,)).fetchone() == (content,)
    stored.execute("UPDATE thumbnails SET jpeg = ? WHERE content = ?", (b"kept", key))
    stored.commit()
    stored.close()
    assert client.ask("GET", "/0/thumbnail/2")[1] == b"kept"
    assert client.ask("GET", "/0/image/2")[1] != b"kept"


@pytest.mark.parametrize(
    "path",
    [
        "/0/thumbnail/16", "/0/thumbnail/-1", "/0/thumbnail/999999999", "/0/thumbnail/1/../2",
        "/0/thumbnail/..%2f..%2fetc%2fpasswd", "/../../../../etc/passwd", "/page/../app.py", "/app.py", "//etc/passwd",
        "/0/image/images/00.png", "/0/thumbnail/", "/__init__.py", "/%2e%2e/app.py",
    ],
)  # fmt: skip
def test_only_images_of_the_index_are_served(path: str, client: Client) -> None:
    status, content, _ = client.ask("GET", path)
    assert status == 404
    assert set(json.loads(content)) == {"error"}
    assert client.ask("GET", "/1/thumbnail/0")[0] == 400


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"view": "other"}, "view"),
        ({"view": "all", "path": "/etc"}, "path"),
        ({"view": "search", "words": ["x" * 3000]}, "words"),
        ({"view": "search", "words": ["x"] * 30}, "words"),
        ({"view": "search", "like": ["/etc/passwd"]}, "like"),
        ({"view": "search", "like": [99]}, "99"),
        ({"view": "search"}, "no part with a positive weight"),
        ({"view": "all", "index": 1}, "1"),
        ({"view": "search", "words": ["x"], "precision": 2.0}, "precision"),
        ({"view": "labels", "column": "hue"}, "hue"),
        ({"view": "labels", "column": "../rows"}, "rows"),
        ({"view": "rows", "rows": [16]}, "16"),
        ({"view": "rows", "rows": [0] * 30_000}, "rows"),
    ],
)
def test_invalid_queries_are_one_line(query: dict[str, object], named: str, client: Client) -> None:
    message = client.error(**query)
    assert named in message
    assert "\n" not in message


def test_invalid_json_is_refused(client: Client) -> None:
    for body in (b"", b"{", b"[" * 100_000, b'{"query": {"view": "all"}, "count": 1000000}', b"\xff\xfe"):
        assert client.ask("POST", "/api/list", body)[0] == 400


def test_the_list_names_images_and_captions(client: Client, browsed: Path) -> None:
    rows = Index(browsed).rows.to_pylist()
    entries = [{"row": 3, "caption": None, "reason": "same"}, {"row": 5, "caption": 1, "reason": "is <b>wrong"}]
    status, content, _ = client.ask("POST", "/api/drop", {"index": 0, "entries": entries})
    assert status == 200
    assert [json.loads(line) for line in content.decode().splitlines()] == [
        {"image": rows[3]["image"], "reason": "same"},
        {"image": rows[5]["image"], "caption": rows[5]["captions"][1], "reason": "is <b>wrong"},
    ]
    for entry in ({"row": 16}, {"row": 0, "caption": 9}, {"row": "0"}):
        assert client.ask("POST", "/api/drop", {"entries": [entry]})[0] == 400


def test_the_page_knows_the_index(client: Client, browsed: Path) -> None:
    about = json.loads(client.ask("GET", "/api/about")[1])[0]
    assert (about["name"], about["images"], about["captions"]) == (str(browsed), 16, 32)
    assert about["source"].startswith("/")
    assert set(about["columns"]) == set(about["labels"]) == {"year", "color"}


def test_the_shown_command_can_be_copied(index_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(index_folder, tmp_path / "index")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"source": "/a b/d.csv?image=file&caption=c"}))
    about = json.loads(App([Index(folder)]).answer(Request("GET", "/api/about", b"")).content)[0]
    assert about["source"] == "'/a b/d.csv?image=file&caption=c'"


def test_a_missing_image_is_an_answer(index_folder: Path, tmp_path: Path, model: DualEncoder) -> None:
    folder = shutil.copytree(index_folder, tmp_path / "index")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"source": None}))
    (folder / "thumbnails.sqlite").write_text("damaged")
    app = App([Index(folder, model=model)])
    answer = app.answer(Request("GET", "/0/thumbnail/0", b""))
    assert answer.status == 404
    assert "Python object" in json.loads(answer.content)["error"]
    assert (folder / "thumbnails.sqlite").read_text() == "damaged"
    app.close()
