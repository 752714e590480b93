"""`load`: from what a user calls a model to a DualEncoder."""

import json
from pathlib import Path

import torch

from clipkit.errors import ModelError
from clipkit.models.composed import LAYOUT_FILE, load_composed
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.hub import local_folder
from clipkit.models.transformers_clip import load_transformers_clip


def load(
    name: str | Path, *, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
) -> DualEncoder:
    """A dual encoder in evaluation mode.

    Args:
        name: a Hub repository `org/name[@revision]`, a folder (transformers CLIP or clipkit), or a clipkit run.
        device: where to put it; the GPU where there is one.
        dtype: type of the weights; features are float32 whatever it is.

    Raises:
        ModelError: there is no such model, or it is of a kind that cannot be opened.

    Example:
        >>> model = load("openai/clip-vit-base-patch32")   # doctest: +SKIP
    """
    model = _open(str(name))
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device=device, dtype=dtype).eval()


def _open(name: str) -> DualEncoder:
    folder = local_folder(name)
    if (folder / "recipe.yaml").is_file():
        if not (folder / "model").is_dir():
            raise ModelError(f"{name}: this run has not saved a model yet; let it finish with --resume")
        folder = folder / "model"
    if (folder / LAYOUT_FILE).is_file():
        return load_composed(folder, name)
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(
            f"{name}: holds no model that clipkit knows; it needs {LAYOUT_FILE} (clipkit) or config.json (transformers)"
        ) from None
    if kind != "clip":
        raise ModelError(f"{name}: is a transformers model of type {kind}; of transformers' models, clip can be opened")
    return load_transformers_clip(folder, name)
