"""Weight files of open_clip models, which are checked before the model is built."""

import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from clipkit.errors import ModelError
from clipkit.models.quiet import as_model_error, without_root_messages
from clipkit.models.weights import check_safetensors, read_pickle
from clipkit.models.wrappers import check_merged, unknown_prefix, unwrapped, warn_unused

_PREFIXES = {"image": "visual.", "text": "text."}
_PLAIN_TEXT = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
_SCALARS = ("logit_scale", "logit_bias")


class Weights:
    """Weights in a file that open_clip or its trainer wrote.

    Raises:
        ModelError: the file is missing or incomplete, or does not contain weights.
    """

    def __init__(self, file: Path, name: str) -> None:
        self.file = file
        self.name = name
        if not file.is_file():
            raise ModelError(
                f"{name}: file {file} not found; check the path, which is relative to the working directory"
            )
        shapes = self._read()
        check_merged(shapes, file)
        self.is_wrapped = any(unwrapped(key) != key.removeprefix("module.") for key in shapes)
        self.shapes = {unwrapped(key): shape for key, shape in shapes.items()}
        self._names = {unwrapped(key): key for key in shapes}

    def has_tower(self, side: str) -> bool:
        """Return whether the file contains weights of this tower under open_clip's names."""
        return bool(self._of_tower(side))

    def _of_tower(self, side: str) -> dict[str, str]:
        """Return a dict from one tower's weight names in open_clip's model to their names in the file.

        In the model, the text tower is a separate module. In the file, it may be part of the top-level module.
        """
        prefix = _PREFIXES[side]
        names = {name: name for name in self.shapes if name.startswith(prefix)}
        if side == "text" and not names:  # a class without a text module
            names = {prefix + name: name for name in self.shapes if name.startswith(_PLAIN_TEXT)}
        return names

    def _read(self) -> dict[str, tuple[int, ...]]:
        if self.file.suffix == ".safetensors":
            return check_safetensors(self.file)
        content = read_pickle(self.file, device="meta")
        inner = content.get("state_dict", content) if isinstance(content, Mapping) else {}
        shapes = {key: tuple(value.shape) for key, value in inner.items() if isinstance(value, Tensor)}
        if not shapes:
            raise ModelError(
                f"{self.file}: contains no weights; give a file with a state_dict, such as epoch_N.pt of open_clip's "
                "trainer"
            )
        return shapes

    def load(self, native: Any) -> None:
        """Copy the weights into open_clip's model."""
        from open_clip.factory import load_checkpoint

        for key, value in native.state_dict().items():
            saved = self.shapes.get(key, self.shapes.get(key.removeprefix("text.")))
            # open_clip would silently interpolate positions to another size.
            if key.endswith("positional_embedding") and saved is not None and saved != tuple(value.shape):
                raise ModelError(
                    f"{self.file}: the weights do not match {self.name} ({key} has shape {saved} in the "
                    f"file, but {tuple(value.shape)} in the model, so the image size or context length differs); use "
                    "the architecture that the weights belong to"
                )
        with (
            as_model_error(
                f"{self.file}: the weights do not match {self.name}",
                "; use the architecture that the weights belong to",
            ),
            without_root_messages(),
            self._unwrapped() as file,
        ):
            result = load_checkpoint(native, str(file), strict=False, weights_only=True)
        self._check(list(native.state_dict()), result.missing_keys, result.unexpected_keys)

    def load_tower(self, native: Any, side: str) -> None:
        """Copy the weights of one tower, the logit scale and the logit bias into open_clip's model.

        From a safetensors file, only these weights are read.

        Args:
            native: open_clip model whose text tower is a separate module.
            side: image or text.
        """
        names = self._of_tower(side) | {name: name for name in _SCALARS if name in self.shapes}
        tensors = self._tensors({self._names[name] for name in names.values()})
        targets = native.state_dict()
        loaded = {name: tensors[self._names[saved]] for name, saved in names.items()}
        loaded |= {name: loaded[name].reshape(targets[name].shape) for name in _SCALARS if name in loaded}
        with as_model_error(
            f"{self.file}: the weights do not match {self.name}", "; use the architecture that the weights belong to"
        ):
            result = native.load_state_dict(loaded, strict=False)
        own = _PREFIXES[side]
        missing = [name for name in result.missing_keys if name.startswith(own)]
        self._check([name for name in targets if name.startswith(own)], missing, result.unexpected_keys)

    @contextmanager
    def _unwrapped(self) -> Iterator[Path]:
        """Context that yields the file, or a temporary copy whose tensor names contain no wrapper prefixes."""
        if not self.is_wrapped:
            yield self.file
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "weights.pt"
            torch.save({unwrapped(key): value for key, value in self._tensors().items()}, file)
            yield file

    def _tensors(self, names: Collection[str] | None = None) -> Mapping[str, Tensor]:
        """Return the tensors with the given names, or all tensors. From a safetensors file, only these are read."""
        if self.file.suffix == ".safetensors":
            with safe_open(self.file, framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in (opened.keys() if names is None else names)}
        content: Any = read_pickle(self.file)
        return {key: value for key, value in content.get("state_dict", content).items() if isinstance(value, Tensor)}

    def _check(self, expected: list[str], missing: list[str], unexpected: list[str]) -> None:
        """Check that the file has all weights of the model. Log unused tensors.

        Args:
            expected: names of the model's weights.
            missing: names that only the model has.
            unexpected: names that only the file has.

        Raises:
            ModelError: weights are missing, have a prefix in the file, or belong to a deeper model.
        """
        layers = {re.sub(r"\d+", "*", name) for name in expected}
        deeper = [name for name in unexpected if re.sub(r"\d+", "*", name) in layers]
        prefix = unknown_prefix(missing, unexpected)
        if prefix is not None:
            raise ModelError(
                f"{self.file}: the names of the weights begin with {prefix!r}, for example {prefix}{missing[0]}; save "
                "the state_dict of the model itself, not of an object that contains the model"
            )
        if missing or deeper:
            reason = f"{missing[0]} is missing" if missing else f"{deeper[0]} is not part of the model"
            raise ModelError(
                f"{self.file}: the weights do not match {self.name} ({reason}; tensors that do not match: "
                f"{len(missing) + len(deeper)}); use the architecture that the weights belong to"
            )
        warn_unused(unexpected, self.file)


def weights_of_tag(architecture: str, tag: str, side: str, name: str) -> Weights | None:
    """Return the pretrained weights of a tag, from the Hub or its cache.

    The result is None if one tower cannot be loaded alone from these weights.

    Args:
        architecture, tag: open_clip's names of the architecture and of the weights.
        side: tower to load, image or text.
        name: the model's name as the user gave it.
    """
    import open_clip

    try:
        file = open_clip.download_pretrained(open_clip.get_pretrained_cfg(architecture, tag))
        weights = Weights(Path(file), name)
    except Exception:  # loading the whole model reports why
        return None
    return weights if weights.has_tower(side) else None
