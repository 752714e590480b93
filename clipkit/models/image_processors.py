"""Image processors of transformers that resize with Pillow.

Their class names, and the arguments that choose them, depend on the version of transformers.
"""

from pathlib import Path
from typing import Any


def read_processor(folder: Path) -> Any:
    """Open the image processor that a folder describes; never runs code from the folder."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, **pillow_option())


def pillow_option() -> dict[str, Any]:
    """Return the option of `from_pretrained` that chooses the image processor with Pillow."""
    return {"backend": "pil"} if _has_backends() else {"use_fast": False}


def processor_class(family: str) -> Any:
    """Return the class of a family's image processors, e.g. `CLIP`."""
    import transformers

    return getattr(transformers, f"{family}ImageProcessor{'Pil' if _has_backends() else ''}")


def _has_backends() -> bool:
    """Return True from transformers 5.4 on, where only classes with `Pil` in their names resize with Pillow."""
    import transformers

    return hasattr(transformers, "CLIPImageProcessorPil")
