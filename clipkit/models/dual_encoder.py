"""Dual encoders, which have an image tower, a text tower, a logit scale and sometimes a logit bias."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clipkit.errors import DataError
from clipkit.files import as_os_errors, replacing, sharing_files
from clipkit.images import ImageLike
from clipkit.models.absent import is_absent
from clipkit.models.adapters.attach import merged
from clipkit.models.encode import Progress, encode_images, encode_strings, listed_images, listed_strings, tower_features
from clipkit.models.from_modules import Modules, ModulesBackend, PreprocessFunction
from clipkit.models.probabilities import Probabilities
from clipkit.models.probabilities import probabilities as probabilities_of
from clipkit.models.publish.layout import Layout, pretrained_names
from clipkit.models.publish.provenance import bases_of
from clipkit.models.towers import ImageTower, TextTower, Tower
from clipkit.models.view_heads import save_view_heads
from clipkit.recipe import ModelRecipe


class Backend(Protocol):
    """Library-specific part of a model, which saves the model in the library's layout."""

    library: str
    """Library that opens the saved folder: transformers, open_clip or clipkit."""

    @property
    def class_name(self) -> str | None:
        """Name of the transformers class that loads the saved folder, or None."""

    def save(self, model: "DualEncoder", folder: Path) -> None:
        """Write the model to a folder that its library can open."""


