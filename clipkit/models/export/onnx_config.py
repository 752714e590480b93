"""Contents of clipkit_onnx.json: the settings with which example.py prepares images and captions."""

from pathlib import Path
from typing import Any

from torch import Tensor

from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.export.tokenizers import as_transformers, padding_token
from clipkit.models.preprocess import PatchGrid, Preprocess
from clipkit.models.tokenizer import OpenClipTokenizer


def preprocessing(preprocess: Preprocess) -> dict[str, Any] | None:
    """Return the settings of the image preprocessing for JSON; None if example.py does not support them."""
    steps, colors = preprocess.steps, {"mean": list(preprocess.mean), "std": list(preprocess.std)}
    if steps is None:
        return None
    if isinstance(steps, PatchGrid):
        return {"patch": steps.patch, "patches": steps.patches, "interpolation": steps.interpolation, **colors}
    return {
        "size": preprocess.image_size,
        "resize": steps.size,
        "resize_mode": steps.mode,
        "interpolation": steps.interpolation,
        "crop_offset": steps.crop_offset,
        **colors,
    }


def write_tokenizer(model: DualEncoder, inputs: dict[str, Tensor], folder: Path) -> dict[str, Any]:
    """Write tokenizer.json into a folder, and return the text settings for example.py.

    Args:
        model: the exported model.
        inputs: inputs of the text tower for any captions; only their names matter.
        folder: folder of the export.
    """
    tokenizer: Any = model.text.tokenize
    backend = getattr(as_transformers(tokenizer, model.name), "backend_tokenizer", None)
    pad_token, pad_id = padding_token(tokenizer)
    if backend is not None:
        # The tokenizer still has the truncation and padding of its last call; remove them.
        backend.no_truncation()
        backend.no_padding()
        backend.save(str(folder / "tokenizer.json"))
    else:
        tokenizer.save(folder)
    return {
        "inputs": list(inputs),
        "context_length": tokenizer.context_length,
        "fixed_length": "attention_mask" not in inputs or not model.text.padding_may_be_cut,
        "pad_id": pad_id,
        "pad_token": pad_token if backend is not None else None,
        "lowercase": tokenizer.lower,
        "repair": isinstance(tokenizer, OpenClipTokenizer),
    }
