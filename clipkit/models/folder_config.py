"""Check of a model folder's configuration for options that would load code."""

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
    """Check that config.json chooses only attention implementations that are part of PyTorch.

    Other code in the folder (`auto_map`) never runs, because all loaders use `trust_remote_code=False`.

    Args:
        folder: folder of the model.
        name: the model's name as the user gave it.

    Raises:
        ModelError: config.json chooses another attention implementation.
    """
    try:
        config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the loader reports it
        return
    for key, value in _choices(config):
        if isinstance(value, str) and value not in _ATTENTION:
            raise ModelError(
                f"{name}: its config.json sets {key} to {value!r}, which would run code that is not "
                f"part of PyTorch; remove {key}, or set it to one of {', '.join(_ATTENTION)}"
            )


def _choices(values: Any) -> Iterator[tuple[str, object]]:
    """Yield each key and value that chooses an attention implementation, at any depth of a configuration."""
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
