"""Tiny random models of every family, written by transformers."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from clipkit.models.image_processors import processor_class

WORDS = [
    "a",
    "red",
    "green",
    "blue",
    "yellow",
    "square",
    "circle",
    "stripe",
    "cross",
    "the",
    "is",
    "two",
    "dogs",
    "running",
]
WORDS += ["through", "low", "body", "of", "water", "x"]
SENTENCES = [
    "a red square",
    "Two DOGS running, through a low body of water.",
    "x",
    "the circle is blue and the stripe is green",
]
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = SMALL | {"image_size": 32, "patch_size": 8}


def bert_tokenizer() -> Any:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "##s", "and", *WORDS]
    return transformers.BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, model_max_length=64)


def sentencepiece_model(**options: Any) -> bytes:
    """Train a tiny sentencepiece model."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*SENTENCES, *WORDS] * 20), model_writer=model, vocab_size=150, minloglevel=2,
        hard_vocab_limit=False, **options,
    )  # fmt: skip
    return model.getvalue()


def xlm_roberta_tokenizer(folder: Path, **options: Any) -> Any:
    folder.mkdir(parents=True)
    (folder / "sentencepiece.bpe.model").write_bytes(sentencepiece_model())
    return transformers.XLMRobertaTokenizer.from_pretrained(folder, **options)


def clip_processor() -> Any:
    return processor_class("CLIP")(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def vit_processor() -> Any:
    return processor_class("ViT")(size={"height": 32, "width": 32})


def save(folder: Path, *parts: Any) -> None:
    for part in parts:
        part.save_pretrained(folder)


def align(folder: Path) -> None:
    tokenizer = bert_tokenizer()
    text = SMALL | {"vocab_size": len(tokenizer), "max_position_embeddings": 80, "pad_token_id": 0}
    vision = {
        "image_size": 32, "width_coefficient": 0.2, "depth_coefficient": 0.1, "hidden_dim": 24,
    }  # fmt: skip
    model = transformers.AlignModel(transformers.AlignConfig(text_config=text, vision_config=vision, projection_dim=64))
    for module in model.modules():  # or its random features would be nothing but zeros
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train().vision_model(torch.randn(16, 3, 32, 32))
    processor = processor_class("EfficientNet")(
        size={"height": 36, "width": 36}, crop_size={"height": 32, "width": 32}, do_center_crop=True,
        include_top=False, rescale_factor=1 / 127.5, rescale_offset=True,
    )  # fmt: skip
    save(folder, model, tokenizer, processor)


def altclip(folder: Path) -> None:
    tokenizer = xlm_roberta_tokenizer(folder / "spm", model_max_length=62)
    text = SMALL | {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "project_dim": 20, "pad_token_id": 1}
    config = transformers.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    save(folder, transformers.AltCLIPModel(config), tokenizer, clip_processor())


def chinese_clip(folder: Path) -> None:
    tokenizer = bert_tokenizer()
    text = SMALL | {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "pad_token_id": 0}
    config = transformers.ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    processor = processor_class("ChineseCLIP")(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}, do_center_crop=False
    )
    save(folder, transformers.ChineseCLIPModel(config), tokenizer, processor)


def clip(folder: Path, activation: str = "quick_gelu", legacy_end: bool = False) -> None:
    from tests.conftest import clip_vocabulary

    vocabulary, merges = clip_vocabulary(500)
    end = len(vocabulary) - 1
    text = SMALL | {
        "vocab_size": end + 1, "bos_token_id": end - 1, "pad_token_id": end, "hidden_act": activation,
        "eos_token_id": 2 if legacy_end else end,
    }  # fmt: skip
    config = transformers.CLIPConfig(
        text_config=text, vision_config=VISION | {"hidden_act": activation}, projection_dim=24
    )
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[tuple(merge.split()) for merge in merges])
    save(folder, transformers.CLIPModel(config), tokenizer, clip_processor())


def clip_legacy(folder: Path) -> None:
    """Like the first CLIP checkpoints on the Hub: the end token's id in the configuration is wrong."""
    clip(folder, "gelu", legacy_end=True)


def metaclip_2(folder: Path) -> None:
    tokenizer = xlm_roberta_tokenizer(folder / "spm", model_max_length=77)
    text = SMALL | {
        "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": 0, "pad_token_id": 1,
    }  # fmt: skip
    config = transformers.MetaClip2Config(text_config=text, vision_config=VISION, projection_dim=24)
    save(folder, transformers.MetaClip2Model(config), tokenizer, clip_processor())


def siglip(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(sentencepiece_model(pad_id=0, eos_id=1, unk_id=2, bos_id=-1))
    tokenizer = transformers.SiglipTokenizer(str(folder / "spiece.model"), model_max_length=64)
    text = SMALL | {"vocab_size": 200, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 1}
    config = transformers.SiglipConfig(text_config=text, vision_config=VISION)
    processor = processor_class("Siglip")(size={"height": 32, "width": 32})
    save(folder, transformers.SiglipModel(config), tokenizer, processor)


def siglip2(folder: Path) -> None:
    letters = [*sorted(set("".join(SENTENCES).lower() + "".join(WORDS)) - {" "}), "▁"]
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *letters, "re", "red"]
    tokenizer = transformers.Siglip2Tokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)}, merges=[("r", "e"), ("re", "d")],
        model_max_length=64,
    )  # fmt: skip
    text = SMALL | {"vocab_size": len(pieces), "max_position_embeddings": 64, "bos_token_id": 2, "eos_token_id": 1}
    vision = SMALL | {"num_patches": 16, "patch_size": 8}
    config = transformers.Siglip2Config(text_config=text, vision_config=vision)
    processor = processor_class("Siglip2")(patch_size=8, max_num_patches=20)
    save(folder, transformers.Siglip2Model(config), tokenizer, processor)


def vision_text_dual_encoder(folder: Path) -> None:
    tokenizer = bert_tokenizer()
    text = transformers.BertConfig(**SMALL, vocab_size=len(tokenizer), max_position_embeddings=64)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        transformers.ViTConfig(**VISION), text, projection_dim=24
    )
    save(folder, transformers.VisionTextDualEncoderModel(config), tokenizer, vit_processor())


FAMILIES: dict[str, Callable[[Path], None]] = {
    "align": align,
    "altclip": altclip,
    "chinese_clip": chinese_clip,
    "clip": clip,
    "clip_legacy": clip_legacy,
    "metaclip_2": metaclip_2,
    "siglip": siglip,
    "siglip2": siglip2,
    "vision_text_dual_encoder": vision_text_dual_encoder,
}


def build(name: str, folder: Path) -> Path:
    """Write the tiny model of a family to a folder, and return the folder."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    FAMILIES[name](folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"]
    return folder
