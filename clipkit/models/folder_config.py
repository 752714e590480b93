"""Check of the configuration of a model folder, which must not choose options that load code."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipkit.errors import ModelError
from clipkit.parsing import parse_json

# transformers reads any other name as the name of kernels, which it would download from the Hub and run.
_ATTENTION = ("eager", "sdpa", "flex_attention")
_NAMES = (
    "_attn_implementation",
    "attn_implementation",
    "_attn_implementation_internal",
    "_attn_implementation_autoset",
)


def check_config(folder: Path, name: str) -> None:
    """Refuse a folder whose config.json chooses an attention implementation that is not part of PyTorch.

    Code beside the weights (`auto_map`) is never run: all loaders get `trust_remote_code=False`.

    Raises:
        ModelError: the configuration chooses such an implementation.
    """
    try:
        config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the loader reports it
        return
    for key, value in _choices(config):
        if isinstance(value, str) and value not in _ATTENTION:
            raise ModelError(
                f"{name}: its config.json sets {key} to {value!r}, which would run code that is not "
                f"part of PyTorch; remove the line, or use one of {', '.join(_ATTENTION)}"
            )


def _choices(values: Any) -> Iterator[tuple[str, object]]:
    """Yield the keys and values that choose attention implementations, at any depth of a configuration."""
    waiting = [values]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            for key, value in part.items():
                if key in _NAMES:
                    yield from ((key, each) for each in (value.values() if isinstance(value, dict) else [value]))
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
