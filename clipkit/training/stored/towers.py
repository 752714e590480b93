"""Stored inputs of both towers for one dataset, with the decision what to store."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from jaxtyping import Float
from torch import Tensor

from clipkit.data import AnyFeed, IndexedFeed, Loading, Policy, Replacement
from clipkit.embedding.store import PartWriter
from clipkit.errors import RecipeError
from clipkit.models import DualEncoder
from clipkit.models.towers import TRUNK_FEATURES
from clipkit.processes import Processes
from clipkit.training.objectives.objective import Encoded
from clipkit.training.stored.compute import write_images, write_texts, write_views
from clipkit.training.stored.inputs import StoredInputs, has_cut, store_of
from clipkit.training.stored.items import Items, images_of, texts_of
from clipkit.training.stored.settings import Storing


@dataclass(eq=False)
class TowerStores:
    """Stored inputs of both towers for one dataset.

    Args:
        model: model with the two towers.
        feed: the dataset.
        processes: processes that share the computation.
        encoded: kinds of features that the run needs, by name.
        storing: settings; None: nothing is stored on disk.
        replacement: rule that replaces a sample with an unreadable image; None: an error is raised.
        known_bad: position of each image that is known to be unreadable -> reason.
    """

    model: DualEncoder
    feed: AnyFeed
    processes: Processes
    encoded: Mapping[str, Encoded]
    storing: Storing | None
    replacement: Replacement | None = None
    known_bad: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bad: dict[int, str] = {}
        """Reasons why images could not be read, by position."""

    def texts(self) -> dict[str, Sequence[str]]:
        """Return the texts that stay the same in every epoch, by the name of their features."""
        pairs = self.feed.pairs
        columns = {
            "text_features": pairs.captions,
            "negative_text_features": pairs.negatives,
            "translation_features": pairs.paraphrases,
        }
        return {name: texts for name, texts in columns.items() if name in self.encoded and texts is not None}

    def parts(self, augmented: bool) -> dict[str, StoredInputs]:
        """Store outputs of frozen layers if this saves time, and return the stored inputs by the name of the features.

        Args:
            augmented: True if the run augments images. Images are then stored only if `data.views` is set.

        Raises:
            RecipeError: the recipe sets `data.views`, but views cannot be stored.
        """
        storing, views = self.storing, self.storing.views if self.storing is not None else None
        if views and not (self.feed.can_index and "image_features" in self.encoded):
            raise RecipeError(
                f"data.views is {views}, but the images of {self.feed.name} cannot be stored; use the "
                "objective captions and data that is not a stream, or remove data.views"
            )
        if storing is None or not self.feed.can_index:
            return {}
        parts: dict[str, StoredInputs | None] = {}
        if "image_features" in self.encoded and (views or not augmented):
            parts["image_features"] = self._images(storing)
        if not self.model.text.trunk_is_frozen:
            parts |= {name: self._captions(texts, storing) for name, texts in self.texts().items()}
        return {name: part for name, part in parts.items() if part is not None}

    def _images(self, storing: Storing) -> StoredInputs | None:
        tower, views = self.model.image, storing.views
        pays = not tower.trunk_is_frozen and (views or storing.pairs > len(self.feed.pairs.images))
        is_cut = bool(pays) and has_cut(tower, storing)
        if views and not (is_cut or tower.trunk_is_frozen):
            raise RecipeError(
                f"data.views is {views}, but the image tower has no frozen first part whose output could be stored; "
                "set model.image.tune to last:N, head or frozen, or remove data.views"
            )
        if not is_cut and not views:
            return None
        items = images_of(self.feed.pairs, self.processes)
        write, view = write_images(self.model, items, storing, self.replacement is not None), ""
        if views:
            augment = cast(Policy, self.encoded["image_features"].make)
            loading = Loading(storing.workers, replacement=self.replacement, known_bad=self.known_bad)
            write = write_views(self.model, cast(IndexedFeed, self.feed), augment, storing, loading)
            view = f"{views} {storing.seed} {augment.policy} {augment.safe is not None}"
        store = store_of(tower, items, storing, write, view)
        if store is None:
            return None
        self.bad |= {row % len(items): reason for row, reason in store.bad.items()}
        return StoredInputs(store, items, views or 1, storing.seed)

    def _captions(self, texts: Sequence[str], storing: Storing) -> StoredInputs | None:
        tower = self.model.text
        items = texts_of(texts, self.feed.name)
        if storing.pairs <= len(items) or not has_cut(tower, storing):
            return None
        store = store_of(tower, items, storing, write_texts(self.model, items, storing))
        return None if store is None else StoredInputs(store, items, padding={"input_ids": tower.tokenize.pad_id})

    def images_of_trunk(
        self, compute: Callable[[], Float[Tensor, "N W"]], bad_here: Mapping[int, str]
    ) -> Float[Tensor, "N W"]:
        """Return the outputs of the frozen image trunk for all images, from disk or computed now.

        Args:
            compute: function that computes the outputs for all images; all processes call it.
            bad_here: dict that `compute` fills with the unreadable images in this process's share: position in the
                share -> reason.
        """

        def computed() -> Tensor:
            rows = compute()
            first = self.processes.share(len(rows)).start
            for reasons in self.processes.gather_objects({first + row: why for row, why in bad_here.items()}):
                self.bad |= reasons
            return rows

        return self._of_trunk(lambda: images_of(self.feed.pairs, self.processes), computed)

    def texts_of_trunk(self, texts: Sequence[str], compute: Callable[[], Float[Tensor, "M W"]]) -> Float[Tensor, "M W"]:
        """Return the outputs of the frozen text trunk for all texts, from disk or computed now.

        All processes call `compute`, which computes the outputs for all texts.
        """
        return self._of_trunk(lambda: texts_of(texts, self.feed.name), compute)

    def _of_trunk(self, identified: Callable[[], Items], compute: Callable[[], Tensor]) -> Tensor:
        """Return the outputs of a trunk from disk, or compute and store them.

        `identified` returns the images or texts, and `compute` computes the outputs for all of them.
        """
        if self.storing is None:
            return compute()
        items, rows = identified(), []

        def write(writer: PartWriter, share: slice) -> Tensor:
            rows.append(compute())
            different = rows[0] if items.row_of is None else _different(rows[0], items.row_of, len(items))
            positions = writer.append({TRUNK_FEATURES: different[share].cpu()})
            writer.bad = {row: why for row, why in self.bad.items() if row in range(share.start, share.stop)}
            return positions

        tower = self.model.image if items.kind == "images" else self.model.text
        store = store_of(tower, items, self.storing, write)
        if not rows and store is not None:
            self.bad |= store.bad
            return StoredInputs(store, items).all().to(self.model.device)
        return rows[0] if rows else compute()


def _different(rows: Float[Tensor, "M W"], row_of: Tensor, count: int) -> Float[Tensor, "K W"]:
    """Return one row for each of the `count` distinct texts.

    Texts with the same index in `row_of` (M,) are equal and have equal rows.
    """
    kept = rows.new_empty(count, rows.shape[1])
    kept[row_of.to(rows.device)] = rows
    return kept
