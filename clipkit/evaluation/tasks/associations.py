"""Association tests: which candidate images belong to a word, e.g. in WinoGAViL."""

from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.data.associations import Associations, read_associations
from clipkit.embedding.bars import Bars
from clipkit.embedding.features import Cache, Features
from clipkit.evaluation.examples import top
from clipkit.evaluation.figures import Column, Columns, Queries, figures
from clipkit.evaluation.predictions import write_columns
from clipkit.evaluation.result import build_result, data_hash
from clipkit.evaluation.result_object import Result
from clipkit.evaluation.tasks.task import Answers, Task
from clipkit.metrics import similarity
from clipkit.models import DualEncoder
from clipkit.models.absent import check_present
from clipkit.processes import Processes

# Metrics by the number of candidates: WinoGAViL has instances with 5, 6, 10 and 12.
_PARTS = {"jaccard": (1, 1 << 30), "jaccard_5-6": (5, 6), "jaccard_10-12": (10, 12)}


def associations(
    model: DualEncoder,
    data: str | Path | Associations,
    *,
    batch_size: int | None = None,
    cache: Cache = None,
    predictions: str | Path | None = None,
    processes: Processes | None = None,
    progress: bool | Bars = False,
) -> Result:
    """Evaluate association tests: which of the candidate images belong to a word (Bitton et al. 2022, WinoGAViL).

    If k images belong to a word, the k candidates with the highest scores are chosen. The metric is the Jaccard index
    of the chosen images and the correct images. `jaccard_5-6` includes only words with 5 or 6 candidates,
    and `jaccard_10-12` only words with 10 to 12. The prompt of a word is e.g. "A dog" or "An ocean", as in DataComp.

    Args:
        model: returned by `clipkit.load`.
        data: a JSON or JSONL file, or tests already read.
        batch_size: images per forward pass; no effect on the metrics. None: chosen for the device.
        cache: folder for cached features. None: the user's cache folder. False: no cache.
        predictions: Parquet file to write, with the chosen images and the Jaccard index of every word.
        processes: processes that share the encoding. All return the result; only the main process writes files.
        progress: True for progress bars on the terminal, or a `Bars` object that creates them.

    Raises:
        DataError: the data cannot be read.
        ModelError: a feature is not finite.
    """
    features = Features(model, batch_size=batch_size, cache=cache, processes=processes, progress=progress)
    check_present(model.name, image=model.image, text=model.text)
    tests = data if isinstance(data, Associations) else read_associations(data)
    hashes = features.content_hashes(tests.images)
    image_features = features.images(tests.images, hashes)
    texts = features.texts([prompt(cue) for cue in tests.cues])
    scores = [
        similarity(text[None], image_features[rows])[0].cpu()
        for text, rows in zip(texts, tests.candidates, strict=True)
    ]
    chosen = [top(values, sum(right)) for values, right in zip(scores, tests.right, strict=True)]
    overlap = [sum(right[one] for one in rows) for rows, right in zip(chosen, tests.right, strict=True)]
    wanted = [sum(right) for right in tests.right]
    queries: dict[str, list[Any]] = {
        "jaccard": [both / (2 * count - both) for both, count in zip(overlap, wanted, strict=True)],
        "candidates": [len(rows) for rows in tests.candidates],
        "cues": tests.cues,
        "chosen": [
            [str(tests.images[rows[k]]) for k in some] for rows, some in zip(tests.candidates, chosen, strict=True)
        ],
    }
    chance = [expected_jaccard(len(right), sum(right)) for right in tests.right]
    if predictions is not None and features.processes.is_main:
        write_columns(predictions, queries, "cues", "jaccard", "chosen")
    flat = [row for rows in tests.candidates for row in rows]
    return build_result(
        "associations",
        model.name,
        {
            "name": tests.name,
            "images": len(tests.images),
            "instances": len(tests.cues),
            "sha256": data_hash(hashes, tests.cues, flat, [int(one) for right in tests.right for one in right]),
        },
        figures(association_columns(queries), _means(queries["candidates"], chance)),
        features=features.counts,
        queries=queries,
        seconds=features.seconds,
    )


def prompt(cue: str) -> str:
    """Return the text that is encoded for a word.

    Example:
        >>> prompt("Ocean"), prompt("dog")
        ('An ocean', 'A dog')
    """
    word = cue.lower()
    return f"An {word}" if word[0] in "aeiou" else f"A {word}"


def expected_jaccard(candidates: int, right: int) -> float:
    """Return the mean Jaccard index of a random choice.

    Args:
        candidates: number of candidate images.
        right: number of correct images, which is also the number of chosen images.

    Example:
        >>> expected_jaccard(2, 1)
        0.5
    """
    ways = comb(candidates, right)
    return sum(
        comb(right, both) * comb(candidates - right, right - both) / ways * both / (2 * right - both)
        for both in range(1, right + 1)
    )


def association_columns(queries: Mapping[str, Sequence[Any]]) -> Columns:
    """Return one value per word for each metric, computed from the part `queries` of a result."""
    values, candidates = np.asarray(queries["jaccard"], dtype=np.float64), np.asarray(queries["candidates"])
    columns = {}
    for name, (low, high) in _PARTS.items():
        rows = np.flatnonzero((low <= candidates) & (candidates <= high))
        if len(rows):
            columns[name] = Column(Queries(rows, among=len(values)), values[rows])
    return columns


def _means(candidates: Sequence[int], chance: Sequence[float]) -> dict[str, float | None]:
    columns = association_columns({"jaccard": chance, "candidates": candidates})
    return {name: column.value for name, column in columns.items()}


def _answers(result: Mapping[str, Any]) -> list[Answers]:
    queries = result["queries"]
    return [Answers("text", queries["cues"], np.asarray(queries["jaccard"], dtype=np.float64), are_ranks=False)]


TASK = Task(
    read=read_associations,
    run=lambda model, data, options: associations(model, data.data, **options),
    columns=lambda result: (association_columns(result["queries"]), {}),
    answers=_answers,
    texts=lambda data: [prompt(cue) for cue in data.data.cues],
)
