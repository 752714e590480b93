"""To ONNX: a graph a tower, with all that it takes to feed them without torch, and an example that does."""

import importlib.util
import json
import logging
import math
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from clipkit.errors import ModelError, one_line
from clipkit.models.absent import is_absent
from clipkit.models.composed import Composed, data_config
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.encode import stack_inputs
from clipkit.models.export import onnx_example
from clipkit.models.export.clip_bpe import for_transformers
from clipkit.models.export.samples import CAPTIONS
from clipkit.models.export.samples import images as sample_images
from clipkit.models.export.transformers import with_cleaning
from clipkit.models.from_open_clip import FromOpenClip
from clipkit.models.from_transformers import FromTransformers
from clipkit.models.tokenizer import OpenClipTokenizer, TransformersTokenizer
from clipkit.models.towers import Tower

OPSET = 18
CONFIG_FILE = "clipkit_onnx.json"
_LARGEST = 1_800_000_000
"""Bytes of weights that one file of protocol buffers holds; more lie beside it."""


class Onnx:
    """`image.onnx` and `text.onnx` for onnxruntime: features of unit length, any number of inputs of any length.

    Args:
        int8: weights of linear maps as 8-bit integers, a quarter of the size, at a loss that the proof measures.
    """

    def __init__(self, int8: bool = False) -> None:
        self.int8 = int8
        self.tolerance = math.inf if int8 else 1e-4  # 8 bits are judged by their cosines
        self._model: DualEncoder | None = None

    def write(self, model: DualEncoder, folder: Path) -> list[str]:
        _check_installed()
        self._model = model
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
        if not is_absent(model.image):
            image = sample_images()[0]
            inputs = stack_inputs([model.image.preprocess(image)] * 2)
            self._write_tower(model, model.image, inputs, folder / "image.onnx", ["image_features"], (0,))
            config["preprocessing"] = _preprocessing(model)
            if config["preprocessing"] is None:
                notes.append("how images are prepared cannot be said in clipkit_onnx.json: prepare them as before")
        if not is_absent(model.text):
            inputs = model.text.tokenize(list(CAPTIONS[:2]))
            masked = "attention_mask" in inputs
            self._write_tower(
                model, model.text, inputs, folder / "text.onnx", ["text_features"], (0, 1) if masked else (0,)
            )
            config["text"] = _text(model, inputs, folder)
            if isinstance(model.text.tokenize, OpenClipTokenizer):
                notes.append(
                    "open_clip mends broken letters and HTML entities (&amp;) in a caption first, which tokenizer.json "
                    "does not: give it mended captions"
                )
            if config["text"]["pad_token"] is None:
                notes.append("its tokenizer has no tokenizer.json, only its own files: tokenise as before")
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.copy(onnx_example.__file__, folder / "example.py")
        return notes

    def _write_tower(
        self,
        model: DualEncoder,
        tower: Tower,
        inputs: dict[str, Tensor],
        file: Path,
        outputs: list[str],
        dynamic: tuple[int, ...],
    ) -> None:
        shapes = tuple(dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC) for _ in inputs)
        large = sum(parameter.numel() * 4 for parameter in tower.parameters()) > _LARGEST
        # Large weights lie beside their file, by a name within it: what is quantised has a folder of its own.
        whole = file.parent / "float32" / file.name if self.int8 else file
        whole.parent.mkdir(exist_ok=True)
        try:
            with _quiet(), torch.no_grad():
                torch.onnx.export(
                    _Unit(tower, list(inputs)).eval(),
                    tuple(inputs.values()),
                    str(whole),
                    input_names=list(inputs),
                    output_names=outputs,
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
        except Exception as error:  # the exporter raises whatever its passes raise
            raise ModelError(
                f"{model.name}: its {file.stem} tower cannot be said in ONNX ({one_line(error)})"
            ) from None

    def encode(
        self, folder: Path, images: Sequence[Image.Image], captions: Sequence[str]
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]:
        """By the example in the folder, which has nothing but the folder."""
        example = _example(folder)
        try:
            return self._by(example, images, captions)
        except Exception as error:  # onnxruntime raises whatever its kernels raise
            raise ModelError(f"onnxruntime cannot run what was written ({one_line(error)}); nothing was kept") from None

    def _by(
        self, example: Any, images: Sequence[Image.Image], captions: Sequence[str]
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]:
        image = text = np.zeros((0, 1), np.float32)
        model = self._model
        if images:
            own = example.CONFIG["preprocessing"] is None and model is not None
            inputs = stack_inputs([model.image.preprocess(p.convert("RGB")) for p in images]) if own and model else {}
            image = example.run("image.onnx", _arrays(inputs)) if own else example.encode_images(list(images))
        if captions:
            own = example.CONFIG["text"]["pad_token"] is None and model is not None
            inputs = model.text.tokenize(list(captions)) if own and model else {}
            text = example.run("text.onnx", _arrays(inputs)) if own else example.encode_texts(list(captions))
        return torch.from_numpy(image), torch.from_numpy(text)

    def usage(self, folder: Path) -> str:
        return (
            f'session = onnxruntime.InferenceSession("{folder / "image.onnx"}")  # opset {OPSET}\n'
            f"# {folder / 'example.py'} prepares images and captions, without torch"
        )


class _Unit(nn.Module):
    """A tower by the order of its inputs; features of unit length."""

    def __init__(self, tower: Tower, names: list[str]) -> None:
        super().__init__()
        self.tower = tower
        self.names = names

    def forward(self, *inputs: Tensor) -> Float[Tensor, "B D"]:
        return F.normalize(self.tower(dict(zip(self.names, inputs, strict=True))), dim=-1)


def _check_installed() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(f"{missing[0]} is not installed, which ONNX takes; pip install clipkit-torch[onnx]")


def _all_true(values: Any) -> Any:
    """What the exporter has no word for; SigLIP 2 checks the shapes of its images by it."""
    from onnx import TensorProto
    from onnxscript import opset18

    op: Any = opset18
    return op.Cast(op.ReduceMin(op.Cast(values, to=TensorProto.INT32), keepdims=0), to=TensorProto.BOOL)


def _example(folder: Path) -> Any:
    """The folder's own example.py as a module; nothing is written beside it."""
    spec = importlib.util.spec_from_file_location("clipkit_onnx_example", folder / "example.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    before = sys.dont_write_bytecode
    try:
        sys.dont_write_bytecode = True
        spec.loader.exec_module(example)
    finally:
        sys.dont_write_bytecode = before
    return example


def _arrays(inputs: dict[str, Tensor]) -> dict[str, Any]:
    return {name: value.numpy() for name, value in inputs.items()}


def _preprocessing(model: DualEncoder) -> dict[str, Any] | None:
    """How images are prepared, in the example's words; None where it has none for it."""
    preprocess, backend = model.image.preprocess, model.backend
    how: tuple[str, int, str, str] | None = None
    if isinstance(backend, FromTransformers) and preprocess.image_size is None:
        processor = backend.processor
        return {
            "patch": processor.patch_size,
            "patches": processor.max_num_patches,
            "interpolation": Image.Resampling(processor.resample).name.lower(),
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
        }
    if isinstance(backend, FromTransformers) and preprocess.finish is None:
        processor = backend.processor
        cropped = getattr(processor, "do_center_crop", False)
        resize = processor.size.get("shortest_edge") or processor.size.get("height")
        mode = "shortest" if processor.size.get("shortest_edge") else "squash"
        if processor.do_resize and (cropped or (mode == "squash" and resize == preprocess.image_size)):
            how = (mode, resize, Image.Resampling(processor.resample).name.lower(), "floor")
    elif isinstance(backend, FromOpenClip):
        config = backend.native.visual.preprocess_cfg
        if config["resize_mode"] in ("shortest", "squash") and preprocess.image_size is not None:
            how = (config["resize_mode"], preprocess.image_size, config["interpolation"], "round")
    elif isinstance(backend, Composed) and preprocess.image_size is not None:
        native: Any = model.image.trunk.native
        own = data_config(native, preprocess.image_size)
        if own["crop_mode"] == "center":
            how = ("shortest", int(preprocess.image_size / own["crop_pct"]), own["interpolation"], "round")
    if how is None:
        return None
    mode, resize, interpolation, offset = how
    return {
        "size": preprocess.image_size,
        "resize": resize,
        "resize_mode": mode,
        "interpolation": interpolation,
        "crop_offset": offset,
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
    }


def _text(model: DualEncoder, inputs: dict[str, Tensor], folder: Path) -> dict[str, Any]:
    """What the example needs to know of captions; its tokenizer goes into the folder."""
    tokenizer: Any = model.text.tokenize
    native, lower, own = tokenizer.native, False, False
    if isinstance(tokenizer, TransformersTokenizer):
        lower = tokenizer.lower
    elif getattr(native, "tokenizer", None) is not None:
        native = with_cleaning(native, tokenizer.context_length, model.name)
    else:
        native, own = for_transformers(native, tokenizer.context_length, model.name), True
    # open_clip's own pads with 0, and towers that see their padding know no other.
    padding = (tokenizer.native.decoder[0], 0) if own else (native.pad_token, native.pad_token_id)
    backend = getattr(native, "backend_tokenizer", None)
    if backend is not None:
        # What the last call asked for is no part of the file.
        backend.no_truncation()
        backend.no_padding()
        backend.save(str(folder / "tokenizer.json"))
    else:
        tokenizer.save(folder)
    return {
        "inputs": list(inputs),
        "context_length": tokenizer.context_length,
        "fixed_length": "attention_mask" not in inputs or not model.text.padding_may_be_cut,
        "pad_id": padding[1],
        "pad_token": padding[0] if backend is not None else None,
        "lowercase": lower,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of its passes, of which nothing is the user's to heed."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "root")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
