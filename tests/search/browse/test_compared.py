"""Two indexes in one page: results side by side with ranks in each other, and the queries where they differ."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipkit.errors import DataError, UserError
from clipkit.models import DualEncoder
from clipkit.search import Index
from clipkit.search.browse.app import App
from clipkit.search.browse.http import Request


@pytest.fixture(scope="module")
def indexes(index_folder: Path, model: DualEncoder, tmp_path_factory: pytest.TempPathFactory) -> list[Index]:
    """Two indexes of the same images; the second has other features, its rows in reverse order, and lacks an image."""
    folders = [
        shutil.copytree(index_folder, tmp_path_factory.mktemp("compared") / name) for name in ("before", "after")
    ]
    before, after = (Index(folder, model=model) for folder in folders)
    after.rows = before.rows.take(pa.array(range(14, -1, -1)))
    features = np.random.default_rng(0).normal(size=(15, before.features.shape[1]))
    after.features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)
    files = {kind: entry for kind, entry in after.manifest["files"].items() if kind != "hubs"}
    after.manifest = {**after.manifest, "rows": 15, "files": files}
    return [before, after]


@pytest.fixture(scope="module")
def app(indexes: list[Index]) -> App:
    return App(indexes, queries=["a red square", "a circle"])


def ask(app: App, path: str, body: dict[str, object]) -> dict[str, object]:
    while True:
        answer = json.loads(app.answer(Request("POST", path, json.dumps(body).encode())).content)
        if "working" not in answer:
            return dict(answer)


def test_results_of_both_have_the_rows_of_the_first(app: App, indexes: list[Index]) -> None:
    found = ask(app, "/api/compare", {"query": {"view": "search", "words": ["a red square"]}, "count": 12})
    hits = [index.search("a red square", k=100) for index in indexes]
    names = [[hit.image for hit in several] for several in hits]
    for number, side in enumerate(found["sides"]):
        assert [item["image"] for item in side] == names[number][:12]
        assert [item["score"] for item in side] == pytest.approx([hit.score for hit in hits[number][:12]], abs=1e-6)
        assert all(indexes[0].rows["image"][item["row"]].as_py() == item["image"] for item in side)
        other = names[1 - number]
        ranks = [other.index(item["image"]) + 1 if item["image"] in other else None for item in side]
        assert [item["rank"] for item in side] == ranks
    assert found["common"] == len(set(names[0][:10]) & set(names[1][:10]))


def test_images_like_a_row_of_the_first(app: App, indexes: list[Index]) -> None:
    found = ask(app, "/api/compare", {"query": {"view": "search", "like": [3]}})
    assert [item["image"] for item in found["sides"][1]] == [hit.image for hit in indexes[1].search(like=11)]
    with pytest.raises(DataError, match="no row 99"):
        ask(app, "/api/compare", {"query": {"view": "search", "like": [99]}})
    with pytest.raises(UserError, match="row 15"):
        ask(app, "/api/compare", {"query": {"view": "search", "like": [15]}})


def test_an_image_of_the_second_index_alone_is_served_by_it(indexes: list[Index]) -> None:
    app = App(indexes[::-1])
    found = ask(app, "/api/compare", {"query": {"view": "search", "words": ["a circle"]}})
    alone = [item for item in found["sides"][1] if item.get("index") == 1]
    assert [(item["row"], item["rank"]) for item in alone] == [(15, None)]
    assert app.answer(Request("GET", "/1/thumbnail/15", b"")).kind == "image/jpeg"
    app.close()


def test_queries_where_the_searches_differ(app: App, indexes: list[Index]) -> None:
    found = ask(app, "/api/differences", {})
    assert sorted(item["text"] for item in found["items"]) == ["a circle", "a red square"]
    for item in found["items"]:
        tens = [{hit.image for hit in index.search(item["text"], k=10)} for index in indexes]
        assert item["common"] == len(tens[0] & tens[1])
    of_captions = ask(App(indexes), "/api/differences", {"count": 5})
    count = len(indexes[0].texts)
    assert (of_captions["total"], of_captions["captions"], len(of_captions["items"])) == (count, count, 5)
