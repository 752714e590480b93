"""Composed models: any timm image tower, any transformers text encoder, and projections between them."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipkit.errors import ModelError, one_line
from clipkit.models.absent import absent_image_tower, absent_text_tower, is_absent
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.hub import local_folder
from clipkit.models.preprocess import Preprocess, TransformCall
from clipkit.models.quiet import without_weight_bars
from clipkit.models.tokenizer import Tokenizer, load_tokenizer, transformers_tokenizer
from clipkit.models.towers import (
    PADDING_MAY_BE_CUT,
    ImageTower,
    TextTower,
    last_token,
    mean_of_tokens,
    positions_of,
    timm_blocks,
    transformers_blocks,
)
from clipkit.models.weights import check_loaded, check_safetensors, check_weights
from clipkit.recipe import ImageTowerRecipe, ModelRecipe, TextTowerRecipe

LAYOUT_FILE = "clipkit.json"
_HEADS_FILE = "heads.safetensors"
_OLD_POOLING = tuple(
    f"pooling_mode_{own}"
    for own in ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
)
_POOLING_FILE = Path("1_Pooling") / "config.json"


class TextTrunk(nn.Module):
    """A transformers text encoder and the way its token states become one vector."""

    def __init__(self, native: Any, pooling: str) -> None:
        super().__init__()
        self.native = native
        self.pooling = pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Float[Tensor, "B W"]:
        states = self.native(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        match self.pooling:
            case "mean":
                return mean_of_tokens(states, attention_mask)
            case "last":
                return last_token(states, attention_mask)
            case _:
                return states[:, 0]


class ImageTrunk(nn.Module):
    """A timm model without its classifier."""

    def __init__(self, native: Any) -> None:
        super().__init__()
        self.native = native

    def forward(self, pixel_values: Tensor) -> Float[Tensor, "B W"]:
        return self.native(pixel_values)


class Composed:
    """The backend: one folder a tower, in the layout of its own library, and the projections beside them."""

    library = "clipkit"
    class_name = None

    def save(self, model: DualEncoder, folder: Path) -> None:
        """`image/` opens with timm, `text/` with transformers, the whole with clipkit."""
        from safetensors.torch import save_file
        from timm.models import save_for_hf

        heads = {"logit_scale": model.logit_scale.detach()}
        if model.logit_bias is not None:
            heads["logit_bias"] = model.logit_bias.detach()
        layout: dict[str, Any] = {
            "layout": "clipkit-composed",
            "version": 1,
            "embed_dim": None,
            "projection": "linear",
            "image": False,
        }
        for side, tower in (("image", model.image), ("text", model.text)):
            if not is_absent(tower):
                projection: Any = tower.head
                heads |= {f"{side}.{name}": value for name, value in projection.state_dict().items()}
                if not isinstance(projection, nn.Identity):
                    layout["embed_dim"] = projection[-1].out_features
                    layout["projection"] = "mlp" if len(projection) > 2 else "linear"
        if not is_absent(model.image):
            image: Any = model.image.trunk.native
            size = model.image.preprocess.image_size
            assert size is not None
            layout["image"] = True
            save_for_hf(image, str(folder / "image"), safe_serialization=True, data_config=data_config(image, size))
        if not is_absent(model.text):
            text: Any = model.text.trunk.native
            with without_weight_bars():
                text.save_pretrained(folder / "text")
            tokenize = model.text.tokenize
            tokenize.save(folder / "text")
            layout |= {
                "tokenizer": tokenize.source,
                "context_length": tokenize.context_length,
                "pooling": model.text.trunk.pooling,
            }
        save_file({name: value.contiguous().cpu() for name, value in heads.items()}, folder / _HEADS_FILE)
        (folder / LAYOUT_FILE).write_text(json.dumps(layout, indent=2) + "\n", encoding="utf-8")


def compose(recipe: ModelRecipe) -> DualEncoder:
    """Two towers and new projections, or one tower, as the recipe names them.

    One tower has a projection only where the recipe gives its width.

    Random parts are drawn from torch's global generator: seed it first.

    Raises:
        ModelError: a tower cannot be found or opened.
    """
    both = recipe.image.name is not None and recipe.text.name is not None
    embed_dim = recipe.embed_dim or (512 if both else None)
    image = _image_tower(recipe.image, embed_dim, recipe.projection) if recipe.image.name else absent_image_tower()
    text = _text_tower(recipe.text, embed_dim, recipe.projection) if recipe.text.name else absent_text_tower()
    logit_scale = nn.Parameter(-torch.tensor(recipe.temperature or 0.07).log())
    name = " + ".join(filter(None, (recipe.image.name, recipe.text.name)))
    logit_bias = None if recipe.bias is None else nn.Parameter(torch.tensor(recipe.bias))
    return DualEncoder(image, text, logit_scale, logit_bias, Composed(), name).eval()


def load_composed(folder: Path, name: str) -> DualEncoder:
    """A model that `Composed.save` wrote."""
    from safetensors.torch import load_file

    try:
        layout = json.loads((folder / LAYOUT_FILE).read_text(encoding="utf-8"))
        image, text = ImageTowerRecipe(), TextTowerRecipe()
        if layout.get("image", True):
            image = ImageTowerRecipe(name=str(folder / "image"))
        if "tokenizer" in layout:
            text = TextTowerRecipe(
                name=str(folder / "text"),
                tokenizer=layout["tokenizer"],
                context_length=layout["context_length"],
                pooling=layout["pooling"],
            )
        model = compose(
            ModelRecipe(
                image=image,
                text=text,
                embed_dim=layout["embed_dim"],
                projection=layout["projection"],
            )
        )
        check_safetensors(folder / _HEADS_FILE)
        heads = load_file(folder / _HEADS_FILE)
        model.logit_scale.data = heads.pop("logit_scale").reshape(())
        if "logit_bias" in heads:
            model.logit_bias = nn.Parameter(heads.pop("logit_bias").reshape(()))
        for side, tower in (("image", model.image), ("text", model.text)):
            prefix = f"{side}."
            own = {key.removeprefix(prefix): value for key, value in heads.items() if key.startswith(prefix)}
            tower.head.load_state_dict(own)
            tower.head_is_new = False
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{name}: is not a complete clipkit model ({one_line(error)})") from None
    model.name = name
    return model


def _projection(width: int, embed_dim: int | None, kind: str) -> nn.Module:
    if embed_dim is None:
        return nn.Identity()
    if kind == "mlp":
        layers = [nn.Linear(width, embed_dim), nn.GELU(), nn.Linear(embed_dim, embed_dim, bias=False)]
        return nn.Sequential(nn.LayerNorm(width), *layers)
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, embed_dim, bias=False))


def _image_tower(recipe: ImageTowerRecipe, embed_dim: int | None, projection: str) -> ImageTower:
    import timm

    name = str(recipe.name)
    kind, colon, rest = name.partition(":")
    source = rest if colon and kind == "timm" else f"local-dir:{_existing_folder(name)}"
    try:
        native = timm.create_model(source, pretrained=recipe.pretrained, num_classes=0)
        if recipe.image_size is not None and hasattr(native, "set_input_size"):
            native.set_input_size(img_size=recipe.image_size)
    except Exception as error:  # timm raises whatever its builders raise
        raise ModelError(f"model.image.name {name}: timm cannot build it ({one_line(error)})") from None
    size = recipe.image_size or int(native.pretrained_cfg["input_size"][-1])
    if not recipe.pretrained:
        # The margin that crop_pct cuts off belongs to the pretrained weights.
        native.pretrained_cfg = native.pretrained_cfg | {"crop_pct": 1.0, "input_size": (3, size, size)}
    trunk = ImageTrunk(native)
    head = _projection(native.num_features, embed_dim, projection)
    return ImageTower(
        trunk,
        head,
        [[f"native.{parameter}" for parameter in block] for block in timm_blocks(native)],
        _preprocess(native, size),
        head_is_new=True,
    )


def data_config(native: Any, size: int) -> dict[str, Any]:
    """timm's own words for how images of this size are prepared."""
    from timm.data import resolve_data_config

    return resolve_data_config({"input_size": (3, size, size)}, pretrained_cfg=native.pretrained_cfg)


