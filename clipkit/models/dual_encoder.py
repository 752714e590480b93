"""The dual encoder: two towers, a scale and a bias."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clipkit.errors import DataError
from clipkit.images import ImageLike
from clipkit.models.absent import is_absent
from clipkit.models.encode import encode_images, encode_strings, listed_images, listed_strings
from clipkit.models.publish.layout import Layout, layout_of, pretrained_names
from clipkit.models.towers import ImageTower, TextTower, Tower
from clipkit.models.view_heads import save_view_heads
from clipkit.recipe import ModelRecipe


class Backend(Protocol):
    """The library that a model came from; saving writes its layout again."""

    library: str
    """Library that opens the saved folder: transformers, open_clip or clipkit."""

    @property
    def class_name(self) -> str | None:
        """Class of transformers that opens the saved folder, if one does."""

    def save(self, model: "DualEncoder", folder: Path) -> None:
        """Write the model so that its library opens the folder."""


class DualEncoder(nn.Module):
    """Two towers into one space of unit vectors.

    Args:
        image: the image tower.
        text: the text tower.
        logit_scale: logarithm of the scale that similarities are multiplied with.
        logit_bias: what is added to them, for models of the sigmoid loss; None where a model has none.
        backend: writes the layout that the model came in.
        name: what the user called it.

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
        """`image` and `text`: heads on the trunks' outputs, for losses that compare views."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.logit_scale.device

    @property
    def sides(self) -> dict[str, Tower]:
        """Towers that the model has, by name: image, text."""
        towers: dict[str, Tower] = {"image": self.image, "text": self.text}
        return {side: tower for side, tower in towers.items() if not is_absent(tower)}

    def view_head(self, tower: str) -> nn.Module | None:
        """The head of a tower's views, where there is one."""
        return self.view_heads[tower] if tower in self.view_heads else None  # noqa: SIM401, it has no get

    def encode_image(
        self, images: ImageLike | Iterable[ImageLike], batch_size: int = 64, *, progress: bool = False
    ) -> Float[Tensor, "N D"]:
        """Unit-length features of images, float32 on the CPU.

        Args:
            images: paths, PIL images or uint8 arrays (H, W, 3); one of them or any number, also none.
            batch_size: images in one forward.
            progress: show a bar on the terminal.

        Raises:
            DataError: an image is missing or cannot be decoded, or it is something else.
            UserError: the batch size is not positive.
        """
        several = listed_images(images)
        features = encode_images(self.image, several, self.image, batch_size, self.device, progress)
        return F.normalize(features, dim=-1)

    def encode_text(
        self, texts: str | Iterable[str], batch_size: int = 256, *, progress: bool = False
    ) -> Float[Tensor, "M D"]:
        """Unit-length features of strings, float32 on the CPU. Identical strings are encoded once.

        Args:
            texts: a string, or any number of them, also none.
            batch_size: strings in one forward.
            progress: show a bar on the terminal.

        Raises:
            DataError: something is not a string.
            UserError: the batch size is not positive.
        """
        several = listed_strings(texts)
        features = encode_strings(self.text, several, self.text, batch_size, self.device, progress)
        return F.normalize(features, dim=-1)

    def classify(
        self, images: ImageLike | Iterable[ImageLike], texts: str | Iterable[str], batch_size: int = 64
    ) -> Float[Tensor, "N C"]:
        """Probability of each text for each image: the softmax of scale · cosine over the texts.

        Raises:
            DataError: as `encode_image` and `encode_text`, or there are no texts to choose from.
        """
        choices = listed_strings(texts)
        if not choices:
            raise DataError("there are no texts to choose from; give one or more")
        similarity = self.encode_image(images, batch_size) @ self.encode_text(choices).T
        return (similarity * self.logit_scale.detach().exp().cpu()).softmax(dim=-1)

    def save(self, folder: str | Path) -> None:
        """Write the layout that the model came in: transformers' own, or towers that timm and transformers open."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(self, folder)
        save_view_heads(self.view_heads, folder)

    def layout(self, recipe: ModelRecipe | None = None) -> Layout:
        """Return what a model card states about the saved model.

        Args:
            recipe: how the model was built; without it, the model counts as its own base.
        """
        names = [self.name] if recipe is None else pretrained_names(recipe)
        return layout_of(self.backend.library, self.backend.class_name, list(self.sides), names)

    def push(self, repository: str, *, private: bool = False) -> str:
        """Upload the model and its card as one commit to a Hub repository. Return the commit's URL.

        A model whose weights have not changed since it was loaded keeps the card it was loaded with.

        Args:
            repository: `org/name`; created if it does not exist.
            private: create a private repository.

        Raises:
            ModelError: the repository cannot be written to, or the upload failed; call again to resume it.
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