class DualEncoder(nn.Module):
    """Dual encoder: two towers that map images and texts to unit vectors in a shared space.

    Args:
        image: the image tower.
        text: the text tower.
        logit_scale: logarithm of the scale that multiplies similarities.
        logit_bias: bias that is added to the scaled similarities (SigLIP), or None.
        backend: saves the model in the layout from which it was loaded.
        name: the model's name as the user gave it.

    Example:
        >>> model = load("openai/clip-vit-base-patch32")                      # doctest: +SKIP
        >>> model.encode_image(["cat.jpg"]) @ model.encode_text(["a cat"]).T  # doctest: +SKIP
    """

    def __init__(
        self,
        image: ImageTower,
        text: TextTower,
        logit_scale: nn.Parameter,
        logit_bias: nn.Parameter | None,
        backend: Backend,
        name: str,
    ) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.logit_scale = logit_scale
        self.logit_bias = logit_bias
        self.backend = backend
        self.name = name
        self.view_heads = nn.ModuleDict()
        """Projection heads for losses on views, by tower (`image`, `text`)."""

    @classmethod
    def from_modules(
        cls,
        *,
        image_tower: nn.Module,
        text_tower: nn.Module,
        preprocess: PreprocessFunction,
        tokenizer: Callable[[list[str]], Any],
        embed_dim: int | None = None,
        temperature: float = 0.07,
        bias: float | None = None,
    ) -> "DualEncoder":
        """Build a dual encoder from two modules. Training the model changes these modules.

        Args:
            image_tower: module that maps a batch of `preprocess` results to features (B, W).
            text_tower: module that maps token IDs (B, L) to features (B, W). If the tokenizer also returns a mask, the
                module gets `input_ids` and `attention_mask` by name.
            preprocess: function from an RGB PIL image to a tensor (3, H, W), or to a dict of tensors by name.
            tokenizer: function from M strings to token IDs (M, L), or to a dict of `input_ids` and `attention_mask`. It
                can also be a transformers tokenizer.
            embed_dim: width D of the shared space. Each tower gets a new LayerNorm and a new linear projection. With
                None, there are no projections, so both towers must return features of the same width.
            temperature: initial temperature, 1 / exp(logit_scale).
            bias: initial logit bias for the sigmoid loss; None: no bias.

        Raises:
            ModelError: a part is invalid, or the widths of the towers differ and `embed_dim` is None.

        Example:
            >>> pixels = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 6))
            >>> words = nn.EmbeddingBag(256, 4)
            >>> model = DualEncoder.from_modules(
            ...     image_tower=pixels,
            ...     text_tower=words,
            ...     preprocess=lambda image: torch.tensor(list(image.resize((8, 8)).tobytes())).view(3, 8, 8) / 255,
            ...     tokenizer=lambda texts: torch.tensor([list(text.encode()[:9].ljust(9)) for text in texts]),
            ...     embed_dim=5,
            ... )
            >>> model.encode_text(["a dog", "a cat"]).shape
            torch.Size([2, 5])
        """
        modules = Modules(image_tower, text_tower, preprocess, tokenizer)
        image, text = modules.towers(embed_dim)
        scale = nn.Parameter(-torch.tensor(temperature).log())
        offset = None if bias is None else nn.Parameter(torch.tensor(float(bias)))
        return cls(image, text, scale, offset, ModulesBackend(embed_dim), modules.name).eval()

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.logit_scale.device

    @property
    def sides(self) -> dict[str, Tower]:
        """The towers that the model has, by name (`image`, `text`)."""
        towers: dict[str, Tower] = {"image": self.image, "text": self.text}
        return {side: tower for side, tower in towers.items() if not is_absent(tower)}

    def view_head(self, tower: str) -> nn.Module | None:
        """Return the projection head of a tower for losses that compare views (e.g. augmented images), or None.

        Args:
            tower: `image` or `text`.
        """
        return self.view_heads[tower] if tower in self.view_heads else None  # noqa: SIM401, it has no get

    def encode_image(
        self,
        images: ImageLike | Iterable[ImageLike],
        batch_size: int | None = None,
        *,
        progress: Progress = False,
        normalize: bool = True,
    ) -> Float[Tensor, "N D"]:
        """Encode images, and return their features in float32 on the CPU.

        Args:
            images: paths, PIL images or uint8 arrays (H, W, 3). Give one image or an iterable, which may be empty.
            batch_size: maximum number of images per forward pass; None: chosen for the device.
            progress: True shows a progress bar. A function is called after each batch with the number of images in it.
            normalize: True divides each feature vector by its L2 norm.

        Raises:
            DataError: an image is missing, unreadable or of an unsupported type.
            UserError: the batch size is not positive.
        """
        several = listed_images(images)
        encoded = encode_images(self.image, several, tower_features, batch_size, self.device, progress)
        return F.normalize(encoded, dim=-1) if normalize else encoded

    def encode_text(
        self,
        texts: str | Iterable[str],
        batch_size: int | None = None,
        *,
        progress: Progress = False,
        normalize: bool = True,
    ) -> Float[Tensor, "M D"]:
        """Encode strings, and return their features in float32 on the CPU.

        Identical strings are encoded only once.

        Args:
            texts: one string or an iterable of strings, which may be empty.
            batch_size: maximum number of strings per forward pass; None: chosen for the device.
            progress: True shows a progress bar. A function is called after each batch with the number of strings in it.
            normalize: True divides each feature vector by its L2 norm.

        Raises:
            DataError: an item is not a string.
            UserError: the batch size is not positive.
        """
        several = listed_strings(texts)
        encoded = encode_strings(self.text, several, tower_features, batch_size, self.device, progress)
        return F.normalize(encoded, dim=-1) if normalize else encoded

    def classify(
        self,
        images: ImageLike | Iterable[ImageLike],
        texts: str | Iterable[str],
        batch_size: int | None = None,
        *,
        probabilities: Probabilities = "auto",
    ) -> Float[Tensor, "N C"]:
        """Return the probability of each text for each image.

        Args:
            images: as for `encode_image`.
            texts: as for `encode_text`, at least one.
            batch_size: maximum number of images per forward pass; None: chosen for the device.
            probabilities: kind of the probabilities:

                - `softmax` (CLIP): softmax(scale · cosine) over the texts, so the sum for each image is 1.
                - `sigmoid` (SigLIP): sigmoid(scale · cosine + bias) for each text separately.
                - `auto`: `sigmoid` if the model has a logit bias, otherwise `softmax`.

        Raises:
            DataError: an image or a text is invalid, or there are no texts.
            ModelError: `probabilities` is `sigmoid`, but the model has no logit bias.
        """
        choices = listed_strings(texts)
        if not choices:
            raise DataError("texts is an empty list; give at least one text")
        similarities = self.encode_image(images, batch_size) @ self.encode_text(choices).T
        return self.probabilities(similarities, probabilities)

    def probabilities(self, similarities: Float[Tensor, "N C"], kind: Probabilities = "auto") -> Float[Tensor, "N C"]:
        """Convert cosine similarities of N images and C texts to probabilities of the texts.

        Args:
            similarities: the cosine similarities.
            kind: `softmax`, `sigmoid` or `auto`, as for `classify`.
        """
        bias = None if self.logit_bias is None else self.logit_bias.item()
        return probabilities_of(similarities, self.logit_scale.exp().item(), bias, kind)

    def save(self, folder: str | Path) -> None:
        """Write the model in the layout of the library that it was loaded from.

        Adapters are merged into the weights. A new folder appears only when it is complete. In an existing folder, only
        the files of the model are replaced.

        Raises:
            OSError: the folder cannot be written, e.g. because the disk is full.
        """
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        is_new = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
        with replacing(folder) if is_new else as_os_errors(folder) as written:
            written.mkdir(exist_ok=True)
            with sharing_files(written):
                with merged(self):
                    self.backend.save(self, written)
                save_view_heads(self.view_heads, written)

    def layout(self, recipe: ModelRecipe | None = None) -> Layout:
        """Return the properties of the saved model that a model card states.

        Args:
            recipe: recipe that names the pretrained models; None: the loaded model is the base model.
        """
        reads_padding = "text" in self.sides and not self.text.padding_may_be_cut
        return Layout(
            library=self.backend.library,
            class_name=self.backend.class_name,
            sides=tuple(self.sides),
            bases=bases_of([self.name] if recipe is None else pretrained_names(recipe)),
            sigmoid=self.logit_bias is not None,
            pad_to=self.text.tokenize.context_length if reads_padding else None,
            context_length=self.text.tokenize.context_length,
        )

    def push(self, repository: str, *, private: bool = False) -> str:
        """Upload the model and its card to a Hub repository in one commit, and return the commit's URL.

        If the weights have not changed since the model was loaded, the existing card is uploaded instead of a new one.

        Args:
            repository: `org/name`; created if it does not exist.
            private: True creates a private repository.

        Raises:
            ModelError: the repository cannot be written to, or the upload failed. Call `push` again to resume a failed
                upload.
        """
        import tempfile

        from clipkit.models.publish.card import card, kept_card
        from clipkit.models.publish.push import push, signed

        with tempfile.TemporaryDirectory() as folder:
            saved = Path(folder)
            self.save(saved)
            text = kept_card(Path(self.name), saved) or signed(card(self.layout()))
            (saved / "README.md").write_text(text, encoding="utf-8")
            return push(saved, repository, private=private).url

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Same as `push`, with the name that other Hugging Face libraries use."""
        return self.push(repository, private=private)
