"""A preprocessed image, of which parts can be hidden."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from clipkit.errors import ModelError
from clipkit.images import ImageLike, open_image
from clipkit.models import DualEncoder
from clipkit.models.preprocess import Preprocess

_SHAPE = "spatial_shapes"  # input of towers that keep the aspect ratio: rows and columns of patches
_MASKS = {"pixel_attention_mask"}  # inputs that are set to None, because there is no padding


@dataclass(frozen=True, eq=False)
class Seen:
    """A preprocessed image: the inputs of the image tower, on the device of the model."""

    inputs: dict[str, Any]
    preprocess: Preprocess

    @classmethod
    def by(cls, model: DualEncoder, image: ImageLike) -> "Seen":
        """Preprocess an image for the image tower of a model.

        Raises:
            DataError: the image is unreadable.
            ModelError: the inputs of the tower are neither pixels (3, H, W) nor rows of patches.
        """
        tower = model.image
        inputs = tower.ready(tower.preprocess(open_image(image)))
        dtype = next((parameter.dtype for parameter in tower.parameters()), torch.float32)
        if _SHAPE in inputs:  # remove the padding after the patches
            count = int(inputs[_SHAPE].prod())
            inputs = {name: value if name == _SHAPE else value[:count] for name, value in inputs.items()}
        elif inputs.get("pixel_values", torch.zeros(0)).ndim != 3:
            raise ModelError(
                f"{model.name}: the inputs of the image tower are {', '.join(inputs)}, but an explanation needs the "
                "single input pixel_values of shape (3, H, W); use another model"
            )
        moved = {name: value[None].to(model.device) for name, value in inputs.items()}
        typed = {name: value.to(dtype) if value.is_floating_point() else value for name, value in moved.items()}
        return cls({**typed, **dict.fromkeys(_MASKS & typed.keys())}, tower.preprocess)

    @property
    def shape(self) -> tuple[int, int] | None:
        """Numbers of rows and columns of patches; None if the inputs are pixels."""
        return tuple(self.inputs[_SHAPE][0].tolist()) if _SHAPE in self.inputs else None

    @property
    def aspect(self) -> float:
        """Height of the image divided by its width."""
        height, width = self.shape or self.inputs["pixel_values"].shape[-2:]
        return height / width

    def mixed(self, weights: Float[Tensor, "K R C"]) -> dict[str, Any]:
        """Return the inputs of K partly hidden copies of the image.

        Args:
            weights: weight of the image in each cell of an R × C grid: 1 shows the image, 0 its mean color.
        """
        values = self.inputs["pixel_values"]
        size = self.shape or tuple(values.shape[-2:])
        of_pixels = F.interpolate(weights[:, None].to(values), size=size, mode="nearest-exact")
        if self.shape is None:
            return {"pixel_values": torch.lerp(values.mean(dim=(-2, -1), keepdim=True), values, of_pixels)}
        channels = values.view(1, values.shape[1], -1, 3)
        mean = channels.mean(dim=(1, 2), keepdim=True)
        mixed = torch.lerp(mean, channels, of_pixels.flatten(1)[:, :, None, None]).flatten(2)
        return {**self.inputs, _SHAPE: self.inputs[_SHAPE].expand(len(weights), -1), "pixel_values": mixed}

    @property
    def pixels(self) -> UInt8[np.ndarray, "H W 3"]:
        """Pixels after resizing and cropping, before normalization."""
        values: Float[Tensor, "3 H W"] = self.inputs["pixel_values"][0].float().cpu()
        if self.shape is not None:
            rows, columns = self.shape
            side = round((values.shape[1] / 3) ** 0.5)
            values = values.view(rows, columns, side, side, 3).permute(4, 0, 2, 1, 3).reshape(3, rows * side, -1)
        mean, std = (torch.tensor(one)[:, None, None] for one in (self.preprocess.mean, self.preprocess.std))
        return ((values * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
