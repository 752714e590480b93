"""Encoding of queries with an ONNX export, which needs only a fraction of the model's start time and memory."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import ModelError, one_line
from clipkit.extras import check_extra
from clipkit.images import ImageLike, open_image
from clipkit.run_files import read_object

CONFIG_FILE = "clipkit_onnx.json"


def is_onnx(name: str | Path) -> bool:
    """Return whether a name is the folder of an ONNX export."""
    return (Path(name) / CONFIG_FILE).is_file()


class OnnxEncoder:
    """Encoder of texts and images that runs the files of `clipkit export --to onnx`.

    A tower is loaded when it is first used. Only code of this package is run, never code in the folder.

    Args:
        folder: folder of the ONNX export.

    Raises:
        ModelError: onnxruntime is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        check_extra("onnx", ["onnxruntime", "tokenizers"], ModelError)
        self.name = str(folder)
        self._code = _code_for(Path(folder))
        self.sides = {side: None for side in ("image", "text") if (Path(folder) / f"{side}.onnx").is_file()}

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (M, D) unit-length features of texts.

        Raises:
            ModelError: the export has no text tower, or is damaged.
        """
        return self._run(self._code.encode_texts, texts)

    def encode_image(self, images: Sequence[ImageLike]) -> NDArray[np.float32]:
        """Return (N, D) unit-length features of images.

        Raises:
            DataError: an image cannot be read.
            ModelError: the export has no image tower, does not describe its preprocessing, or is damaged.
        """
        return self._run(self._code.encode_images, [open_image(image) for image in images])

    def _run(self, encode: Any, inputs: Sequence[Any]) -> NDArray[np.float32]:
        try:
            return np.asarray(encode(inputs), np.float32)
        except (Exception, SystemExit) as error:  # onnxruntime's errors have no common base
            raise ModelError(
                f"{self.name}: cannot encode the query ({one_line(error)}); export the model again"
            ) from None


def _code_for(folder: Path) -> ModuleType:
    """Load a new copy of the module `onnx_example`, which encodes with the ONNX export in `folder`.

    The module is loaded from its file, so that torch is not imported.
    """
    file = Path(__file__).parents[1] / "models" / "export" / "onnx_example.py"
    spec = importlib.util.spec_from_file_location("clipkit_onnx_code", file)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.FOLDER, module.CONFIG = folder, read_object(folder / CONFIG_FILE)
    return module
