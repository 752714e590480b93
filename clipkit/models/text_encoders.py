"""Text towers of composed models: any transformers text encoder with a pooling and a projection."""

from pathlib import Path
from typing import Any, Literal

import torch

from clipkit.errors import ModelError
from clipkit.models.blocks import prefixed, transformers_blocks
from clipkit.models.families import text_encoder
from clipkit.models.folder_config import check_config
from clipkit.models.hub import local_folder
from clipkit.models.layers import LayeredText, listed
from clipkit.models.projections import NewProjection
from clipkit.models.quiet import as_model_error, without_weight_bars
from clipkit.models.tokenizer import Tokenizer, load_tokenizer, transformers_tokenizer
from clipkit.models.towers import TextTower
from clipkit.models.trunks import TextTrunk
from clipkit.models.weights import check_loaded, check_weights
from clipkit.models.wrappers import key_mapping
from clipkit.parsing import parse_json
from clipkit.recipe import TextTowerRecipe

_POOLING_FILE = Path("1_Pooling") / "config.json"
# Keys of this file before sentence-transformers 6: one boolean per pooling mode.
_OLD_POOLING = "pooling_mode_"


def text_tower(recipe: TextTowerRecipe, projection: NewProjection) -> TextTower:
    """Build the text tower that a recipe describes, with a new projection.

    Args:
        recipe: settings of the tower.
        projection: function that builds the projection, given the width of the trunk's output.

    Raises:
        ModelError: the encoder is missing or unsupported, or its tokenizer does not fit.
    """
    from transformers import AutoConfig

    name = str(recipe.name)
    library, colon, rest = name.partition(":")
    source = rest if colon and library == "hf" else name
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.context_length) if recipe.tokenizer else None
    with as_model_error(
        f"model.text.name {name}: transformers cannot build the model", "; check the name and model.text.config"
    ):
        if not recipe.pretrained:
            config = _new_config(source, recipe, tokenizer)
            native = _encoder_class(config, name).from_config(config, trust_remote_code=False)
        else:
            folder = local_folder(source)
            check_config(folder, name)
            names = check_weights(folder)
            with without_weight_bars():
                config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
                native, info = _encoder_class(config, name).from_pretrained(
                    folder,
                    dtype=torch.float32,
                    trust_remote_code=False,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    key_mapping=key_mapping(names),
                )
            check_loaded(info, folder, unneeded=("pooler.",))
    encoder = text_encoder(native.config)
    may_be_cut = encoder.padding == "cut"
    if tokenizer is None:
        positions = encoder.positions(native.config)
        tokenizer = transformers_tokenizer(local_folder(source), recipe.context_length, positions, fixed=not may_be_cut)
    if tokenizer.vocab_size > native.config.vocab_size:
        which = f"model.text.tokenizer {recipe.tokenizer}:"
        advice = "remove model.text.tokenizer, or set model.text.pretrained: false"
        if recipe.tokenizer is None:
            which, advice = f"model.text.name {name}: the tokenizer of this model", "set model.text.tokenizer"
        raise ModelError(
            f"{which} has {tokenizer.vocab_size} tokens, but the text tower has embeddings for only "
            f"{native.config.vocab_size}; {advice}"
        )
    pooling = recipe.pooling
    if pooling == "auto":
        pooling = _pooling(local_folder(source)) if recipe.pretrained else "mean"
    layered = recipe.layers is not None
    trunk = LayeredText(native, pooling, listed(recipe.layers)) if layered else TextTrunk(native, pooling)
    width = sum(trunk.widths) if isinstance(trunk, LayeredText) else native.config.hidden_size
    return TextTower(
        trunk,
        projection(width),
        prefixed(transformers_blocks(native)),
        tokenizer,
        head_is_new=True,
        padding_may_be_cut=may_be_cut,
    )


def _encoder_class(config: Any, name: str) -> Any:
    """Return the auto class of transformers that builds a text encoder, without the decoder of models such as T5.

    Raises:
        ModelError: transformers cannot build the encoder alone.
    """
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoModel, AutoModelForTextEncoding

    if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        return AutoModelForTextEncoding
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"model.text.name {name}: transformers cannot load the encoder of {config.model_type} alone; use an "
            "encoder such as BERT or T5"
        )
    return AutoModel


def _new_config(source: str, recipe: TextTowerRecipe, tokenizer: Tokenizer | None) -> Any:
    """Return the configuration of a new text encoder, with the values of the recipe.

    Args:
        source: a model type of transformers, e.g. `bert`, or a repository or folder with a configuration.
        tokenizer: determines the vocabulary size; None: that of the repository.

    Raises:
        ModelError: a setting is unknown, or a model type is given without a tokenizer.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    values: dict[str, Any] = dict(recipe.config)
    if tokenizer is not None:
        values |= {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_id}
        values.setdefault("max_position_embeddings", tokenizer.context_length)
    if source not in CONFIG_MAPPING:
        folder = local_folder(source)
        check_config(folder, source)
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, **values)
    if tokenizer is None:
        raise ModelError(
            f"model.text.name hf:{source}: a new tower needs a tokenizer; add, for example, "
            "model.text.tokenizer: open_clip:ViT-B-32"
        )
    config = AutoConfig.for_model(source, **values)
    unknown = [key for key in recipe.config if key not in type(config)().to_dict()]
    if unknown:
        raise ModelError(
            f"model.text.config.{unknown[0]} is not an option of a {source} configuration; check the "
            "spelling, or remove the option"
        )
    return config


def _pooling(folder: Path) -> Literal["mean", "cls", "last"]:
    """Return the pooling of a sentence-transformers folder, or mean for other folders.

    Raises:
        ModelError: the pooling is not supported.
    """
    file = folder / _POOLING_FILE
    if not file.is_file():
        return "mean"
    config = parse_json(file.read_text(encoding="utf-8"))
    stated = config.get("pooling_mode")
    if stated is None:
        stated = [key.removeprefix(_OLD_POOLING) for key in config if key.startswith(_OLD_POOLING) and config[key]]
    modes = {stated} if isinstance(stated, str) else set(stated)
    supported: dict[str, Literal["mean", "cls", "last"]] = {
        "mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls", "lasttoken": "last",
    }  # fmt: skip
    if len(modes) != 1 or not modes <= set(supported):
        raise ModelError(
            f"{file}: pooling by {', '.join(sorted(modes)) or 'nothing'} is not supported; set "
            "model.text.pooling to mean, cls or last"
        )
    return supported[modes.pop()]
