"""Composed models: any timm image tower and any transformers text encoder, with projections into a shared space."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipkit.models.absent import absent_image_tower, absent_text_tower
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.fit import check_fit
from clipkit.models.layers import Layered, set_coordinates
from clipkit.models.projections import ResidualProjection, new_projection, projection_of_coordinates
from clipkit.models.quiet import as_model_error, without_weight_bars
from clipkit.models.text_encoders import text_tower
from clipkit.models.timm_towers import data_config, timm_tower
from clipkit.models.towers import ImageTower, TextTower
from clipkit.models.weights import check_safetensors, save_tensors
from clipkit.parsing import parse_json
from clipkit.recipe import ImageTowerRecipe, ModelRecipe, TextTowerRecipe

LAYOUT_FILE = "clipkit.json"
_HEADS_FILE = "heads.safetensors"
_COORDINATES = "coordinates."
_PROJECTION = ("embed_dim", "projection")
_MOST_COORDINATES = 768
"""Largest number of canonical coordinates that a projection reads; fewer if the layers of a tower are narrower."""


class Composed:
    """Backend that saves each tower in the layout of its library, and the projections in a separate file."""

    library = "clipkit"
    class_name = None

    def save(self, model: DualEncoder, folder: Path) -> None:
        """Write `image/` (timm format), `text/` (transformers format), and clipkit's files for everything else."""
        heads = {"logit_scale": model.logit_scale.detach()}
        if model.logit_bias is not None:
            heads["logit_bias"] = model.logit_bias.detach()
        layout: dict[str, Any] = {
            "layout": "clipkit-composed",
            "version": 1,
            "embed_dim": None,
            "projection": "linear",
            "image": "image" in model.sides,
        }
        for side, tower in model.sides.items():
            projection: Any = tower.head
            heads |= {f"{side}.{name}": value for name, value in projection.state_dict().items()}
            if isinstance(projection, ResidualProjection):
                layout |= {"embed_dim": projection.linear.out_features, "projection": "residual"}
            elif not isinstance(projection, nn.Identity):
                layout["embed_dim"] = projection[-1].out_features
                layout["projection"] = "mlp" if len(projection) > 2 else "linear"
            if isinstance(tower.trunk, Layered):
                layout.setdefault("layers", {})[side] = list(tower.trunk.layers)
                if tower.trunk.coordinates is not None:
                    layout["coordinates"] = tower.trunk.coordinates.count
                    heads |= {f"{side}.{_COORDINATES}{name}": v for name, v in tower.trunk.coordinates.named_buffers()}
        if "image" in model.sides:
            _save_image_tower(model.image, folder / "image")
        if "text" in model.sides:
            layout |= _save_text_tower(model.text, folder / "text")
        save_tensors(heads, folder / _HEADS_FILE)
        (folder / LAYOUT_FILE).write_text(json.dumps(layout, indent=2) + "\n", encoding="utf-8")


def _save_image_tower(tower: ImageTower, folder: Path) -> None:
    from timm.models import save_for_hf

    native: Any = tower.trunk.native
    size = tower.preprocess.image_size
    assert size is not None
    save_for_hf(native, str(folder), safe_serialization=True, data_config=data_config(native, size))


def _save_text_tower(tower: TextTower, folder: Path) -> dict[str, Any]:
    """Save the text tower, and return its settings for `clipkit.json`."""
    native: Any = tower.trunk.native
    with without_weight_bars():
        native.save_pretrained(folder)
    tokenize = tower.tokenize
    tokenize.save(folder)
    return {
        "tokenizer": tokenize.source,
        "context_length": tokenize.context_length,
        "pooling": tower.trunk.pooling,
    }


