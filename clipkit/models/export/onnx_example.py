"""Similarities of pictures and captions by onnxruntime; needs numpy, pillow, tokenizers and onnxruntime, not torch.

    python example.py picture.jpg "a cat" "a dog"

`encode_images` and `encode_texts` give features of unit length, as the model that this folder was exported from does.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FOLDER = Path(__file__).parent
CONFIG: dict[str, Any] = {}
if (FOLDER / "clipkit_onnx.json").is_file():
    CONFIG = json.loads((FOLDER / "clipkit_onnx.json").read_text(encoding="utf-8"))


def pixels(picture: Image.Image) -> Any:
    """Resize, cut the middle out, scale to [0, 1], normalise: (3, H, W)."""
    how = CONFIG["preprocessing"]
    if how is None:
        raise SystemExit("clipkit_onnx.json does not say how pictures are prepared: this model has a way of its own")
    picture = picture.convert("RGB")
    side, resize = how["size"], how["resize"]
    if how["resize_mode"] == "squash":
        size = (resize, resize)
    else:
        width, height = picture.size
        longer = int(resize * max(width, height) / min(width, height))
        size = (resize, longer) if width <= height else (longer, resize)
    picture = picture.resize(size, getattr(Image.Resampling, how["interpolation"].upper()))
    # Libraries disagree where the middle lies if an odd number of pixels is left over.
    half = round if how["crop_offset"] == "round" else int
    left, top = half((picture.width - side) / 2), half((picture.height - side) / 2)
    scaled = np.asarray(picture.crop((left, top, left + side, top + side)), dtype=np.float32) / 255
    mean, std = (np.asarray(how[name], dtype=np.float32) for name in ("mean", "std"))
    return ((scaled - mean) / std).transpose(2, 0, 1)


def tokens(texts: Sequence[str]) -> dict[str, Any]:
    """Inputs of text.onnx by name, each (M, L)."""
    from tokenizers import Tokenizer

    how = CONFIG["text"]
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


def run(file: str, inputs: dict[str, Any]) -> Any:
    """The only output of a model."""
    import onnxruntime

    session = onnxruntime.InferenceSession(FOLDER / file, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def encode_images(pictures: Sequence[Image.Image]) -> Any:
    """(N, D)."""
    return run("image.onnx", {"pixel_values": np.stack([pixels(own) for own in pictures])})


def encode_texts(texts: Sequence[str]) -> Any:
    """(M, D)."""
    return run("text.onnx", tokens(texts))


def main() -> None:
    """Probability of each caption for the picture: softmax, or sigmoid where the model has a bias."""
    picture, *texts = sys.argv[1:]
    with Image.open(picture) as opened:
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
