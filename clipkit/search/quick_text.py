"""Text tower of a model, loaded without its image tower.

A single search in a new process spends most of its time on importing transformers and timm, and on loading the image
tower. All models of `transformers.CLIPModel` have the same text architecture, which is implemented here without
transformers. From clipkit's layout of two towers, only the text tower is loaded. In both cases, it is used only if its
features of a few fixed texts equal those stored in the index; otherwise the whole model is loaded.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipkit.run_files import RunFiles, read_object

_ACTIVATIONS = {"quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "gelu": F.gelu}
_NOT_PLAIN = ("adapter_config.json", "clipkit.json", "view_heads.safetensors")


def quick_text(name: str | Path) -> "QuickText | None":
    """Return the text tower of a local folder or run, or of a repository in the Hub cache.

    The result is None if the tower is of another kind or cannot be read; loading the whole model then reports why.
    """
    try:
        folder = _folder(str(name))
        config = read_object(folder / "config.json")
        if config.get("model_type") != "clip" or any((folder / file).exists() for file in _NOT_PLAIN):
            return None
        return QuickText(folder, config["text_config"], str(name))
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


class QuickText:
    """Text tower of a CLIP: a causal transformer, read at the end token.

    Args:
        folder: has model.safetensors and tokenizer.json.
        config: `text_config` of config.json.
        name: the model's name, for messages.

    Raises:
        Exception: of any type, if a file is missing or a setting is unsupported.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], name: str) -> None:
        from safetensors import safe_open
        from tokenizers import Tokenizer

        self.name = name
        self.sides = {"text": None}
        self._layers, self._heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
        self._epsilon, self._end = float(config["layer_norm_eps"]), int(config["eos_token_id"])
        self._activation = _ACTIVATIONS[config["hidden_act"]]
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            names = [key for key in file.keys() if key.startswith("text_")]  # noqa: SIM118
            self._weights = {key: file.get_tensor(key).float() for key in names}
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(int(config["max_position_embeddings"]))

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "M D"]:
        """Return unit-length features of texts."""
        with torch.inference_mode():
            return torch.stack([self._encode(text) for text in texts])

    def _encode(self, text: str) -> Float[Tensor, " D"]:
        ids = torch.tensor(self._tokenizer.encode(text).ids)
        embeddings = "text_model.embeddings."
        x = self._weights[f"{embeddings}token_embedding.weight"][ids]
        x = x + self._weights[f"{embeddings}position_embedding.weight"][: len(ids)]
        for layer in range(self._layers):
            x = self._block(x, f"text_model.encoder.layers.{layer}.")
        # Old configurations name a wrong end token, 2; the end token has the largest ID.
        end = int(ids.argmax() if self._end == 2 else (ids == self._end).nonzero()[0])
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
