"""Compare images and captions with onnxruntime. Needs numpy, pillow, tokenizers and onnxruntime, but not torch.

    python example.py image.jpg "a cat" "a dog"      (without arguments: a red image, "red" and "blue")

Models of open_clip also need ftfy. `encode_images` and `encode_texts` return the same unit-length features as the
original model.
"""

import html
import json
import math
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

# Pillow also has formats that start programs, e.g. EPS.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
FOLDER = Path(__file__).parent
CONFIG: dict[str, Any] = {}
if (FOLDER / "clipkit_onnx.json").is_file():
    CONFIG = json.loads((FOLDER / "clipkit_onnx.json").read_text(encoding="utf-8"))


def rgb(image: Image.Image | str | Path) -> Image.Image:
    """Open an image or a file as an upright RGB image with 8 bits per channel; transparency becomes white."""
    image = ImageOps.exif_transpose(image if isinstance(image, Image.Image) else Image.open(image, formats=FORMATS))
    if image.mode.startswith("I"):
        values = np.asarray(image)
        bits = next(bits for bits in (8, 10, 12, 14, 16) if values.max() < 1 << bits)
        image = Image.fromarray((values >> (bits - 8)).astype("uint8"))
    if image.mode == "F":
        values = np.asarray(image, dtype="float64")
        shares = values / (1 if values.max() <= 1.1 else 255)
        image = Image.fromarray((shares.clip(0, 1) * 255).round().astype("uint8"))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def repaired(text: str) -> str:
    """Repair HTML entities, curly quotes and broken characters in a caption, as in the training of open_clip models."""
    try:
        import ftfy
    except ImportError:
        raise SystemExit("this model needs ftfy to repair captions; run: pip install ftfy") from None
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def pixels(image: Image.Image | str | Path) -> dict[str, Any]:
    """Return the inputs of image.onnx for one image, by name.

    Most models have one input, pixel_values (3, H, W). For models that take patches, see `patches`.
    """
    settings = CONFIG["preprocessing"]
    if settings is None:
        raise SystemExit("clipkit_onnx.json does not describe the image preprocessing; prepare images with clipkit")
    image = rgb(image)
    if "patches" in settings:
        return patches(image)
    side, resize = settings["size"], settings["resize"]
    if settings["resize_mode"] == "squash":
        size = (resize, resize)
    else:
        width, height = image.size
        longer = int(resize * max(width, height) / min(width, height))
        size = (resize, longer) if width <= height else (longer, resize)
    image = image.resize(size, getattr(Image.Resampling, settings["interpolation"].upper()))
    # If an odd number of pixels is left over, libraries round the position of the crop differently.
    rounded = round if settings["crop_offset"] == "round" else int
    left, top = rounded((image.width - side) / 2), rounded((image.height - side) / 2)
    return {"pixel_values": normalized(image.crop((left, top, left + side, top + side))).transpose(2, 0, 1)}


def patches(image: Image.Image) -> dict[str, Any]:
    """Cut an image of any shape into square patches, and return the inputs of image.onnx by name.

    pixel_values has shape (P, 3 * side * side), with one row per patch and zeros as padding.
    """
    settings = CONFIG["preprocessing"]
    side, most = settings["patch"], settings["patches"]

    def grid(scale: float) -> tuple[int, int]:
        return tuple(max(1, math.ceil(scale * length / side)) for length in (image.height, image.width))

    # Search the largest scale that does not give too many patches, with the precision of the model's library.
    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(grid(middle)) <= most else (low, middle)
    rows, columns = grid(low)
    resized = image.resize((columns * side, rows * side), getattr(Image.Resampling, settings["interpolation"].upper()))
    cut = normalized(resized).reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(rows * columns, -1)
    return {
        "pixel_values": np.pad(cut, ((0, most - len(cut)), (0, 0))),
        "pixel_attention_mask": (np.arange(most) < len(cut)).astype(np.int32),
        "spatial_shapes": np.array([rows, columns], dtype=np.int64),
    }


def normalized(image: Image.Image) -> Any:
    """Return the normalized pixels of an RGB image (H, W, 3) as float32."""
    mean, std = (np.asarray(CONFIG["preprocessing"][name], dtype=np.float32) for name in ("mean", "std"))
    return (np.asarray(image, dtype=np.float32) / 255 - mean) / std


@cache
def tokenizer() -> Any:
    """Return the tokenizer; it truncates and pads texts for text.onnx."""
    from tokenizers import Tokenizer

    settings = CONFIG["text"]
    if settings["pad_token"] is None:
        raise SystemExit("this folder has no tokenizer.json; tokenize captions with clipkit")
    opened = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    opened.enable_truncation(settings["context_length"])
    # Towers that attend to padding need all captions at full length.
    length = settings["context_length"] if settings["fixed_length"] else None
    opened.enable_padding(pad_id=settings["pad_id"], pad_token=settings["pad_token"], length=length)
    return opened


def tokens(texts: Sequence[str]) -> dict[str, Any]:
    """Return the inputs of text.onnx for M texts, by name, each of shape (M, L)."""
    settings = CONFIG["text"]
    texts = [repaired(text) for text in texts] if settings["repair"] else texts
    encodings = tokenizer().encode_batch([text.lower() for text in texts] if settings["lowercase"] else list(texts))
    ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
    mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
    inputs = {"input_ids": ids, "attention_mask": mask}
    return {name: inputs[name] for name in settings["inputs"]}


@cache
def session(file: str) -> Any:
    """Open an ONNX file next to this script; a second call returns the same session."""
    import onnxruntime

    return onnxruntime.InferenceSession(FOLDER / file, providers=["CPUExecutionProvider"])


def run(file: str, inputs: dict[str, Any]) -> Any:
    """Run an ONNX file on inputs, and return its output."""
    return session(file).run(None, inputs)[0]


def encode_images(images: Sequence[Image.Image | str | Path]) -> Any:
    """Return the unit-length features (N, D) of N images."""
    prepared = [pixels(image) for image in images]
    return run("image.onnx", {name: np.stack([inputs[name] for inputs in prepared]) for name in prepared[0]})


def encode_texts(texts: Sequence[str]) -> Any:
    """Return the unit-length features (M, D) of M texts."""
    return run("text.onnx", tokens(texts))


def probabilities(image_features: Any, text_features: Any) -> Any:
    """Return the probability (N, M) of each text for each image.

    Models with a logit bias use a sigmoid. Other models use a softmax over the texts.
    """
    logits = CONFIG["scale"] * (image_features @ text_features.T)
    if CONFIG["bias"] is not None:
        return 1 / (1 + np.exp(-(logits + CONFIG["bias"])))
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def main() -> None:
    """Print the probability of each caption for an image.

    If the model has only one tower, print the shape of the features of a built-in input.
    """
    image: Any = sys.argv[1] if len(sys.argv) > 1 else Image.new("RGB", (300, 200), "red")
    texts = sys.argv[2:] or ["red", "blue"]
    if CONFIG["text"] is None or not (FOLDER / "image.onnx").is_file():
        if len(sys.argv) > 1:
            raise SystemExit(
                "this model has only one tower and cannot compare images with texts; call encode_images or encode_texts"
            )
        print("features:", (encode_images([image]) if CONFIG["text"] is None else encode_texts(texts)).shape)
        return
    shares = probabilities(encode_images([image]), encode_texts(texts))[0].tolist()
    for share, text in sorted(zip(shares, texts, strict=True), reverse=True):
        print(f"{share:.3f}  {text}")


if __name__ == "__main__":
    main()