def _preprocess(native: Any, size: int) -> Preprocess:
    from timm.data import create_transform

    config = data_config(native, size)
    transform = TransformCall(create_transform(**config, is_training=False))
    return Preprocess(transform, size, config["mean"], config["std"])


def _text_tower(recipe: TextTowerRecipe, embed_dim: int | None, projection: str) -> TextTower:
    from transformers import AutoConfig

    name = str(recipe.name)
    kind, colon, rest = name.partition(":")
    source = rest if colon and kind == "hf" else name
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.context_length) if recipe.tokenizer else None
    try:
        if not recipe.pretrained:
            config = _new_text_config(source, recipe, tokenizer)
            native = _encoder_of(config, name).from_config(config, trust_remote_code=False)
        else:
            folder = local_folder(source)
            check_weights(folder)
            with without_weight_bars():
                config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
                native, info = _encoder_of(config, name).from_pretrained(
                    folder,
                    dtype=torch.float32,
                    trust_remote_code=False,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                )
            check_loaded(info, folder, unneeded=("pooler.",))
    except ModelError:
        raise
    except Exception as error:  # transformers raises whatever its builders raise
        raise ModelError(f"model.text.name {name}: transformers cannot build it ({one_line(error)})") from None
    cut = native.config.model_type in PADDING_MAY_BE_CUT
    if tokenizer is None:
        positions = positions_of(native.config)
        tokenizer = transformers_tokenizer(local_folder(source), recipe.context_length, positions, fixed=not cut)
    if tokenizer.vocab_size > native.config.vocab_size:
        raise ModelError(
            f"model.text.tokenizer {recipe.tokenizer}: has {tokenizer.vocab_size} tokens, the text tower knows "
            f"{native.config.vocab_size}; take the tower's own tokenizer or pretrained: false"
        )
    pooling = recipe.pooling
    if pooling == "auto":
        pooling = _pooling(local_folder(source)) if recipe.pretrained else "mean"
    trunk = TextTrunk(native, pooling)
    blocks = [[f"native.{parameter}" for parameter in block] for block in transformers_blocks(native)]
    head = _projection(native.config.hidden_size, embed_dim, projection)
    return TextTower(trunk, head, blocks, tokenizer, head_is_new=True, padding_may_be_cut=cut)


