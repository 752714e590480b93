"""Check of the entries of an index's manifest, which may be damaged or edited by hand."""

from collections.abc import Callable, Mapping
from typing import Any

_LARGEST = 1e15


def invalid_entry(manifest: Mapping[str, Any]) -> str | None:
    """Return the name of the first entry of a manifest that is missing or invalid.

    The result is None if all entries are valid.
    """
    given = {"texts": 0, "relevance": {}, "engine": None, **manifest}
    return next((name for name, is_valid in _ENTRIES.items() if name not in given or not is_valid(given)), None)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -_LARGEST < value < _LARGEST


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_number, values))


def _is_model(model: Any) -> bool:
    return isinstance(model, dict) and isinstance(model.get("name"), str)


def _are_probes(probes: Any, width: Any) -> bool:
    return isinstance(probes, dict) and all(
        isinstance(rows, list) and all(_are_numbers(row) and len(row) == width for row in rows)
        for rows in probes.values()
    )


def _is_engine(engine: Any) -> bool:
    return engine is None or (
        isinstance(engine, dict)
        and isinstance(engine.get("name"), str)
        and isinstance(engine.get("collection", ""), str)
        and _is_number(engine.get("recall@10"))
        and _is_count(engine.get("queries"))
    )


def _is_calibration(values: Any) -> bool:
    return (
        isinstance(values, dict)
        and values.keys() == {"mean", "scale", "weights", "bias", "queries", "curve"}
        and all(_are_numbers(values[name]) and len(values[name]) == _EVIDENCE for name in ("mean", "scale", "weights"))
        and 0 not in values["scale"]
        and _is_number(values["bias"])
        and isinstance(values["curve"], list)
        and all(_are_numbers(point) and len(point) == 2 for point in values["curve"])
    )


_EVIDENCE = 7  # width of the array that `clipkit.search.relevance.Nulls.evidence` returns
_ENTRIES: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "rows": lambda given: _is_count(given["rows"]),
    "captions": lambda given: _is_count(given["captions"]),
    "texts": lambda given: _is_count(given["texts"]),
    "width": lambda given: _is_count(given["width"]),
    "model": lambda given: _is_model(given["model"]),
    "source": lambda given: given["source"] is None or isinstance(given["source"], str),
    "features": lambda given: isinstance(given["features"], dict) and _is_number(given["features"].get("max_error")),
    "probes": lambda given: _are_probes(given["probes"], given["width"]),
    "relevance": lambda given: (
        isinstance(given["relevance"], dict) and all(map(_is_calibration, given["relevance"].values()))
    ),
    "engine": lambda given: _is_engine(given["engine"]),
}
