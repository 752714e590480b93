"""Dual encoders built from two Python modules, a preprocessing function and a tokenizer."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from clipkit.errors import ModelError, one_line
from clipkit.images import kind_of
from clipkit.models.preprocess import Inputs, Preprocess, TransformCall, stack_inputs
from clipkit.models.projections import new_projection
from clipkit.models.python_tokenizer import tokenizer_of
from clipkit.models.towers import ImageTower, TextTower
from clipkit.models.weights import check_safetensors, save_tensors

LAYOUT = "clipkit-modules"
_FILE, _WEIGHTS = "clipkit.json", "weights.safetensors"

PreprocessFunction = Callable[[Image.Image], Tensor | Mapping[str, Tensor]]


@dataclass(frozen=True)
class Modules:
    """Parts of a dual encoder that are given as Python objects; see `DualEncoder.from_modules`."""

    image_tower: nn.Module
    text_tower: nn.Module
    preprocess: PreprocessFunction
    tokenizer: Callable[[list[str]], Any]

    def towers(self, embed_dim: int | None) -> tuple[ImageTower, TextTower]:
        """Return the towers, with new projections if `embed_dim` is given.

        Raises:
            ModelError: a part has the wrong type, fails or returns an invalid value, or the towers have different
                widths and `embed_dim` is None.
        """
        for name in ("image_tower", "text_tower"):
            if not isinstance(tower := getattr(self, name), nn.Module):
                raise ModelError(f"{name} is {kind_of(tower)}, not a torch.nn.Module; give a module")
        call, tokenize = PreprocessCall(self.preprocess), tokenizer_of(self.tokenizer)
        preprocess = _preprocess(call)
        image, text = ModuleTrunk(self.image_tower), ModuleTrunk(self.text_tower)
        inputs = preprocess.normalized(stack_inputs([call(Image.new("RGB", (64, 48), (90, 120, 150)))] * 2))
        width = _width("image_tower", image, inputs)
        text_width = _width("text_tower", text, tokenize(["a photo of a cat", "a dog"]))
        if embed_dim is None and width != text_width:
            raise ModelError(
                f"image_tower returns features of width {width}, but text_tower of width {text_width}; set "
                "embed_dim to add projections to a common width"
            )
        of_image, of_text = (new_projection(size, embed_dim, "linear") for size in (width, text_width))
        masked = "attention_mask" in tokenize(["a"])
        return (
            ImageTower(image, of_image, [_names(image)], preprocess, head_is_new=True),
            TextTower(text, of_text, [_names(text)], tokenize, head_is_new=True, padding_may_be_cut=masked),
        )

    @property
    def name(self) -> str:
        """Name of the model, made from the classes of its modules."""
        return f"python: {type(self.image_tower).__name__} + {type(self.text_tower).__name__}"


class ModuleTrunk(nn.Module):
    """Trunk that calls a module with one tensor, or with several tensors by name."""

    def __init__(self, native: nn.Module) -> None:
        super().__init__()
        self.native = native

    def forward(self, **inputs: Tensor) -> Float[Tensor, "B W"]:
        """Return the features that the wrapped module computes.

        If the module does not return a tensor, the features are the `image_embeds`, `text_embeds` or `pooler_output` of
        its result, or the first token of `last_hidden_state`.
        """
        output: Any = self.native(next(iter(inputs.values()))) if len(inputs) == 1 else self.native(**inputs)
        if isinstance(output, Tensor):
            return output
        for name in ("image_embeds", "text_embeds", "pooler_output"):
            if isinstance(value := getattr(output, name, None), Tensor):
                return value.flatten(1)
        if isinstance(states := getattr(output, "last_hidden_state", None), Tensor):
            return states[:, 0]
        raise ModelError(
            f"{type(self.native).__name__} returned {kind_of(output)}; return a tensor (B, W) with one vector per input"
        )


@dataclass(frozen=True)
class PreprocessCall:
    """Wrapper of a preprocessing function that always returns a dict of tensors."""

    function: PreprocessFunction

    def __call__(self, image: Image.Image) -> Inputs:
        made = self.function(image)
        if isinstance(made, Tensor):
            return {"pixel_values": made}
        if isinstance(made, Mapping) and all(isinstance(value, Tensor) for value in made.values()):
            # Image processors of transformers return a batch of one image.
            return {name: value[0] if value.ndim == 4 and len(value) == 1 else value for name, value in made.items()}
        raise ModelError(
            f"preprocess returned {kind_of(made)}; return a tensor (3, H, W), or a dict of tensors by name"
        )


def _preprocess(call: PreprocessCall) -> Preprocess:
    """Check a preprocessing function, and return the tower's preprocessing that calls it.

    Raises:
        ModelError: the function fails, or returns different shapes for different images.
    """
    try:
        shapes = {name: value.shape for name, value in call(Image.new("RGB", (97, 64))).items()}
        portrait = {name: value.shape for name, value in call(Image.new("RGB", (64, 97))).items()}
    except ModelError:
        raise
    except Exception as error:  # the user's function may raise any error
        raise ModelError(
            f"preprocess fails for an RGB image ({one_line(error)}); give a function of a PIL image"
        ) from None
    if shapes != portrait:
        raise ModelError(
            f"preprocess returns {list(map(tuple, shapes.values()))} for an image of 97 × 64 pixels, but "
            f"{list(map(tuple, portrait.values()))} for 64 × 97, so images do not form a batch; add a crop, "
            "or a resize to a fixed size"
        )
    pixels = shapes.get("pixel_values", ())
    size = int(pixels[-1]) if len(pixels) == 3 and pixels[-1] == pixels[-2] else None
    transform = TransformCall(call.function)  # type: ignore[arg-type]
    if transform.scales_last:  # crops of the input size need no further resizing
        normalize = transform.normalization
        return Preprocess(call, size, normalize[0], normalize[1])
    return Preprocess(call, size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), finish=call)


def _width(name: str, trunk: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Run the trunk of a tower once, and return the width of its features.

    Raises:
        ModelError: the forward pass fails, or does not return one vector per input.
    """
    learning = trunk.training
    parameter = next(trunk.parameters(), torch.empty(0))
    try:
        with torch.no_grad():
            features = trunk.eval()(**{key: value.to(parameter.device) for key, value in inputs.items()})
    except ModelError:
        raise
    except Exception as error:  # the user's module may raise any error
        shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in inputs.items())
        raise ModelError(
            f"{name} fails for the inputs {shapes} ({one_line(error)}); check preprocess and tokenizer"
        ) from None
    finally:
        trunk.train(learning)
    rows = len(next(iter(inputs.values())))
    if features.ndim != 2 or len(features) != rows:
        raise ModelError(
            f"{name} returned features of shape {tuple(features.shape)} for {rows} inputs; return "
            f"shape ({rows}, W), one vector of width W per input"
        )
    return int(features.shape[1])


