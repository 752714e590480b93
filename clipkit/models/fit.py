"""Checks that the tokenizer fits the text tower, and the preprocessing fits the image tower."""

import logging
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from clipkit.errors import ModelError, UserError, one_line
from clipkit.models.tokenizer import OpenClipTokenizer
from clipkit.models.towers import ImageTower, TextTower
from clipkit.models.trunks import CausalText

log = logging.getLogger("clipkit")

# Embedding tables may have more rows than the tokenizer has tokens: mT5 has 112 unused rows, CLIPA 1,478 of 32,000.
_SPARE_ROWS = 256
_USED_ROWS = 0.8
# Sizes of a landscape and a portrait image that leave an odd number of pixels after every resizing.
_SHAPES = ((97, 64), (64, 97))


def check_fit(image: ImageTower | None, text: TextTower | None, name: str) -> None:
    """Check that the parts of a model fit each other, by preprocessing two images and comparing shapes.

    Args:
        image: the image tower, if the model has one.
        text: the text tower, if the model has one.
        name: the model's name, for errors.

    Raises:
        ModelError: the tokenizer does not fit the text tower, or the preprocessing does not fit the image tower.
    """
    if text is not None:
        _check_tokenizer(text, name)
    if image is not None:
        _check_preprocessing(image, name)


def _check_tokenizer(tower: TextTower, name: str) -> None:
    rows, tokenizer = _embedding_rows(tower.trunk), tower.tokenize
    if rows is None:
        return
    advice = "use the tokenizer that the text tower was trained with"
    if tokenizer.vocab_size > rows:
        raise ModelError(
            f"{name}: its tokenizer produces token IDs up to {tokenizer.vocab_size - 1}, but its text tower "
            f"has embeddings for only {rows} tokens; {advice}, or resize the embeddings after adding tokens"
        )
    tokens, special = _token_counts(tokenizer)
    if tokens <= special:
        raise ModelError(f"{name}: its tokenizer has only {special} special tokens and no words; {advice}")
    if rows - tokens > _SPARE_ROWS and tokens < _USED_ROWS * rows:
        raise ModelError(
            f"{name}: its tokenizer has {tokens} tokens, but its text tower has embeddings for {rows}, so the "
            f"tokenizer and the tower do not belong together; {advice}"
        )
    end = _end_token(tower.trunk)
    if end == "highest" and (last := tokenizer(["a"])["input_ids"][0].max().item()) < tokenizer.vocab_size - 1:
        log.warning(
            "%s: its text tower reads the features of a caption at the token with the highest ID, which should be the "
            "end token %d, but the tokenizer has tokens with higher IDs; do not use these tokens in captions",
            *(name, last),
        )
    elif isinstance(end, int) and end not in (ids := tokenizer(["a"])["input_ids"][0].tolist()):
        raise ModelError(
            f"{name}: its text tower reads the features of a caption at the end token {end}, but its "
            f"tokenizer does not add the token {end} ('a' becomes {ids[:5]}); {advice}"
        )


def _embedding_rows(trunk: Any) -> int | None:
    """Return the number of token embeddings, or None if the tower has no embedding table."""
    # Before transformers 5.4, CLIP's text transformer has no get_input_embeddings.
    holders: list[Any] = [getattr(trunk.native, name, None) for name in ("transformer", "embeddings")]
    holders.insert(0, trunk.native)
    for holder in holders:
        table = getattr(holder, "token_embedding", None)
        if table is None and hasattr(holder, "get_input_embeddings"):
            try:
                table = holder.get_input_embeddings()
            except (NotImplementedError, AttributeError):
                table = None
        if isinstance(table, nn.Embedding):
            return table.num_embeddings
    return None


def _token_counts(tokenizer: Any) -> tuple[int, int]:
    """Return the number of all tokens of a tokenizer, and the number of its special tokens."""
    native = tokenizer.inner if isinstance(tokenizer, OpenClipTokenizer) else tokenizer.native
    return (tokenizer.vocab_size, 0) if native is None else (len(native), len(native.all_special_ids))


