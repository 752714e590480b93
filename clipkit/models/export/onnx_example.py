"""Similarities of images and captions by onnxruntime; needs numpy, pillow, tokenizers and onnxruntime, not torch.

    python example.py image.jpg "a cat" "a dog"

`encode_images` and `encode_texts` give features of unit length, as the model that this folder was exported from does.
"""

import json
import math
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FOLDER = Path(__file__).parent
CONFIG: dict[str, Any] = {}
if (FOLDER / "clipkit_onnx.json").is_file():
    CONFIG = json.loads((FOLDER / "clipkit_onnx.json").read_text(encoding="utf-8"))


def pixels(image: Image.Image) -> dict[str, Any]:
    """Inputs of image.onnx by name, of one image: (3, H, W), or as many patches as the model takes."""
    how = CONFIG["preprocessing"]
    if how is None:
        raise SystemExit("clipkit_onnx.json does not say how images are prepared: this model has a way of its own")
    image = image.convert("RGB")
    if "patches" in how:
        return patches(image)
    side, resize = how["size"], how["resize"]
    if how["resize_mode"] == "squash":
        size = (resize, resize)
    else:
        width, height = image.size
        longer = int(resize * max(width, height) / min(width, height))
        size = (resize, longer) if width <= height else (longer, resize)
    image = image.resize(size, getattr(Image.Resampling, how["interpolation"].upper()))
    # Libraries disagree where the middle lies if an odd number of pixels is left over.
    half = round if how["crop_offset"] == "round" else int
    left, top = half((image.width - side) / 2), half((image.height - side) / 2)
    return {"pixel_values": normalised(image.crop((left, top, left + side, top + side))).transpose(2, 0, 1)}


def patches(image: Image.Image) -> dict[str, Any]:
    """An image in its own shape as rows of square patches: (P, 3 * side * side), filled up with zeros."""
    how = CONFIG["preprocessing"]
    side, most = how["patch"], how["patches"]

    def grid(scale: float) -> tuple[int, int]:
        return tuple(max(1, math.ceil(scale * length / side)) for length in (image.height, image.width))

    # The largest scale at which there are not too many; searched as coarsely as the model's own library does.
    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(grid(middle)) <= most else (low, middle)
    rows, columns = grid(low)
    resized = image.resize((columns * side, rows * side), getattr(Image.Resampling, how["interpolation"].upper()))
    cut = normalised(resized).reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(rows * columns, -1)
    return {
        "pixel_values": np.pad(cut, ((0, most - len(cut)), (0, 0))),
        "pixel_attention_mask": (np.arange(most) < len(cut)).astype(np.int32),
        "spatial_shapes": np.array([rows, columns], dtype=np.int64),
    }


def normalised(image: Image.Image) -> Any:
    """(H, W, 3) in float32."""
    mean, std = (np.asarray(CONFIG["preprocessing"][name], dtype=np.float32) for name in ("mean", "std"))
    return (np.asarray(image, dtype=np.float32) / 255 - mean) / std


def tokens(texts: Sequence[str]) -> dict[str, Any]:
    """Inputs of text.onnx by name, each (M, L)."""
    from tokenizers import Tokenizer

    how = CONFIG["text"]
    if how["pad_token"] is None:
        raise SystemExit("this folder has no tokenizer.json: tokenise with the model's own library")
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.enable_truncation(how["context_length"])
    # A tower that looks at its padding always gets its whole length.
    length = how["context_length"] if how["fixed_length"] else None
    tokenizer.enable_padding(pad_id=how["pad_id"], pad_token=how["pad_token"], length=length)
    found = tokenizer.encode_batch([text.lower() for text in texts] if how["lowercase"] else list(texts))
    ids = np.array([own.ids for own in found], dtype=np.int64)
    mask = np.array([own.attention_mask for own in found], dtype=np.int64)
    given = {"input_ids": ids, "attention_mask": mask}
    return {name: given[name] for name in how["inputs"]}


@cache
def session(file: str) -> Any:
    """A model of this folder, opened once."""
    import onnxruntime

    return onnxruntime.InferenceSession(FOLDER / file, providers=["CPUExecutionProvider"])


def run(file: str, inputs: dict[str, Any]) -> Any:
    """The only output of a model."""
    return session(file).run(None, inputs)[0]


def encode_images(images: Sequence[Image.Image]) -> Any:
    """(N, D)."""
    prepared = [pixels(own) for own in images]
    return run("image.onnx", {name: np.stack([own[name] for own in prepared]) for name in prepared[0]})


def encode_texts(texts: Sequence[str]) -> Any:
    """(M, D)."""
    return run("text.onnx", tokens(texts))


def main() -> None:
    """Probability of each caption for the image: softmax, or sigmoid where the model has a bias."""
    image, *texts = sys.argv[1:]
    if CONFIG["text"] is None or not (FOLDER / "image.onnx").is_file():
        raise SystemExit("this model has one tower: there is nothing to compare; call encode_images or encode_texts")
    with Image.open(image) as opened:
        logits = CONFIG["scale"] * (encode_images([opened]) @ encode_texts(texts).T)[0]
    if CONFIG["bias"] is not None:
        shares = 1 / (1 + np.exp(-(logits + CONFIG["bias"])))
    else:
        shares = np.exp(logits - logits.max())
        shares = shares / shares.sum()
    for share, text in sorted(zip(shares.tolist(), texts, strict=True), reverse=True):
        print(f"{share:.3f}  {text}")


if __name__ == "__main__":
    main()
