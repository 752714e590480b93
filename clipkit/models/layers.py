"""Trunks that concatenate the outputs of several layers.

A fixed affine map (`Coordinates`) can then reduce the concatenated outputs to fewer numbers, called coordinates.
"""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipkit.errors import ModelError
from clipkit.models.trunks import last_token, mean_of_tokens
from clipkit.recipe.layers import parse_layer

_MOST_LAYERS = 7
"""Number of layers of a deep tower, evenly spaced, among which `layers: auto` chooses."""
_MOST_COLUMNS = 12288
"""Largest width of all layers among which `layers: auto` chooses: their covariance takes 1.2 GB in float64."""


class Coordinates(nn.Module):
    """Fixed affine map from concatenated layer outputs to coordinates, (x − mean) · matrix.

    Args:
        width: dimension W of x.
        count: number K of coordinates.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.mean: Tensor
        self.matrix: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("matrix", torch.zeros(width, count))

    def forward(self, wide: Float[Tensor, "B W"]) -> Float[Tensor, "B K"]:
        # In float32 also under mixed precision: the mean may be much larger than the differences.
        with torch.autocast(wide.device.type, enabled=False):
            return (wide.to(self.mean.dtype) - self.mean) @ self.matrix


class Layered(nn.Module):
    """Base class of trunks that concatenate the outputs of several layers.

    `layers` are the names of the layers, and `widths` the dimensions of their outputs. If `coordinates` is set, this
    affine map is applied to the concatenated outputs.
    """

    layers: tuple[str, ...]
    widths: tuple[int, ...]

    def __init__(self, native: Any) -> None:
        super().__init__()
        self.native = native
        self.coordinates: Coordinates | None = None

    def choose(self, layers: Sequence[str]) -> None:
        """Compute only the given layers from now on."""
        widths = dict(zip(self.layers, self.widths, strict=True))
        self.layers, self.widths = tuple(layers), tuple(widths[name] for name in layers)

    def _leave_out_wide(self) -> None:
        """Keep the first layer, and drop each later layer that would raise the sum of widths above `_MOST_COLUMNS`."""
        kept, total = [self.layers[0]], self.widths[0]
        for name, width in zip(self.layers[1:], self.widths[1:], strict=True):
            if total + width <= _MOST_COLUMNS:
                kept.append(name)
                total += width
        self.choose(kept)

    def forward(self, **inputs: Tensor) -> Float[Tensor, "B W"]:
        wide = torch.cat(self.parts(**inputs), dim=1)
        return wide if self.coordinates is None else self.coordinates(wide)

    def parts(self, **inputs: Tensor) -> list[Float[Tensor, "B P"]]:
        """Return the output of each layer, in the order of `layers`."""
        raise NotImplementedError

    def _measure(self, inputs: Mapping[str, Tensor]) -> None:
        self.eval()
        with torch.no_grad():
            self.widths = tuple(part.shape[1] for part in self.parts(**inputs))


class LayeredImage(Layered):
    """timm model that concatenates the outputs of several layers (see `clipkit.recipe.layers`).

    Layer `mean:N` is the mean over the positions in the output of stage or block N, counted from 1.

    Args:
        native: the timm model, including its classifier if it has one.
        layers: names of the layers; None: all candidates of `layers: auto`.
        size: side of the images in pixels.

    Raises:
        ModelError: the model lacks one of the layers.
    """

    def __init__(self, native: Any, layers: Sequence[str] | None, size: int) -> None:
        super().__init__(native)
        self._options, chooses = _options_of(native), layers is None
        pixels = torch.zeros(1, 3, size, size)
        native.eval()
        with torch.no_grad():
            last, maps = self._outputs(pixels)
        has_map = isinstance(last, Tensor) and last.ndim > 2
        has_tokens, prefix = has_map and last.ndim == 3, getattr(native, "num_prefix_tokens", 0) if has_map else 0
        if layers is None:
            layers = ["output", *(["mean"] if has_tokens else []), *(["max"] if has_map else [])]
            layers += ["cls"] if prefix else []
            layers += ["probabilities"] if native.num_classes > 0 else []
            layers += [f"mean:{number}" for number in _spaced(1, len(maps) - has_tokens)]
        else:
            no_map = None if has_map else "the tower has no single final feature map"
            no_token = None if prefix else "the tower has no class token"
            returns_tokens = "return_prefix_tokens" in self._options
            no_earlier_token = None if returns_tokens else "the tower does not return the class tokens of its blocks"
            no_classes = None if native.num_classes > 0 else "the tower was saved without a classifier"
            missing = {"mean": no_map, "max": no_map, "cls": no_token, "probabilities": no_classes}
            _check(layers, "image", (1, len(maps)), missing, {"cls": no_token or no_earlier_token})
        self.layers = tuple(layers)
        self._measure({"pixel_values": pixels})
        if chooses:
            self._leave_out_wide()

    def _outputs(self, pixels: Tensor, indices: list[int] | None = None) -> tuple[Any, Sequence[Any]]:
        """Return the output before the head, and the outputs of stages or blocks.

        The indices of the stages or blocks start at 0; None: all.
        """
        if not hasattr(self.native, "forward_intermediates"):
            return self.native.forward_features(pixels), []
        last, maps = self.native.forward_intermediates(pixels, indices=indices, **self._options)
        return last, maps

    def parts(self, **inputs: Tensor) -> list[Float[Tensor, "B P"]]:
        names = [parse_layer(name) for name in self.layers]
        numbers = sorted({number for _, number in names if number is not None})
        last, maps = self._outputs(inputs["pixel_values"], [number - 1 for number in numbers] or [0])
        maps_of: dict[int | None, Any] = {None: None, **dict(zip(numbers, maps, strict=False))}
        return [self._pooled(pooling, last, maps_of[number]) for pooling, number in names]

    def _pooled(self, pooling: str, last: Tensor, earlier: Any) -> Float[Tensor, "B P"]:
        if pooling == "output":
            output: Tensor = self.native.forward_head(last, pre_logits=True)
            return output
        if pooling == "probabilities":
            # The Euclidean distance of square roots of probabilities is, up to a factor, the Hellinger distance.
            dtype = (last if isinstance(last, Tensor) else last[0]).dtype
            return self.native.forward_head(last).float().softmax(dim=1).sqrt().to(dtype)
        prefix = getattr(self.native, "num_prefix_tokens", 0)
        if earlier is None and last.ndim == 3:
            positions, tokens = last[:, prefix:].mT, last[:, :prefix]
        elif earlier is None:
            positions, tokens = last.permute(0, 3, 1, 2) if self._channels_are_last else last, None
        else:
            positions, tokens = earlier if isinstance(earlier, tuple | list) else (earlier, None)
        if pooling == "cls":
            assert tokens is not None
            return tokens[:, 0]
        flat = positions.flatten(2)
        return flat.mean(dim=2) if pooling == "mean" else flat.amax(dim=2)

    @property
    def _channels_are_last(self) -> bool:
        return str(getattr(self.native, "output_fmt", "NCHW")).endswith("NHWC")


class LayeredText(Layered):
    """Transformers text encoder that concatenates the outputs of several layers (see `clipkit.recipe.layers`).

    Layer `mean:N` is the mean of hidden state N over the tokens. Hidden state 0 is the output of the embeddings, and 1
    is the output of the first block.

    Args:
        native: the encoder.
        pooling: pooling of the layer `output`: mean, last or cls.
        layers: names of the layers; None: all candidates of `layers: auto`.

    Raises:
        ModelError: the encoder lacks one of the layers.
    """

    def __init__(self, native: Any, pooling: str, layers: Sequence[str] | None) -> None:
        super().__init__(native)
        self.pooling, chooses = pooling, layers is None
        inputs = {"input_ids": torch.ones(1, 2, dtype=torch.long), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
        native.eval()
        with torch.no_grad():
            states = native(**inputs, output_hidden_states=True).hidden_states or ()
        highest = len(states) - 1
        if layers is None:
            poolings = [name for name in ("mean", "cls", "max") if name != pooling]
            layers = ["output", *poolings, *(f"mean:{number}" for number in _spaced(0, highest - 1))]
        else:
            _check(layers, "text", (0, highest), {}, {})
        self.layers = tuple(layers)
        self._measure(inputs)
        if chooses:
            self._leave_out_wide()

    def parts(self, **inputs: Tensor) -> list[Float[Tensor, "B P"]]:
        attention_mask = inputs["attention_mask"]
        output = self.native(**inputs, output_hidden_states=True)
        parts = []
        for pooling, number in map(parse_layer, self.layers):
            states = output.last_hidden_state if number is None else output.hidden_states[number]
            match self.pooling if pooling == "output" else pooling:
                case "mean":
                    parts.append(mean_of_tokens(states, attention_mask))
                case "max":
                    padding = attention_mask.unsqueeze(-1) == 0
                    parts.append(states.masked_fill(padding, torch.finfo(states.dtype).min).amax(dim=1))
                case "last":
                    parts.append(last_token(states, attention_mask))
                case _:
                    parts.append(states[:, 0])
        return parts


def set_coordinates(trunk: nn.Module, mean: Float[Tensor, " W"], matrix: Float[Tensor, "W K"]) -> None:
    """Set the affine map (x − mean) · matrix that a trunk applies to its concatenated outputs x (B, W)."""
    assert isinstance(trunk, Layered)
    device = next(trunk.parameters()).device
    trunk.coordinates = Coordinates(*matrix.shape).to(device)
    trunk.coordinates.mean.copy_(mean)
    trunk.coordinates.matrix.copy_(matrix)


def listed(layers: str | Sequence[str] | None) -> Sequence[str] | None:
    """Return the layer names that a recipe lists, or None if it says `auto` or nothing.

    Given None, a trunk computes all candidates of `auto`.
    """
    return None if isinstance(layers, str) else layers


def has_classifier(layers: str | Sequence[str] | None) -> bool:
    """Return whether the layers that a recipe chooses for an image tower may need its classifier."""
    return layers is not None and (layers == "auto" or "probabilities" in layers)


def columns(layers: Sequence[str], widths: Sequence[int], chosen: Sequence[str]) -> Tensor:
    """Return the column indices of the chosen layers in the concatenated outputs of all layers.

    Args:
        layers, widths: names and dimensions of all layers.
        chosen: names of the chosen layers.
    """
    parts = dict(zip(layers, torch.arange(sum(widths)).split(list(widths)), strict=True))
    return torch.cat([parts[name] for name in chosen])


def _spaced(first: int, last: int) -> list[int]:
    """Return at most `_MOST_LAYERS` − 1 evenly spaced integers from `last` down to `first`, both included."""
    count = min(_MOST_LAYERS - 1, last - first + 1)
    return [round(last - step * (last - first) / max(1, count - 1)) for step in range(count)]


def _options_of(native: Any) -> dict[str, bool]:
    """Return options for timm's `forward_intermediates`, without those that the model does not accept.

    With the options, the method returns class tokens, and runs all blocks of Hiera.
    """
    if not hasattr(native, "forward_intermediates"):
        return {}
    options = {"stop_early": False}
    if getattr(native, "num_prefix_tokens", 0):
        options["return_prefix_tokens"] = True
    accepted = signature(native.forward_intermediates).parameters
    return {name: value for name, value in options.items() if name in accepted}


def _check(
    layers: Sequence[str],
    tower: str,
    numbers: tuple[int, int],
    missing: Mapping[str, str | None],
    missing_earlier: Mapping[str, str | None],
) -> None:
    """Check that a tower has the given layers.

    Args:
        numbers: lowest and highest possible N in a name such as `mean:N`.
        missing: why poolings of the output (e.g. `mean`) are impossible, by pooling; None: possible.
        missing_earlier: the same for poolings of earlier layers (e.g. `mean:N`).

    Raises:
        ModelError: the tower lacks one of the layers.
    """
    low, high = numbers
    for name in layers:
        pooling, number = parse_layer(name)
        reason = (missing if number is None else missing_earlier).get(pooling)
        if number is not None and not low <= number <= high:
            available = f"has only the layers {low} to {high}" if low <= high else "does not return earlier layers"
            reason = f"the tower {available}"
        if reason is not None:
            raise ModelError(f"model.{tower}.layers: {name} does not exist, because {reason}; remove {name}")