def _encoder_of(config: Any, name: str) -> Any:
    """The class of transformers that builds an encoder of texts: of T5 and the like, the half that is one."""
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoModel, AutoModelForTextEncoding

    if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        return AutoModelForTextEncoding
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"model.text.name {name}: a {config.model_type} has a decoder too, and transformers has no class for its "
            "encoder alone; take an encoder, as BERT's or T5's"
        )
    return AutoModel


def _new_text_config(source: str, recipe: TextTowerRecipe, tokenizer: Tokenizer | None) -> Any:
    """A configuration from a model type (bert) or from a repository's, with the recipe's values in it."""
    from transformers import CONFIG_MAPPING, AutoConfig

    values: dict[str, Any] = dict(recipe.config)
    if tokenizer is not None:
        values |= {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_id}
        values.setdefault("max_position_embeddings", tokenizer.context_length)
    if source not in CONFIG_MAPPING:
        return AutoConfig.from_pretrained(local_folder(source), trust_remote_code=False, **values)
    if tokenizer is None:
        raise ModelError(
            f"model.text.name hf:{source}: a new tower needs a tokenizer, as tokenizer: open_clip:ViT-B-32"
        )
    config = AutoConfig.for_model(source, **values)
    unknown = [key for key in recipe.config if key not in type(config)().to_dict()]
    if unknown:
        raise ModelError(f"model.text.config.{unknown[0]} is not an option of a {source} configuration")
    return config


def _pooling(folder: Path) -> Literal["mean", "cls", "last"]:
    """What a sentence-transformers folder says, else mean."""
    file = folder / _POOLING_FILE
    if not file.is_file():
        return "mean"
    config = json.loads(file.read_text(encoding="utf-8"))
    named = config.get("pooling_mode")
    if named is None:  # as its versions before 6 wrote it
        named = [key.removeprefix("pooling_mode_") for key, value in config.items() if key in _OLD_POOLING and value]
    modes = {named} if isinstance(named, str) else set(named)
    known: dict[str, Literal["mean", "cls", "last"]] = {
        "mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls", "lasttoken": "last",
    }  # fmt: skip
    if len(modes) != 1 or not modes <= set(known):
        raise ModelError(
            f"{file}: pools by {', '.join(sorted(modes)) or 'nothing'}; of sentence-transformers' ways clipkit has "
            "mean, cls and lasttoken: give model.text.pooling"
        )
    return known[modes.pop()]


def _existing_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ModelError(f"model.image.name {name}: there is no such folder; give one, or a timm model as timm:NAME")
    return folder.resolve()
