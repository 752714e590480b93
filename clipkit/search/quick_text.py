"""Text tower of a CLIP model that loads quickly, without the image tower.

The tower does not need transformers, open_clip or timm, whose imports take most of the time of a single search. All
models of `transformers.CLIPModel` and most CLIP models of open_clip have the same text architecture, which this file
implements. The tower is used only if its features of a few fixed texts equal the features stored in the index.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipkit.run_files import RunFiles, read_object

_ACTIVATIONS = {"quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "gelu": F.gelu}
_NOT_PLAIN = ("adapter_config.json", "clipkit.json", "view_heads.safetensors")
# Keys of open_clip's configuration that models of this architecture have.
_OPEN_CLIP = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
_OPEN_CLIP_TEXT = {"context_length", "vocab_size", "width", "heads", "layers"}
_HIGHEST = 2
"""End token in old configurations of transformers; the tower is read at the token with the highest ID instead."""

Tokenize = Callable[[str], Sequence[int]]


def quick_text(name: str | Path) -> "QuickText | None":
    """Return the fast-loading text tower of a model, without downloading anything.

    The result is None if `QuickText` does not support the architecture, or if a file cannot be read. The caller then
    loads the usual text tower, which reports the reason.

    Args:
        name: local folder of a model, folder of a run, or name of a repository in the Hub cache.
    """
    try:
        folder = _folder(str(name))
        if any((folder / file).exists() for file in _NOT_PLAIN):
            return None
        config = read_object(folder / "config.json")
        if config.get("model_type") == "clip":
            return _from_transformers(folder, config["text_config"], str(name))
        is_open_clip = (folder / "open_clip_config.json").is_file() and not config
        return _from_open_clip(folder, str(name)) if is_open_clip else None
    except Exception:  # errors of safetensors and tokenizers have no common base
        return None


def _folder(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        run = RunFiles(path)
        return run.model if run.is_run else path
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    return Path(snapshot_download(repository, revision=revision or None, local_files_only=True))


def _from_transformers(folder: Path, config: Mapping[str, Any], name: str) -> "QuickText":
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(int(config["max_position_embeddings"]))
    weights = _read(folder / "model.safetensors", ("text_",))
    return QuickText(name, config, weights, lambda text: tokenizer.encode(text).ids)


def _from_open_clip(folder: Path, name: str) -> "QuickText | None":
    model = read_object(folder / "open_clip_config.json")["model_cfg"]
    text = model["text_cfg"]
    if not (_OPEN_CLIP.issuperset(model) and _OPEN_CLIP_TEXT.issuperset(text)):
        return None
    config = {
        "num_hidden_layers": text["layers"],
        "num_attention_heads": text["heads"],
        "layer_norm_eps": 1e-5,
        "eos_token_id": _HIGHEST,
        "hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu",
    }
    saved = _read(
        folder / "open_clip_model.safetensors", ("transformer.", "token_", "positional_", "ln_final.", "text_")
    )
    tokenizer = _open_clip_tokenizer()(context_length=text["context_length"])

    def tokenize(text: str) -> list[int]:
        ids: list[int] = tokenizer(text)[0].tolist()
        return ids[: ids.index(tokenizer.eot_token_id) + 1]

    return QuickText(name, config, dict(_renamed(saved)), tokenize)


def _open_clip_tokenizer() -> Any:
    """Load the tokenizer class of open_clip from its file, because importing open_clip takes seconds."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None
    assert package.submodule_search_locations is not None
    file = Path(package.submodule_search_locations[0]) / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("clipkit_open_clip_tokenizer", file)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer


def _read(file: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        names = [name for name in opened.keys() if name.startswith(prefixes)]  # noqa: SIM118
        return {name: opened.get_tensor(name).float() for name in names}


_PARTS = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.": ".self_attn.",
    ".c_fc.": ".fc1.",
    ".c_proj.": ".fc2.",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "ln_final.": "text_model.final_layer_norm.",
}


def _renamed(saved: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Convert weights of open_clip to the names that transformers uses."""
    for key, value in saved.items():
        name = key
        for old, new in _PARTS.items():
            name = name.replace(old, new)
        block, is_fused, kind = name.partition("in_proj_")
        if is_fused:
            yield from zip((f"{block}{part}_proj.{kind}" for part in "qkv"), value.chunk(3), strict=True)
        elif name == "positional_embedding":
            yield "text_model.embeddings.position_embedding.weight", value
        elif name == "text_projection":
            yield "text_projection.weight", value.T
        else:
            yield name, value


class QuickText:
    """Text tower of a CLIP model: a causal transformer whose output at the end token gives the feature.

    Args:
        name: name of the model, for error messages.
        config: settings of the tower, as in `text_config` of transformers.
        weights: weights by their names in transformers.
        tokenize: function that returns the token IDs of a text, truncated to the context length, without padding.

    Raises:
        Exception: of any type, if a setting is missing or unsupported.
    """

    def __init__(self, name: str, config: Mapping[str, Any], weights: Mapping[str, Tensor], tokenize: Tokenize) -> None:
        self.name = name
        self.sides = {"text": None}
        self._layers, self._heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
        self._epsilon, self._end = float(config["layer_norm_eps"]), int(config["eos_token_id"])
        self._activation = _ACTIVATIONS[config["hidden_act"]]
        self._weights, self._tokenize = weights, tokenize

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "M D"]:
        """Return (M, D) unit-length features of texts."""
        with torch.inference_mode(), _one_thread():
            return torch.stack([self._encode(text) for text in texts])

    def _encode(self, text: str) -> Float[Tensor, " D"]:
        ids = torch.tensor(self._tokenize(text))
        embeddings = "text_model.embeddings."
        x = self._weights[f"{embeddings}token_embedding.weight"][ids]
        x = x + self._weights[f"{embeddings}position_embedding.weight"][: len(ids)]
        for layer in range(self._layers):
            x = self._block(x, f"text_model.encoder.layers.{layer}.")
        end = int(ids.argmax() if self._end == _HIGHEST else (ids == self._end).nonzero()[0])
        pooled = self._norm(x[end], "text_model.final_layer_norm")
        return F.normalize(F.linear(pooled, self._weights["text_projection.weight"]), dim=-1)

    def _block(self, x: Float[Tensor, "L W"], block: str) -> Float[Tensor, "L W"]:
        y = self._norm(x, f"{block}layer_norm1")
        parts = (self._linear(y, f"{block}self_attn.{part}_proj") for part in "qkv")
        q, k, v = (part.unflatten(1, (self._heads, -1)).transpose(0, 1) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(1)
        x = x + self._linear(mixed, f"{block}self_attn.out_proj")
        y = self._linear(self._norm(x, f"{block}layer_norm2"), f"{block}mlp.fc1")
        return x + self._linear(self._activation(y), f"{block}mlp.fc2")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(
            x, x.shape[-1:], self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], self._epsilon
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Context in which torch computes with one thread, because several threads are slower for a short text."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
