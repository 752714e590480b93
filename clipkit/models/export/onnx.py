"""Export to ONNX: one graph per tower, the preprocessing settings, and an example script that does not need torch."""

import json
import logging
import math
import runpy
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from clipkit.errors import ModelError
from clipkit.extras import check_extra
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.export import onnx_example
from clipkit.models.export.onnx_config import preprocessing, write_tokenizer
from clipkit.models.folding import folded
from clipkit.models.preprocess import stack_inputs
from clipkit.models.publish.layout import Layout
from clipkit.models.quiet import as_model_error
from clipkit.models.towers import Tower
from clipkit.run_files import read_object

OPSET = 18
CONFIG_FILE = "clipkit_onnx.json"
LEAST_COSINE = 0.99
"""Minimum mean cosine between the features with 8-bit weights and the original ones. The maximum difference would be a
poor measure, because it depends on the dimension of the features.
"""
_LARGEST = 1_800_000_000
"""Maximum size in bytes of the weights in a graph file; larger weights are stored in a second file."""


class Onnx:
    """Format for onnxruntime: `image.onnx` and `text.onnx`, one file per tower.

    The graphs accept batches of any size. Text towers with an attention mask accept captions of any length.

    Args:
        int8: store the weights of linear layers as 8-bit integers, in a quarter of the space.
    """

    def __init__(self, int8: bool = False) -> None:
        self.int8 = int8
        self.tolerance = math.inf if int8 else 1e-4
        self.least_cosine = LEAST_COSINE if int8 else None
        self.crop_offset = None  # example.py crops in the same way as the model

    def write(self, model: DualEncoder, folder: Path) -> list[str]:
        check_extra("onnx", ["onnx", "onnxscript", "onnxruntime"], ModelError)
        notes = []
        config: dict[str, Any] = {
            "format": "clipkit-onnx",
            "opset": OPSET,
            "weights": "int8" if self.int8 else "float32",
            "scale": model.logit_scale.exp().item(),
            "bias": model.logit_bias.item() if model.logit_bias is not None else None,
            "preprocessing": None,
            "text": None,
        }
        if "image" in model.sides:
            inputs = stack_inputs([model.image.preprocess(Image.new("RGB", (300, 200)))] * 2)
            self._write_tower(model, "image", inputs, folder)
            config["preprocessing"] = preprocessing(model.image.preprocess)
            if config["preprocessing"] is None:
                notes.append(f"{CONFIG_FILE} cannot describe the image preprocessing; preprocess images with clipkit")
        if "text" in model.sides:
            inputs = model.text.tokenize(["a photo of a cat", "a longer caption about two dogs in the street"])
            self._write_tower(model, "text", inputs, folder)
            config["text"] = write_tokenizer(model, inputs, folder)
            if config["text"]["repair"]:
                notes.append(
                    "open_clip repairs broken characters and HTML entities (&amp;) in captions before tokenization; "
                    "example.py also does so (with ftfy), but tokenizer.json alone does not"
                )
            if config["text"]["pad_token"] is None:
                notes.append("the tokenizer cannot be saved as tokenizer.json; tokenize with clipkit")
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.copy(onnx_example.__file__, folder / "example.py")
        return notes

    def _write_tower(self, model: DualEncoder, side: str, inputs: dict[str, Tensor], folder: Path) -> None:
        tower, file = model.sides[side], folder / f"{side}.onnx"
        dynamic = (0, 1) if "attention_mask" in inputs else (0,)
        shapes = tuple(dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC) for _ in inputs)
        large = sum(parameter.numel() * 4 for parameter in tower.parameters()) > _LARGEST
        # A graph contains the relative path of its second file, so graphs to be quantized are in a separate folder.
        whole = file.parent / "float32" / file.name if self.int8 else file
        whole.parent.mkdir(exist_ok=True)
        failing = as_model_error(f"{model.name}: the {side} tower cannot be exported to ONNX", "; use another format")
        with failing, _quiet(), torch.no_grad():
            torch.onnx.export(
                _UnitLength(folded(tower), list(inputs)).eval(),
                tuple(inputs.values()),
                str(whole),
                input_names=list(inputs),
                output_names=[f"{side}_features"],
                dynamic_shapes=(shapes,),
                opset_version=OPSET,
                external_data=large,
                custom_translation_table={torch.ops.aten._is_all_true.default: _all_true},
                dynamo=True,
                verbose=False,
            )
            if self.int8:
                from onnxruntime.quantization import QuantType, quantize_dynamic

                quantize_dynamic(whole, file, weight_type=QuantType.QInt8, use_external_data_format=large)
                shutil.rmtree(whole.parent)

    def layout(self, model: DualEncoder, folder: Path) -> Layout:
        config = read_object(folder / CONFIG_FILE)
        described = {"image": config["preprocessing"], "text": config["text"] and config["text"]["pad_token"]}
        return replace(
            model.layout(),
            library="onnx",
            class_name=None,
            repairs=bool(config["text"] and config["text"]["repair"]),
            prepared_by_clipkit=tuple(side for side in model.sides if described[side] is None),
            source=model.name,
        )

    def usage(self, folder: Path) -> str:
        return (
            f'session = onnxruntime.InferenceSession("{folder / "image.onnx"}")  # opset {OPSET}\n'
            f"# {folder / 'example.py'} prepares images and captions, without torch"
        )


class _UnitLength(nn.Module):
    """Wrapper of a tower that takes positional inputs and returns unit-length features."""

    def __init__(self, tower: Tower, names: list[str]) -> None:
        super().__init__()
        self.tower = tower
        self.names = names

    def forward(self, *inputs: Tensor) -> Float[Tensor, "B D"]:
        return F.normalize(self.tower(dict(zip(self.names, inputs, strict=True))), dim=-1)


def _all_true(values: Any) -> Any:
    """Translate `torch.all` to ONNX."""
    # The exporter lacks this operation, with which SigLIP 2 checks image shapes.
    from onnx import TensorProto
    from onnxscript import opset18

    op: Any = opset18
    return op.Cast(op.ReduceMin(op.Cast(values, to=TensorProto.INT32), keepdims=0), to=TensorProto.BOOL)


def _example(folder: Path) -> Any:
    """Run example.py of an exported folder, and return its functions as attributes."""
    # Unlike an import, this writes no bytecode files.
    return SimpleNamespace(**runpy.run_path(str(folder / "example.py")))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the log messages and warnings of the ONNX exporter inside a `with` block."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
