"""Image processors of transformers that resize with Pillow. Their names depend on the version of transformers."""

from pathlib import Path
from typing import Any


def read_processor(folder: Path) -> Any:
    """Load the image processor of a folder. Code in the folder never runs."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, **pillow_option())


def pillow_option() -> dict[str, Any]:
    """Return the option of `from_pretrained` that selects an image processor based on Pillow."""
    return {"backend": "pil"} if _has_backends() else {"use_fast": False}


def processor_class(family: str) -> Any:
    """Return the image processor class of a model family.

    Args:
        family: first part of the class name, e.g. `CLIP`.
    """
    import transformers

    return getattr(transformers, f"{family}ImageProcessor{'Pil' if _has_backends() else ''}")


def _has_backends() -> bool:
    """Return whether transformers has separate image processor classes for Pillow (from version 5.4 on)."""
    import transformers

    return hasattr(transformers, "CLIPImageProcessorPil")
