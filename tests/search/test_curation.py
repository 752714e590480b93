"""Near duplicates and captions of other images are found."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from clipkit.models import DualEncoder
from clipkit.search import Index
from clipkit.search.curation import doubtful_captions, near_duplicates


def test_near_duplicates_are_all_close_pairs(index_folder: Path, model: DualEncoder) -> None:
    index = Index(index_folder)
    features = index.features.astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    cosines = features @ features.T
    least = float(np.sort(cosines[np.triu_indices(16, 1)])[-8])
    pairs = near_duplicates(index, least - 1e-6)
    assert {(one, other) for one, other, _ in pairs} == {
        (one, other) for one in range(16) for other in range(one + 1, 16) if cosines[one, other] >= least
    }


def test_a_caption_of_another_image_is_the_most_doubtful(index_folder: Path) -> None:
    index = Index(index_folder)
    images = index.features
    rows = {text: row for row, several in enumerate(index.rows["captions"].to_pylist()) for text in several}
    texts = images[[rows[text] for text in index.texts]]
    other = int((images.astype(np.float32) @ images[0].astype(np.float32)).argmin())
    texts[0] = images[other]
    index.text_features = texts
    first = doubtful_captions(index, 3)[0]
    assert (first.row, first.caption) == (rows[index.texts[0]], index.texts[0])
    assert np.allclose(images[first.better_row], images[other])
    assert first.score < first.better_score == pytest.approx(1, abs=0.01)


def test_a_caption_unlike_the_others_of_its_image_is_doubtful(index_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(index_folder, tmp_path / "copy")
    files = json.loads((folder / "manifest.json").read_text())["files"]
    texts = np.load(folder / files["textfeatures"]["name"]).astype(np.float64)
    index = Index(folder)
    found = {(entry.row, entry.caption): entry for entry in doubtful_captions(index, 100)}
    numbers = {text: n for n, text in enumerate(index.texts)}
    assert len(found) == 32
    for row, several in enumerate(index.rows["captions"].to_pylist()):
        one, other = (texts[numbers[text]] for text in several)
        for caption, feature in zip(several, (one, other), strict=True):
            similarities = texts @ feature
            low, middle = np.quantile(similarities, [0.25, 0.5])
            expected = (one @ other - middle) / ((middle - low) / 0.6745)
            assert found[row, caption].agreement == pytest.approx(expected, rel=1e-3, abs=1e-3)
    order = [entry.fit + entry.agreement for entry in doubtful_captions(index, 100) if entry.agreement is not None]
    assert order == sorted(order)
