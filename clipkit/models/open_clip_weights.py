"""Weight files for open_clip models, which are checked before the model is built."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from clipkit.errors import ModelError
from clipkit.models.quiet import as_model_error, without_root_messages
from clipkit.models.weights import check_safetensors, read_pickle


class Weights:
    """Weights in a file of open_clip or of its trainer.

    Raises:
        ModelError: the file is missing, incomplete or holds something else.
    """

    def __init__(self, file: Path, name: str) -> None:
        self.file = file
        self.name = name
        if not file.is_file():
            raise ModelError(f"{name}: file {file} not found; paths are relative to the working directory")
        self.shapes = {key.removeprefix("module."): shape for key, shape in self._read().items()}

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
        ):
            load_checkpoint(native, str(self.file), strict=True, weights_only=True)
