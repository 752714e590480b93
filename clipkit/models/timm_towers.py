"""Image towers of composed models: any timm model, without its classifier."""

from pathlib import Path
from typing import Any

from clipkit.errors import ModelError
from clipkit.models.blocks import prefixed, timm_blocks
from clipkit.models.layers import LayeredImage, has_classifier, listed
from clipkit.models.preprocess import Preprocess, Resize, TransformCall
from clipkit.models.projections import NewProjection
from clipkit.models.quiet import as_model_error
from clipkit.models.towers import ImageTower
from clipkit.models.trunks import ImageTrunk
from clipkit.models.weights import check_weights
from clipkit.models.wrappers import unwrapped
from clipkit.recipe import ImageTowerRecipe


def timm_tower(recipe: ImageTowerRecipe, projection: NewProjection) -> ImageTower:
    """Build the image tower that a recipe describes, with a new projection.

    Args:
        recipe: settings of the tower.
        projection: function that builds the projection, given the width of the trunk's output.

    Raises:
        ModelError: timm has no such model, or cannot build it.
    """
    import timm

    name = str(recipe.name)
    library, colon, rest = name.partition(":")
    source = rest if colon and library == "timm" else f"local-dir:{_existing_folder(name)}"
    if source.startswith("local-dir:") and recipe.pretrained:
        _check_names(name)
    with as_model_error(
        f"model.image.name {name}: timm cannot build the model", "; check the name and model.image.image_size"
    ):
        classes = {} if has_classifier(recipe.layers) else {"num_classes": 0}
        native = timm.create_model(source, pretrained=recipe.pretrained, **classes)
        if recipe.image_size is not None and hasattr(native, "set_input_size"):
            native.set_input_size(img_size=recipe.image_size)
    size = recipe.image_size or int(native.pretrained_cfg["input_size"][-1])
    if not recipe.pretrained:
        # crop_pct (a margin that is cut off) belongs to the pretrained weights, so it is not used.
        native.pretrained_cfg = native.pretrained_cfg | {"crop_pct": 1.0, "input_size": (3, size, size)}
    layered = recipe.layers is not None
    trunk = LayeredImage(native, listed(recipe.layers), size) if layered else ImageTrunk(native)
    width = sum(trunk.widths) if isinstance(trunk, LayeredImage) else native.num_features
    blocks = prefixed(timm_blocks(native))
    return ImageTower(trunk, projection(width), blocks, _preprocess(native, size), head_is_new=True)


def data_config(native: Any, size: int) -> dict[str, Any]:
    """Return timm's preprocessing settings of a model for an image size in pixels."""
    from timm.data import resolve_data_config

    return resolve_data_config({"input_size": (3, size, size)}, pretrained_cfg=native.pretrained_cfg)


def _preprocess(native: Any, size: int) -> Preprocess:
    from timm.data import create_transform

    config = data_config(native, size)
    transform = TransformCall(create_transform(**config, is_training=False))
    pixels = transform.pixels if transform.scales_last else None
    steps = None
    if config["crop_mode"] == "center":
        steps = Resize("shortest", int(size / config["crop_pct"]), config["interpolation"], "round")
    return Preprocess(transform, size, config["mean"], config["std"], steps=steps, pixels=pixels)


def _existing_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ModelError(f"model.image.name {name}: folder not found; give a folder, or a timm model as timm:NAME")
    return folder.resolve()


def _check_names(name: str) -> None:
    """Check that weight names in a folder have no prefixes of model wrappers, except those that timm removes.

    Raises:
        ModelError: a name has such a prefix.
    """
    from timm.models import clean_state_dict

    for tensor in clean_state_dict(dict.fromkeys(check_weights(Path(name).expanduser()))):
        if unwrapped(tensor) != tensor:
            raise ModelError(
                f"model.image.name {name}: its weights have the names of a wrapped model, such as {tensor} instead "
                f"of {unwrapped(tensor)}; save the model without its wrapper"
            )
