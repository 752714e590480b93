"""Tiny tasks of mteb with local images, one for each type of task of MIEB that a dual encoder can do."""

import io
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, DatasetDict
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.mocks import mock_tasks as mocks
from PIL import Image

from tests.conftest import COLOURS, SHAPES, draw

CAPTIONS = [f"a {color} {shape} on a gray wall" for color in COLOURS for shape in SHAPES]


def files(seed: int) -> list[dict[str, Any]]:
    """JPEG and PNG files of colored shapes with noise: several sizes, one rotated by EXIF, one of gray values."""
    generator = np.random.default_rng(seed)
    stored = []
    for row, (color, shape) in enumerate((color, shape) for color in COLOURS for shape in SHAPES):
        pixels = np.asarray(draw(color, shape, 40).resize((40 + 5 * row, 64))).astype(int)
        image = Image.fromarray((pixels + generator.integers(-60, 60, pixels.shape)).clip(0, 255).astype(np.uint8))
        exif = image.getexif()
        exif[0x0112] = 6 if row == 3 else 1
        buffer = io.BytesIO()
        (image.convert("L") if row == 5 else image).save(buffer, "PNG" if row % 2 else "JPEG", exif=exif)
        stored.append({"bytes": buffer.getvalue(), "path": None})
    return stored


def table(**columns: list[Any]) -> Dataset:
    """Return a dataset whose columns with files are images."""
    dataset = Dataset.from_dict(columns)
    for name, values in columns.items():
        if isinstance(values[0], dict):
            dataset = dataset.cast_column(name, datasets.Image())
    return dataset


class Local:
    """Task with its data in memory: `splits` returns them."""

    def load_data(self, *_: Any, **__: Any) -> None:
        self.dataset = DatasetDict({name: table(**columns) for name, columns in self.splits().items()})
        self.data_loaded = True

    def splits(self) -> dict[str, dict[str, list[Any]]]:
        raise NotImplementedError


class Classification(Local, mocks.MockImageClassificationTask):
    n_experiments, samples_per_label = 3, 4

    def splits(self) -> dict[str, dict[str, list[Any]]]:
        labels = [row // 4 for row in range(16)]
        train = {"image": files(1) + files(2), "label": labels * 2}
        return {"train": train, "test": {"image": files(0) + files(3), "label": labels * 2}}


class Multilabel(Local, mocks.MockImageMultilabelClassificationTask):
    n_experiments, samples_per_label = 2, 6

    def splits(self) -> dict[str, dict[str, list[Any]]]:
        labels = [[str(row // 4), str(4 + row % 4)] for row in range(16)]
        train = {"image": files(1) + files(2), "label": labels * 2}
        return {"train": train, "test": {"image": files(0), "label": labels}}


class ZeroShot(Local, mocks.MockZeroShotClassificationTask):
    def splits(self) -> dict[str, dict[str, list[Any]]]:
        return {"test": {"image": files(0) + files(1), "label": [row // 4 for row in range(16)] * 2}}

    def get_candidate_labels(self) -> list[str]:
        return [f"a photo of something {color}" for color in COLOURS]


class Clustering(Local, mocks.MockImageClusteringFastTask):
    max_document_to_embed = 32

    def splits(self) -> dict[str, dict[str, list[Any]]]:
        return {"test": {"image": files(0) + files(1), "label": [row // 4 for row in range(16)] * 2}}


class Compositional(Local, mocks.MockImageTextPairClassificationTask):
    """Two images and two captions per row, as in Winoground."""

    images_column_names = ("image_0", "image_1")
    texts_column_names = ("caption_0", "caption_1")

    def splits(self) -> dict[str, dict[str, list[Any]]]:
        left, right, texts = files(0), files(1)[::-1], CAPTIONS
        return {"test": {"image_0": left, "image_1": right, "caption_0": texts, "caption_1": texts[::-1]}}


class VisualSts(Local, mocks.MockVisualSTSTask):
    def splits(self) -> dict[str, dict[str, list[Any]]]:
        scores = np.random.default_rng(0).random(16).tolist()
        return {"test": {"sentence1": files(0), "sentence2": files(1)[::-1], "score": scores}}


class ImagePairs(Local, mocks.MockPairImageClassificationTask):
    def splits(self) -> dict[str, dict[str, list[Any]]]:
        return {"test": {"image1": files(0), "image2": files(1), "labels": [row % 3 == 0 for row in range(16)]}}


class TextSts(Local, mocks.MockSTSTask):
    def splits(self) -> dict[str, dict[str, list[Any]]]:
        scores = np.random.default_rng(1).random(16).tolist()
        return {"test": {"sentence1": CAPTIONS, "sentence2": CAPTIONS[::-1], "score": scores}}


class Retrieval:
    """Retrieval from `queries` to `corpus`; the answers are in the order of the queries."""

    queries: dict[str, list[Any]]
    corpus: dict[str, list[Any]]

    def load_data(self, *_: Any, **__: Any) -> None:
        ids = [str(row) for row in range(16)]
        split = RetrievalSplitData(
            queries=table(id=[f"q{row}" for row in ids], **self.queries),
            corpus=table(id=[f"d{row}" for row in ids], **self.corpus),
            relevant_docs={f"q{row}": {f"d{row}": 1} for row in ids},
            top_ranked=None,
        )
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


def retrieval(category: str) -> Any:
    """Return a task such as t2i, from texts to images; it is images with texts."""
    asked = {"t": {"text": CAPTIONS}, "i": {"image": files(2)}, "it": {"image": files(1), "text": CAPTIONS[::-1]}}
    found = {"t": {"text": CAPTIONS}, "i": {"image": files(0)}}
    queries, corpus = category.split("2")
    base = mocks.MockAny2AnyRetrievalT2ITask
    named = {"name": f"Retrieval-{category}", "category": category}
    modalities = {"modalities": ["image", "text"] if category != "i2i" else ["image"]}
    metadata = base.metadata.model_copy(update=named | modalities)
    kind = type(
        f"Retrieval_{category}",
        (Retrieval, base),
        {"metadata": metadata, "queries": asked[queries], "corpus": found[corpus]},
    )
    return kind()


def all_tasks() -> list[Any]:
    """Return one task of each type."""
    kinds = (Classification, Multilabel, ZeroShot, Clustering, Compositional, VisualSts, ImagePairs, TextSts)
    return [*(kind() for kind in kinds), *map(retrieval, ("t2i", "i2t", "i2i", "it2i"))]
