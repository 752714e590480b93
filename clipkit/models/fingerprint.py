"""Hash of everything that a tower's features depend on: weights, structure, preprocessing and libraries."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from clipkit.models.absent import is_absent
from clipkit.models.towers import ImageTower, TextTower
from clipkit.versions import __version__, installed_version

# Libraries whose other versions may resize, tokenize or multiply slightly differently.
_LIBRARIES = (
    "torch",
    "torchvision",
    "transformers",
    "tokenizers",
    "open_clip_torch",
    "timm",
    "pillow",
)

# Test texts: upper and lower case, digits, punctuation, entities, other scripts, spaces, and a text longer than any
# context.
_PROBE_TEXTS = [
    "a photo of a cat.",
    "A PHOTO, of 1,234 Cats & dogs!",
    "don't   stop — ¿señor? &amp; <b>",
    "ein Foto von Äpfeln, 一张猫的照片, фото кота 🐈",
    "word " * 600,
]


def weights_hash(weights: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash of the names and bytes of weights."""
    digest = hashlib.sha256()
    for name, weight in weights:
        digest.update(name.encode())
        digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tower_fingerprint(tower: ImageTower | TextTower) -> str:
    """Return a hash of a tower. Towers with equal hashes compute equal features.

    It covers the weights, the names and plain attributes of modules, the type of device and the versions of libraries.
    It covers preprocessing and tokenization by their results for a few test inputs.
    """
    if is_absent(tower):
        return hashlib.sha256().hexdigest()
    parts = {"trunk": tower.trunk, "head": tower.head}
    return _fingerprint(tower, parts, [*tower.named_parameters(), *tower.named_buffers()])


def frozen_fingerprint(tower: ImageTower | TextTower) -> str:
    """Return a hash of the frozen part of a trunk. Frozen parts with equal hashes compute equal outputs.

    It covers the same things as `tower_fingerprint`, except the head and the trained parameters.
    """
    frozen = [(name, weight) for name, weight in tower.trunk.named_parameters() if not weight.requires_grad]
    return _fingerprint(tower, {"trunk": tower.trunk}, [*frozen, *tower.trunk.named_buffers()])


def _fingerprint(
    tower: ImageTower | TextTower, parts: Mapping[str, nn.Module], tensors: Sequence[tuple[str, Tensor]]
) -> str:
    digest = hashlib.sha256()
    for library in _LIBRARIES:
        digest.update(f"{library} {installed_version(library)}\n".encode())
    digest.update(f"clipkit-torch {__version__}\n".encode())
    if tower.autocast is not None:
        digest.update(f"autocast {tower.autocast}\n".encode())
    for name, module in (each for part, whole in parts.items() for each in whole.named_modules(prefix=part)):
        kind = getattr(module, "library_class", type(module))  # its faster implementation gives the same results
        digest.update(f"{name} {kind.__qualname__} {_plain_attributes(module)}\n".encode())
    for name, tensor in tensors:
        _update(digest, name, tensor)
    inputs = (
        [tower.preprocess(image) for image in _probe_images()]
        if isinstance(tower, ImageTower)
        else [tower.tokenize([text]) for text in _PROBE_TEXTS]
    )
    for prepared in inputs:
        for name, tensor in sorted(prepared.items()):
            _update(digest, name, tensor)
    return digest.hexdigest()


def _plain_attributes(module: nn.Module) -> list[tuple[str, str]]:
    return sorted(
        (name, repr(value))
        for name, value in vars(module).items()
        # The model's origin and training mode do not affect its features.
        if name not in ("training", "name_or_path") and isinstance(value, bool | int | float | str | tuple)
    )


def _update(digest: "hashlib._Hash", name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}\n".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _probe_images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    sizes = [(64, 48), (37, 90), (400, 300)]
    return [Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
