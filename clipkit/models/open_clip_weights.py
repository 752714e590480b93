"""Weight files for open_clip models; they are checked before the model is built."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from clipkit.errors import ModelError
from clipkit.models.quiet import as_model_error, without_root_messages
from clipkit.models.weights import check_safetensors, read_pickle
from clipkit.models.wrappers import check_merged, unknown_prefix, unwrapped, warn_unused


class Weights:
    """Weights in a file of open_clip or of its trainer.

    Raises:
        ModelError: the file is missing or incomplete, or does not hold weights.
    """

    def __init__(self, file: Path, name: str) -> None:
        self.file = file
        self.name = name
        if not file.is_file():
            raise ModelError(f"{name}: file {file} not found; paths are relative to the working directory")
        shapes = self._read()
        check_merged(shapes, file)
        self.is_wrapped = any(unwrapped(key) != key.removeprefix("module.") for key in shapes)
        self.shapes = {unwrapped(key): shape for key, shape in shapes.items()}

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
                    f"{self.file}: the weights do not match {self.name} ({key} is {saved} in the file, "
                    f"{tuple(value.shape)} in the "
                    "model: another image size or context length); use the architecture that the weights belong to"
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

    @contextmanager
    def _unwrapped(self) -> Iterator[Path]:
        """Context that gives a file whose tensor names contain no wrapper prefixes: this file, or a temporary copy."""
        if not self.is_wrapped:
            yield self.file
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "weights.pt"
            torch.save({unwrapped(key): value for key, value in self._tensors().items()}, file)
            yield file

    def _tensors(self) -> Mapping[str, Tensor]:
        if self.file.suffix == ".safetensors":
            return load_file(self.file)
        content: Any = read_pickle(self.file)
        return {key: value for key, value in content.get("state_dict", content).items() if isinstance(value, Tensor)}

    def _check(self, expected: list[str], missing: list[str], unexpected: list[str]) -> None:
        """Raise an error if a file lacks weights or is from a deeper model; log the names of unused tensors."""
        layers = {re.sub(r"\d+", "*", name) for name in expected}
        deeper = [name for name in unexpected if re.sub(r"\d+", "*", name) in layers]
        prefix = unknown_prefix(missing, unexpected)
        if prefix is not None:
            raise ModelError(
                f"{self.file}: the names of the weights begin with {prefix!r}, for example {prefix}{missing[0]}; save "
                "the state_dict of the model itself, not of an object that contains it"
            )
        if missing or deeper:
            reason = f"{missing[0]} is missing" if missing else f"{deeper[0]} is not part of the model"
            raise ModelError(
                f"{self.file}: the weights do not match {self.name} ({reason}; tensors that do not match: "
                f"{len(missing) + len(deeper)}); use the architecture that the weights belong to"
            )
        warn_unused(unexpected, self.file)
