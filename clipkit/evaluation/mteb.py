"""Encoder for mteb, the library of the MTEB and MIEB benchmarks."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from clipkit.data.sequences import Items
from clipkit.data.sources.held import image_value
from clipkit.embedding.features import Cache, Features
from clipkit.errors import DataError, UserError, one_line
from clipkit.extras import check_extra
from clipkit.image_formats import open_content
from clipkit.images import Held, ImageLike, kind_of, open_image, read_image
from clipkit.models import DualEncoder
from clipkit.models.fingerprint import tower_fingerprint

_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+?)(@[\w./-]+)?")


def mteb_model(
    model: DualEncoder,
    *,
    name: str | None = None,
    revision: str | None = None,
    batch_size: int | None = None,
    cache: Cache = None,
) -> "MtebModel":
    """Return an encoder for `mteb.evaluate`. It supports tasks with texts, images or both.

    The features are the same as those of mteb's wrappers of open_clip and transformers. They do not have unit length.
    The feature of an image with a text is the sum of both features.

    Args:
        model: returned by `clipkit.load`.
        name: name of the model in mteb's results, as `org/name`. None: the model's repository, or a name made from its
            folder, e.g. clipkit/my_run.
        revision: revision of the model in mteb's results. None: a hash of the model. mteb evaluates a task again only
            if the name or the revision is new, so give a changed model a new revision.
        batch_size: images per forward pass. None: chosen for the device. mteb's batch size is ignored.
        cache: folder in which features are cached. None: `$CLIPKIT_CACHE` or `~/.cache/clipkit`. False: no cache.

    Raises:
        UserError: mteb is not installed, or the name is not `org/name`.
        OutputError: the cache folder cannot be created.

    Example:
        >>> import mteb                                                               # doctest: +SKIP
        >>> model = mteb_model(clipkit.load("runs/my_run"))                           # doctest: +SKIP
        >>> result = mteb.evaluate(model, mteb.get_benchmark("MIEB(lite)"))           # doctest: +SKIP
    """
    check_extra("mteb", ["mteb"])
    if name is not None and not re.fullmatch(r"[^/\s]+/[^/\s]+", name):
        raise UserError(f"name {name!r} is invalid; give a name of the form org/name, e.g. me/my-clip")
    features = Features(model, batch_size=batch_size, cache=cache, normalize=False)
    return MtebModel(features, _meta(model, name or _name_of(model), revision or _hash_of(model)))


class MtebModel:
    """Dual encoder with the methods that mteb's `EncoderProtocol` requires. Create it with `mteb_model`.

    Args:
        features: encoder that returns features without normalization.
        meta: mteb's `ModelMeta`, the description of the model in mteb's results.
    """

    def __init__(self, features: Features, meta: Any) -> None:
        self.features = features
        self.mteb_model_meta = meta

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        precision: str = "float32",
        show_progress_bar: bool = True,
        **unused: Any,
    ) -> Float[Tensor, "N D"]:
        """Return the features of a task's texts and images, as float32 on the CPU.

        Args:
            inputs: DataLoader of mteb. Only its dataset is used, because clipkit decodes and batches the images.
            task_metadata: mteb's description of the task.
            precision: must be float32.
            show_progress_bar: show progress bars.
            unused: mteb's split, subset, prompt type and batch size.

        Raises:
            DataError: an image cannot be decoded, or a text is missing.
            UserError: `precision` is not float32.
        """
        if precision != "float32":
            raise UserError(
                f"encode_kwargs has precision {precision!r}; leave out precision, because features are always float32"
            )
        self.features.progress = show_progress_bar
        dataset, parts = inputs.dataset, []
        if "text" in dataset.features:
            parts.append(self.features.texts(_texts(dataset, task_metadata.name)))
        if "image" in dataset.features:
            images = _Images(task_metadata.name, _undecoded(dataset))
            parts.append(self.features.images(images, [images.key(row) for row in range(len(images))]))
        return sum(parts[1:], parts[0])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Float[Tensor, "N M"]:
        """Return the cosine similarity of each row of `embeddings1` with each row of `embeddings2`."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Float[Tensor, " N"]:
        """Return the cosine similarity of row i of `embeddings1` with row i of `embeddings2`, for each i."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)


def _meta(model: DualEncoder, name: str, revision: str) -> Any:
    from mteb.models import ModelMeta
    from mteb.models.model_meta import ScoringFunction

    described = {
        "name": name,
        "revision": revision,
        "modalities": sorted(model.sides),
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "similarity_fn_name": ScoringFunction.COSINE,
        "framework": ["PyTorch"],
    }
    return ModelMeta.create_empty(described)


def _name_of(model: DualEncoder) -> str:
    is_folder = Path(model.name).exists()
    repository = _REPOSITORY.fullmatch(model.name)
    if repository and not is_folder:
        return repository[1]
    name = Path(model.name).resolve().name if is_folder else model.name
    return "clipkit/" + re.sub(r"[^\w.-]+", "-", name)


def _hash_of(model: DualEncoder) -> str:
    hashes = [tower_fingerprint(model.image), tower_fingerprint(model.text)]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:40]


def _texts(dataset: Any, task: str) -> list[str]:
    texts = list(dataset["text"]) if hasattr(dataset, "column_names") else [row["text"] for row in dataset]
    for row, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise DataError(
                f"{task}, row {row}: the text is {kind_of(text)}, but the model needs a string; use another task"
            )
    return texts


def _undecoded(dataset: Any) -> Any:
    """Return only the column `image` of a dataset, with encoded bytes or paths instead of decoded images."""
    import datasets

    if not isinstance(dataset, datasets.Dataset):
        return dataset
    images = dataset.select_columns(["image"])
    is_stored = isinstance(images.features["image"], datasets.Image)
    return images.cast_column("image", datasets.Image(decode=False)) if is_stored else images


class _Images(Items["_Row"]):
    """The images of an mteb task, read from the dataset on access."""

    def __init__(self, task: str, rows: Any) -> None:
        self.task = task
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def _at(self, position: int) -> "_Row":
        return _Row(self, position)

    def content(self, row: int) -> bytes | ImageLike:
        """Return the encoded bytes of an image file, or an image that is already decoded.

        Raises:
            DataError: the row has no image, or its file cannot be read.
        """
        try:
            value = image_value(self.rows[row]["image"])
            return read_image(Path(value)) if isinstance(value, str | Path) else value
        except (DataError, OSError) as error:
            raise DataError(f"{self[row]}: {one_line(error)}") from None

    def key(self, row: int) -> bytes:
        """Return the cache key of an image: a hash of the encoded file or, if decoded, of the pixels."""
        content = self.content(row)
        if not isinstance(content, bytes):
            pixels = _rgb(content)
            content = f"{pixels.shape} ".encode() + pixels.tobytes()
        return hashlib.sha256(b"mteb " + content).digest()  # other tasks convert transparent images differently


@dataclass(frozen=True, slots=True)
class _Row(Held):
    images: _Images
    row: int

    @property
    def name(self) -> str:
        return f"row {self.row + 1}"

    def __str__(self) -> str:
        return f"{self.images.task}, row {self.row + 1}"

    def held(self) -> NDArray[np.uint8]:
        return _rgb(self.images.content(self.row))

    def read_bytes(self) -> bytes:
        return self.held().tobytes()


def _rgb(content: bytes | ImageLike) -> NDArray[np.uint8]:
    """Decode an image in the same way as mteb: apply the EXIF rotation, and ignore transparency."""
    if isinstance(content, bytes):
        with open_content(content) as opened:
            return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    image = content if isinstance(content, Image.Image) else open_image(content)
    return np.asarray(image.convert("RGB"))