def compose(recipe: ModelRecipe) -> DualEncoder:
    """Build a model from the towers that a recipe names, with new projections.

    A single tower gets a projection only if the recipe sets `embed_dim`. New weights are drawn from torch's global
    random generator, so set its seed if they must be reproducible.

    Raises:
        ModelError: a tower is missing or unsupported.
    """
    both = recipe.image.name is not None and recipe.text.name is not None
    embed_dim = recipe.space if both else recipe.embed_dim
    image_recipe, text_recipe = recipe.image, recipe.text
    if recipe.starts_with_cca:
        image_recipe = image_recipe.model_copy(update={"layers": image_recipe.layers or "auto"})
        text_recipe = text_recipe.model_copy(update={"layers": text_recipe.layers or "auto"})

    def projection(width: int) -> nn.Module:
        return new_projection(width, embed_dim, recipe.projection)

    image = timm_tower(image_recipe, projection) if recipe.image.name else absent_image_tower()
    text = text_tower(text_recipe, projection) if recipe.text.name else absent_text_tower()
    if recipe.starts_with_cca:
        widths = [sum(tower.trunk.widths) for tower in (image, text) if isinstance(tower.trunk, Layered)]
        for tower in (image, text):
            tower.head = _projection_of_coordinates(min(_MOST_COORDINATES, *widths), recipe)
    name = " + ".join(filter(None, (recipe.image.name, recipe.text.name)))
    check_fit(image if recipe.image.name else None, text if recipe.text.name else None, name)
    logit_scale = nn.Parameter(-torch.tensor(recipe.temperature or 0.07).log())
    logit_bias = None if recipe.bias is None else nn.Parameter(torch.tensor(recipe.bias))
    return DualEncoder(image, text, logit_scale, logit_bias, Composed(), name).eval()


def _projection_of_coordinates(count: int, recipe: ModelRecipe) -> nn.Module:
    return projection_of_coordinates(count, recipe.space, recipe.projection, recipe.dropout)


def load_composed(folder: Path, name: str, only: str | None = None) -> DualEncoder:
    """Load a model that `Composed.save` wrote, or only one of its towers.

    Args:
        folder: folder of the model.
        name: the model's name as the user gave it.
        only: `image` or `text` loads only this tower; None: both towers.

    Raises:
        ModelError: a file is missing or invalid.
    """
    from safetensors.torch import load_file

    with as_model_error(f"{name}: is not a complete clipkit model", "; save or download the model again"):
        layout = parse_json((folder / LAYOUT_FILE).read_text(encoding="utf-8"))
        image, text = ImageTowerRecipe(), TextTowerRecipe()
        if layout.get("image", True):
            image = ImageTowerRecipe(name=str(folder / "image"))
        if "tokenizer" in layout:
            written = {key: layout[key] for key in ("tokenizer", "context_length", "pooling")}
            text = TextTowerRecipe(name=str(folder / "text"), **written)
        layers, coordinates = layout.get("layers", {}), layout.get("coordinates")
        image = image.model_copy(update={"layers": layers.get("image")})
        text = text.model_copy(update={"layers": layers.get("text")})
        start, options = "random" if coordinates is None else "cca", {key: layout[key] for key in _PROJECTION}
        recipe = ModelRecipe.model_validate({"image": image, "text": text, "start": start, **options})
        changes: dict[str, Any] = {"start": "random", "projection": "linear"} if coordinates else {}
        changes |= {"image": image if only != "text" else ImageTowerRecipe()}
        changes |= {"text": text if only != "image" else TextTowerRecipe()}
        model = compose(recipe.model_copy(update=changes))
        check_safetensors(folder / _HEADS_FILE)
        heads = load_file(folder / _HEADS_FILE)
        model.logit_scale.data = heads.pop("logit_scale").reshape(())
        if "logit_bias" in heads:
            model.logit_bias = nn.Parameter(heads.pop("logit_bias").reshape(()))
        for side, tower in model.sides.items():
            prefix = f"{side}."
            head = {key.removeprefix(prefix): value for key, value in heads.items() if key.startswith(prefix)}
            if coordinates is not None:
                mean, matrix = (head.pop(f"{_COORDINATES}{name}") for name in ("mean", "matrix"))
                set_coordinates(tower.trunk, mean, matrix)
                tower.head = _projection_of_coordinates(coordinates, recipe)
            tower.head.load_state_dict(head)
            tower.head_is_new = False
    model.name = name
    return model
