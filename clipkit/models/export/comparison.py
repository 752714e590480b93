"""Comparison of an exported model with the original model on the same images and captions."""

import re
import runpy
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipkit.errors import ModelError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.quiet import as_model_error, without_root_messages, without_weight_bars

_SHOWN = 8
# Plain preparation, as in code that does not use the card: open an image with Pillow, leave captions unchanged.
_PLAIN = 'rgb, repaired = (lambda file: Image.open(file).convert("RGB")), str'

_Pair = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Theirs:
    """Features of an exported model, computed with the other library by the example code of its README.

    Features of a tower that the model lacks are None.
    """

    image: Float[Tensor, "N D"] | None
    text: Float[Tensor, "M D"] | None
    plain_image: Float[Tensor, "N D"] | None = None
    plain_text: Float[Tensor, "M D"] | None = None
    """Features if images and captions are not prepared as in the card's code; None: the code does not prepare them."""


def run_card(code: str, model: DualEncoder, library: str, images: Sequence[Path], texts: Sequence[str]) -> Theirs:
    """Run the example code of an exported model's README on other images and captions, and return the features.

    Args:
        code: code of the README. Its lists `images = […]` and `texts = […]` are replaced.
        model: the original model.
        library: name of the library that the code uses, for error messages.
        images: image files to use instead.
        texts: captions to use instead.

    Raises:
        ModelError: the code raises an error.
    """
    code = re.sub(r"^(images|texts) = .*$", r"\1 = given_\1", code, flags=re.M)
    code = re.sub(r"^model = clipkit.load\(.*\).*$", "model = given_model", code, flags=re.M)
    # On the CPU: the comparison is about the library, not about the arithmetic of a GPU.
    code = re.sub(r'= SentenceTransformer\((".*")\)$', r'= SentenceTransformer(\1, device="cpu")', code, flags=re.M)
    head, start, tail = code.partition("images = given" if images else "texts = given")
    given = {"given_images": list(images), "given_texts": list(texts), "given_model": model}
    with without_weight_bars(), without_root_messages(), torch.inference_mode():
        with as_model_error(
            f"{model.name}: {library} cannot run the export", "; the export was deleted: use another format"
        ):
            opened = _run(head, given)
            prepared = _features(_run(start + tail, opened))
        return Theirs(*prepared, *_plain(head, start + tail, opened))


def _plain(head: str, tail: str, opened: dict[str, Any]) -> _Pair:
    """Compute the features without the README's preparation: images only become RGB, and captions stay unchanged.

    The result is (None, None) if the README prepares nothing, or if the library raises an error. The README's code
    consists of `head`, which loads the model, and `tail`. `opened` contains the variables after running `head`.
    """
    tokenizer = re.search(r"^tokenizer = .*$", head, flags=re.M) if "clean_fn" in head else None
    if tokenizer is None and "def rgb" not in head and "def repaired" not in head:
        return None, None
    try:
        return _features(_run("\n".join([_PLAIN, tokenizer[0] if tokenizer else "", tail]), opened))
    except Exception:  # users of the plain code would get this error instead of wrong features
        return None, None


def _run(code: str, variables: dict[str, Any]) -> dict[str, Any]:
    """Run code that clipkit wrote, and return its global variables."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "card.py"
        file.write_text(code, encoding="utf-8")
        return runpy.run_path(str(file), init_globals=variables)


def _features(variables: dict[str, Any]) -> _Pair:
    image, text = (
        None if found is None else F.normalize(torch.as_tensor(found).float().cpu(), dim=-1)
        for found in (variables.get("image_features"), variables.get("text_features"))
    )
    return image, text


class Comparison:
    """Differences between the features of two libraries for the same images or captions.

    Args:
        names: names of the images or captions.
        theirs: features from the other library; None if there are none.
        ours: features from the original model; None if there are none.
        excused: names of images with a known difference, which are evaluated separately.
    """

    def __init__(
        self,
        names: Collection[str],
        theirs: Float[Tensor, "N D"] | None,
        ours: Float[Tensor, "N D"] | None,
        excused: Collection[str] = (),
    ) -> None:
        self.names = list(names)
        self.theirs = theirs if ours is not None else None
        self.ours = ours
        self.kept = [row for row, name in enumerate(self.names) if name not in excused]
        self.excused = [row for row, name in enumerate(self.names) if name in excused]

    def differences(self, theirs: Float[Tensor, "N D"] | None) -> Float[Tensor, " N"]:
        """Return the largest absolute difference between `theirs` and `ours`, for each image or caption."""
        if theirs is None or self.ours is None:
            return torch.zeros(len(self.names))
        return (theirs - self.ours).abs().amax(dim=1)

    @property
    def largest(self) -> float:
        """Largest difference in a feature value, without the images in `excused`."""
        return float(self.differences(self.theirs)[self.kept].max()) if self.kept else 0.0

    @property
    def largest_excused(self) -> float:
        """Largest difference in a feature value among the images in `excused`."""
        return float(self.differences(self.theirs)[self.excused].max()) if self.excused else 0.0

    @property
    def cosine(self) -> float:
        """Mean cosine between the features of both libraries, without the images in `excused`."""
        if self.theirs is None or self.ours is None or not self.kept:
            return 1.0
        return float(F.cosine_similarity(self.theirs[self.kept], self.ours[self.kept], dim=-1).mean())

    def above(self, limit: float, theirs: Float[Tensor, "N D"] | None = None) -> str:
        """List the images or captions whose features differ by more than a limit, with the differences.

        Args:
            limit: largest allowed difference in a feature value.
            theirs: other features to compare with the model's; default: the features given to the constructor.
        """
        values = self.differences(self.theirs if theirs is None else theirs)
        rows = sorted((row for row in self.kept if not values[row] <= limit), key=lambda row: -float(values[row]))
        more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        return ", ".join(f"{self.names[row]} {values[row]:.2g}" for row in rows[:_SHOWN]) + more

    def check(self, limit: float, kind: str, model: str, known: Sequence[str] = ()) -> None:
        """Raise ModelError if a feature value differs by more than a limit.

        Args:
            limit: largest allowed difference.
            kind: `images` or `captions`, for the message.
            model: name of the model, for the message.
            known: possible reasons for the difference, for the message.
        """
        if not self.largest <= limit:  # also refuses NaN
            reasons = "".join(f"; {note}" for note in known)
            raise ModelError(
                f"{model}: features of the same {kind} differ after the export by {self.largest:.2g}, more than "
                f"{limit:g} ({self.above(limit)}){reasons}; the export was deleted; to accept this difference, "
                "export again with a higher --tolerance"
            )

    def check_cosine(self, least: float, kind: str, model: str) -> None:
        """Raise ModelError if the mean cosine is less than `least`."""
        if not self.cosine >= least:
            raise ModelError(
                f"{model}: 8-bit weights change the features of {kind} too much (mean cosine {self.cosine:.4f}, less "
                f"than {least}); the export was deleted; export without --int8, or set --tolerance, "
                "which limits the difference of feature values instead of the cosine"
            )


def changed(images: Comparison, texts: Comparison) -> int:
    """Return the number of captions whose most similar image differs between the two libraries."""
    if images.ours is None or texts.ours is None or images.theirs is None or texts.theirs is None:
        return 0
    theirs = (texts.theirs @ images.theirs.T).argmax(dim=1)
    return int((theirs != (texts.ours @ images.ours.T).argmax(dim=1)).sum())