def _end_token(trunk: Any) -> int | Literal["highest"] | None:
    """Return the ID of the end token, at which a causal tower reads its features.

    The result is "highest" if the tower uses the token with the highest ID in the text. It is None if the tower does
    not read its features at one token.
    """
    if isinstance(trunk, CausalText):
        return "highest" if trunk.end is None else trunk.end
    config: Any = getattr(trunk.native, "config", None)
    if getattr(config, "model_type", None) not in ("clip_text_model", "metaclip_2_text_model"):
        return None
    # The first CLIP configurations have 2; transformers then uses the highest ID.
    return "highest" if config.eos_token_id == 2 and config.model_type == "clip_text_model" else config.eos_token_id


def _check_preprocessing(tower: ImageTower, name: str) -> None:
    advice = "use the preprocessing (or model.image.image_size) that the tower was trained with"
    try:
        landscape, portrait = (tower.preprocess(Image.new("RGB", shape, (90, 120, 150))) for shape in _SHAPES)
    except UserError:
        raise
    except Exception as error:  # libraries raise errors of many kinds
        raise ModelError(f"{name}: its image preprocessing fails ({one_line(error)}); {advice}") from None
    for key, value in landscape.items():
        if value.shape != portrait[key].shape:
            raise ModelError(
                f"{name}: its image preprocessing returns {key} of shape {_words(value)} for an image of 97 × 64 "
                f"pixels, but {_words(portrait[key])} for 64 × 97, so images do not form a batch; set a crop or a "
                "fixed size"
            )
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ModelError(f"{name}: its image preprocessing returns {key} that are not finite; check image_std")
    pixels, side, stated = landscape["pixel_values"], tower.preprocess.image_size, _stated_shape(tower.trunk)
    refused = None
    if side is not None and tuple(pixels.shape[-2:]) != (side, side):
        refused = f"training crops have {side} × {side} pixels"
    elif stated is None or tuple(pixels.shape[-len(stated) :]) != stated:
        refused = _refusal(tower.trunk, landscape)
    if refused is not None:
        wanted = f", but the tower expects {' × '.join(map(str, stated))}" if stated is not None else ""
        raise ModelError(
            f"{name}: its image preprocessing returns pixels of shape {_words(pixels)}{wanted} ({refused}); {advice}"
        )


def _stated_shape(trunk: Any) -> tuple[int, ...] | None:
    """Return the last dimensions of the input that the tower's configuration states, or None.

    The tower may also accept other shapes.
    """
    native = trunk.native
    config: Any = getattr(native, "config", None)
    size = getattr(config, "image_size", getattr(native, "image_size", None))
    channels = int(getattr(config, "num_channels", 3))
    if size is None and hasattr(config, "num_patches"):  # patches as rows
        return (channels * config.patch_size**2,)
    if isinstance(size, int):
        size = (size, size)
    return (channels, *size) if isinstance(size, tuple | list) else None


def _refusal(trunk: nn.Module, inputs: dict[str, Tensor]) -> str | None:
    """Return the error message of a tower for these inputs, or None if the tower accepts them.

    The tower first runs on the meta device, which computes only shapes. If this fails, it runs normally.
    """
    batch = {name: value[None] for name, value in inputs.items()}
    batch = {name: value / 255 if value.dtype == torch.uint8 else value for name, value in batch.items()}
    tensors = {**dict(trunk.named_parameters()), **dict(trunk.named_buffers())}
    shapes, inputs = ({name: value.to("meta") for name, value in of.items()} for of in (tensors, batch))
    trunk.eval()  # the mode in which all loaders return it; draws no random numbers
    with torch.no_grad():
        try:
            functional_call(trunk, shapes, (), inputs)
        except Exception:
            try:
                trunk(**batch)
            except Exception as error:  # libraries raise errors of many kinds
                return one_line(error)
    return None


def _words(value: Tensor) -> str:
    return " × ".join(map(str, value.shape))