def _names(trunk: nn.Module) -> list[str]:
    return [name for name, _ in trunk.named_parameters()]


@dataclass(frozen=True)
class ModulesBackend:
    """Backend that saves all weights in one file. The code of the modules is not saved."""

    embed_dim: int | None
    library = "clipkit"
    class_name = None

    def save(self, model: Any, folder: Path) -> None:
        """Write `weights.safetensors` and `clipkit.json`."""
        state: dict[str, Tensor] = {}
        seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
        for name, value in model.state_dict().items():
            # Modules that share a weight: safetensors stores a tensor once.
            key = (value.data_ptr(), tuple(value.shape), value.stride())
            if not name.startswith("view_heads.") and (key not in seen or not value.numel()):
                seen.add(key)
                state[name] = value.detach()
        save_tensors(state, folder / _WEIGHTS)
        layout: dict[str, Any] = {
            "layout": LAYOUT,
            "version": 1,
            "embed_dim": self.embed_dim,
            "bias": model.logit_bias is not None,
        }
        for side, tower in model.sides.items():
            native: Any = tower.trunk.native
            layout[side] = f"{type(native).__module__}.{type(native).__qualname__}"
        (folder / _FILE).write_text(json.dumps(layout, indent=2) + "\n", encoding="utf-8")


def check_parts(name: str, layout: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Check that the caller gives all parts of a saved model that was built from modules.

    Args:
        name: the model's name as the user gave it.
        layout: content of `clipkit.json` of the saved model.
        parts: modules and functions by name; None for a part that is not given.

    Raises:
        ModelError: a part is missing.
    """
    missing = [part for part, value in parts.items() if value is None]
    if missing:
        raise ModelError(
            f"{name}: contains only the weights of the modules {layout.get('image')} and {layout.get('text')}, not "
            f"their code; use clipkit.load(…, {', '.join(f'{part}=…' for part in missing)})"
        )


def load_weights(model: nn.Module, folder: Path, name: str) -> None:
    """Load a model's weights from a folder that `ModulesBackend.save` wrote.

    Args:
        model: model with the same structure as the saved model.
        folder: folder with the files.
        name: the model's name as the user gave it.

    Raises:
        ModelError: the saved weights have other names or shapes than the model's weights.
    """
    from safetensors.torch import load_file

    check_safetensors(folder / _WEIGHTS)
    saved = load_file(folder / _WEIGHTS)
    current = model.state_dict()
    for key, value in saved.items():
        if key not in current or current[key].shape != value.shape:
            found = f"shape {tuple(current[key].shape)}" if key in current else "no such weight"
            raise ModelError(
                f"{name}: its weight {key} has shape {tuple(value.shape)}, but the given modules have {found}; give "
                "modules of the same structure"
            )
    problem = _not_saved(model, saved)
    if problem is not None:
        raise ModelError(
            f"{name}: has no weight {problem}, which the given modules have; give modules of the same structure"
        )
    model.load_state_dict(saved, strict=False)


def _not_saved(model: nn.Module, saved: Mapping[str, Tensor]) -> str | None:
    """Return the name of a tensor of the model that is missing in `saved`, or None.

    A tensor with several names needs only one of them in `saved`.
    """
    state = model.state_dict()
    covered = {(state[name].data_ptr(), tuple(state[name].shape)) for name in saved}
    missing = (
        name for name, value in state.items() if value.numel() and (value.data_ptr(), tuple(value.shape)) not in covered
    )
    return next(missing, None)
