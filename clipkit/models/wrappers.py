"""Checks of tensor names in weight files: changes by model wrappers, and unused tensors."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from clipkit.errors import ModelError

log = logging.getLogger("clipkit")

# torch.compile, data-parallel wrappers, FSDP, activation checkpointing, Lightning Fabric, PEFT.
_PARTS = (
    "_orig_mod",
    "module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "base_model\\.model",
)
_WRAPPED = rf"(^|\.)(?:(?:{'|'.join(_PARTS)})\.)+"
_UNMERGED = ".base_layer."
# Constants that older versions of transformers saved.
_BUFFERS = ("position_ids", "inv_freq")


def unwrapped(name: str) -> str:
    """Return the name of a tensor without the parts that model wrappers add, e.g. torch.compile or FSDP.

    Example:
        >>> unwrapped("module._orig_mod.text_model.final_layer_norm.bias")
        'text_model.final_layer_norm.bias'
    """
    return re.sub(_WRAPPED, r"\1", name)


def key_mapping(names: Iterable[str]) -> dict[str, str] | None:
    """Return the `key_mapping` option of `from_pretrained` that removes wrapper prefixes from tensor names.

    The result is None if no name has such a prefix.
    """
    return {_WRAPPED: r"\1"} if any(unwrapped(name) != name for name in names) else None


def check_merged(names: Iterable[str], file: Path) -> None:
    """Check that a file contains no unmerged PEFT adapters, which change the names of the weights.

    Raises:
        ModelError: a layer is wrapped by an adapter of PEFT.
    """
    for name in names:
        if _UNMERGED in name:
            raise ModelError(
                f"{file}: the weights contain adapters that are not merged ({name}); merge them with PEFT's "
                "merge_and_unload() and save the model again"
            )


def unknown_prefix(missing: Iterable[str], unexpected: Iterable[str]) -> str | None:
    """Return the prefix that a file has before the names of all missing tensors, or None.

    Args:
        missing: names that only the model has.
        unexpected: names that only the file has.

    Example:
        >>> unknown_prefix(["layer.bias"], ["clip.layer.bias"])
        'clip.'
    """
    wanted, extra = list(missing), set(unexpected)
    if not wanted:
        return None
    prefixes = (name.removesuffix(wanted[0]) for name in sorted(extra) if name.endswith(f".{wanted[0]}"))
    return next((prefix for prefix in prefixes if all(prefix + name in extra for name in wanted)), None)


def warn_unused(names: Iterable[str], file: Path) -> None:
    """Log one warning with the names of tensors in a file that the model does not have."""
    unused = sorted(name for name in names if not name.endswith(_BUFFERS))
    if unused:
        shown = ", ".join(unused[:3]) + (", …" if len(unused) > 3 else "")
        log.warning(
            "%s: %d tensors in the weights are not part of the model and were ignored: %s; if they are adapters, "
            "merge them before you save the model",
            *(file, len(unused), shown),
        )
