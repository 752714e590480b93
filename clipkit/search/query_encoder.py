"""Encode queries with the model of an index. Only the tower that a query needs is loaded."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipkit.images import ImageLike
from clipkit.search.onnx_encoder import OnnxEncoder, is_onnx
from clipkit.search.probes import PROBE_TEXTS, check_same_model, probe_images, same_model

if TYPE_CHECKING:
    from clipkit.models import DualEncoder
    from clipkit.recipe import Side
    from clipkit.search.quick_text import QuickText


class QueryEncoder:
    """Encoder of queries, which checks that its model is the one that made the index.

    Each tower is loaded and checked when a query first needs it.

    Args:
        folder: folder of the index, for error messages.
        manifest: manifest of the index.
        given: model or name of a model. None: the model that made the index.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], given: "str | Path | DualEncoder | None") -> None:
        self._folder = folder
        self._probes = manifest["probes"]
        self._source: str | Path | DualEncoder = manifest["model"]["name"] if given is None else given
        self._towers: dict[str, DualEncoder | OnnxEncoder] = {}

    @cached_property
    def model(self) -> "DualEncoder | OnnxEncoder":
        """The whole model, or its ONNX export.

        Raises:
            ModelError: the model cannot be loaded.
            DataError: the model is not the one that made the index.
        """
        model = self._opened(None)
        if "text" in model.sides:
            self._check(model, "text")
        return model

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (M, D) unit-length features of texts. Errors: as for `tower`."""
        return np.asarray(self.tower("text").encode_text(texts))

    def encode_short(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (M, D) unit-length features of a few texts, with the shortest possible start time.

        If no text tower is loaded yet, the fast-loading `QuickText` is used if possible. Errors: as for `tower`.
        """
        is_loaded = self.is_whole or "text" in self._towers
        quick = None if is_loaded else self._quick_text
        return self.encode_text(texts) if quick is None else quick.encode_text(texts).numpy()

    def encode_image(self, images: Sequence[ImageLike]) -> NDArray[np.float32]:
        """Return (N, D) unit-length features of images.

        Raises:
            ModelError: the model cannot be loaded.
            DataError: the model is not the one that made the index, or an image is unreadable.
        """
        return np.asarray(self.tower("image").encode_image(images))

    @property
    def is_whole(self) -> bool:
        """True if the whole model is loaded."""
        return "model" in self.__dict__

    def tower(self, side: "Side") -> "DualEncoder | OnnxEncoder":
        """Return a model that can encode one side, "image" or "text".

        The model contains only this tower, unless the whole model is already loaded.

        Raises:
            ModelError: the model cannot be loaded.
            DataError: the model is not the one that made the index.
        """
        if side not in self._towers:
            model = self.model if self.is_whole else self._opened(side)
            self._check(model, side)
            self._towers[side] = model
        return self._towers[side]

    def _opened(self, only: "Side | None") -> "DualEncoder | OnnxEncoder":
        if not isinstance(self._source, str | Path):
            return self._source
        if is_onnx(self._source):
            return OnnxEncoder(self._source)
        from clipkit.models import load

        return load(self._source, only=only)

    def _check(self, model: "DualEncoder | OnnxEncoder", side: "Side") -> None:
        features = model.encode_text(list(PROBE_TEXTS)) if side == "text" else model.encode_image(probe_images())
        check_same_model(self._probes, side, np.asarray(features), str(self._folder), model.name)

    @cached_property
    def _quick_text(self) -> "QuickText | None":
        """Fast-loading text tower of the model, or None if `QuickText` is not possible.

        `QuickText` must support the architecture, and its features must agree with the features in the index.
        """
        source = self._source
        if not isinstance(source, str | Path) or is_onnx(source):
            return None
        from clipkit.search.quick_text import quick_text

        quick = quick_text(source)
        if quick is not None and same_model(self._probes, "text", quick.encode_text(list(PROBE_TEXTS)).numpy()):
            return quick
        return None
