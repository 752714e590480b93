"""Inputs of the towers in each step: images and captions, or stored outputs of frozen trunks."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from clipkit.data import (
    AnyFeed,
    Augment,
    Batch,
    InputMaker,
    Loading,
    Replacement,
    TextOf,
    TokenStore,
    WorkerProgress,
    longest,
)
from clipkit.data.augment import shared_draft
from clipkit.embedding.shared import encode_shared, evaluating
from clipkit.images import ImageLike
from clipkit.models import DualEncoder
from clipkit.models.devices import is_accelerator
from clipkit.models.encode import encode_images, encode_strings, trunk_features
from clipkit.models.preprocess import stack_inputs
from clipkit.models.towers import TRUNK_FEATURES
from clipkit.processes import Processes
from clipkit.training.objectives.objective import Encoded
from clipkit.training.step import Encoder
from clipkit.training.stored.inputs import StoredInputs
from clipkit.training.stored.reading import one_ahead
from clipkit.training.stored.settings import Storing
from clipkit.training.stored.towers import TowerStores
from clipkit.training.transfer import ahead, pixel_memory, send

_BATCH = 64

T = TypeVar("T")


@dataclass(eq=False)
class TowerInputs:
    """Makes the inputs of the towers from one dataset.

    A frozen trunk whose input is not augmented has the same output in every epoch. It therefore runs only once over all
    data, and its outputs stay in memory. If only the first blocks of a trunk are frozen, `store_parts` stores the
    output of these blocks on disk.

    Args:
        processes: processes that share the work.
        encoded: features that the objective needs, by name.
        augmented: True if the images of the objective `captions` are augmented, so that the image trunk runs in each
            step.
        seed: seed of the run, for the order of a stream.
        replacement: chooses another sample for a missing or unreadable image. None: such an image raises an error.
        bad: reasons why images are missing or unreadable, by position. Images that a frozen trunk cannot read are
            added.
        storing: settings for storing inputs on disk. None: nothing is stored on disk.
        outputs: outputs of frozen trunks that have been computed before, by feature name.
    """

    model: DualEncoder
    feed: AnyFeed
    processes: Processes
    encoded: Mapping[str, Encoded]
    augmented: bool
    seed: int = 0
    replacement: Replacement | None = None
    bad: Mapping[int, str] = field(default_factory=dict)
    storing: Storing | None = None
    outputs: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model, encoded = self.model, self.encoded
        self.pairs = pairs = self.feed.pairs
        self.worker_progress = WorkerProgress(pairs.images)
        self.encoders = {
            name: Encoder(model.image if kind.tower == "image" else model.text, kind.of_trunk)
            for name, kind in encoded.items()
        }
        self.stores: dict[str, Tensor] = dict(self.outputs)
        """Outputs of frozen trunks by the name of the features: one row per image, or one row per caption."""
        self.stored: dict[str, StoredInputs] = {}
        """Inputs that are read from disk, by the name of the features."""
        stores = self._tower_stores()
        self._store_trunks(stores)
        self.bad = {**self.bad, **stores.bad}

    def store_parts(self) -> None:
        """Store the outputs of the frozen first blocks of the towers on disk.

        These blocks must not change afterwards.

        Raises:
            RecipeError: `data.views` is set, but the views cannot be stored.
        """
        stores = self._tower_stores()
        self.stored = stores.parts(self.augmented)
        self.bad = {**self.bad, **stores.bad}

    def _tower_stores(self) -> TowerStores:
        return TowerStores(
            self.model, self.feed, self.processes, self.encoded, self.storing, self.replacement, self.bad
        )

    def _store_trunks(self, stores: TowerStores) -> None:
        """Run each completely frozen trunk over all data, unless its outputs are already stored."""
        model, processes, encoded, pairs = self.model, self.processes, self.encoded, self.pairs
        if not self.feed.can_index:
            return
        show = processes.is_main
        batch = None if is_accelerator(model.device) else _BATCH
        has_images = "image_features" in encoded and "image_features" not in self.stores
        if has_images and model.image.trunk_is_frozen and not self.augmented:
            bad_here: dict[int, str] = {}
            skipped = None if self.replacement is None else bad_here

            def trunk_of_images(images: Sequence[ImageLike]) -> Tensor:
                return encode_images(model.image, images, trunk_features, batch, model.device, show, skipped)

            self.stores["image_features"] = stores.images_of_trunk(
                lambda: self._stored(pairs.images, trunk_of_images), bad_here
            )
        if "text_features" in encoded and model.text.trunk_is_frozen:

            def trunk_of_texts(texts: Sequence[str]) -> Tensor:
                return encode_strings(model.text, texts, trunk_features, batch, model.device, show)

            for name, texts in stores.texts().items():
                if name in self.stores:
                    continue
                self.stores[name] = stores.texts_of_trunk(texts, partial(self._stored, texts, trunk_of_texts))

    def _stored(self, items: Sequence[T], encode: Callable[[Sequence[T]], Tensor]) -> Tensor:
        # Cloned, because inference-mode tensors cannot be part of a graph.
        return encode_shared(items, encode, self.processes).to(self.model.device).clone()

    def batches(self, slices: Any, workers: int) -> Generator[Batch, None, None]:
        """Yield the batches of the run with their inputs.

        A batch is valid only until the next one is requested, because batches share memory. Some inputs may still be in
        CPU memory (see clipkit/training/transfer.py).

        Args:
            slices: this process's samples of each batch, from the feed's sampler.
        """
        wanted = {name: kind for name, kind in self.encoded.items() if name not in {**self.stores, **self.stored}}
        augments = {name: cast(Augment, kind.make) for name, kind in wanted.items() if kind.tower == "image"}
        texts = {name: cast(TextOf, kind.make) for name, kind in wanted.items() if kind.tower == "text"}
        maker = InputMaker(
            augments,
            texts,
            self.model.text.tokenize if texts else _no_tokens,
            shared_draft(augments.values()),
            self._token_store() if texts else None,
        )
        process = (self.processes.index, self.processes.count)
        memory = pixel_memory(self.model.device) if augments else None
        loading = Loading(workers, self.seed, process, self.replacement, self.worker_progress, self.bad, memory)
        epochs: deque[int] = deque()
        batches = self.feed.loader(_noting_epochs(slices, epochs) if self.stored else slices, maker, loading)  # type: ignore[arg-type]
        # Memory that all batches use: allocating memory for each batch takes longer than the copy.
        buffers: dict[str, Tensor] = {}
        loaded = batches if memory is None else ahead(batches, memory, in_thread=workers > 0)
        read = one_ahead(loaded, partial(self._with_stored, epochs), in_thread=bool(self.stored) and memory is None)
        with closing(loaded), closing(read if self.stored else loaded) as complete:
            for batch in complete:
                inputs = dict(batch.inputs)
                rows = {"image_features": batch.image_ids, "text_features": batch.caption_ids}
                for name, store in self.stores.items():
                    chosen = send({name: rows.get(name, batch.caption_rows)}, store.device)[name]
                    if name not in buffers or len(buffers[name]) != len(chosen):
                        buffers[name] = store.new_empty(len(chosen), store.shape[1])
                    inputs[name] = {TRUNK_FEATURES: torch.index_select(store, 0, chosen, out=buffers[name])}
                yield replace(batch, inputs=inputs, caption_ids=self._positive_ids(batch))

    def _positive_ids(self, batch: Batch) -> Tensor:
        """Return IDs that are equal for captions with the same meaning, e.g. for all prompts of a class."""
        if self.pairs.classes is None:
            return batch.caption_ids
        return torch.from_numpy(self.pairs.positive_ids)[batch.caption_rows]

    def _with_stored(self, epochs: deque[int], batch: Batch) -> Batch:
        """Add the inputs that are stored on disk to a batch.

        Args:
            epochs: epochs of this batch and of later batches; the first epoch is removed.
        """
        rows = {"image_features": batch.image_ids}
        epoch = epochs.popleft()
        inputs = {name: one.take(rows.get(name, batch.caption_rows), epoch) for name, one in self.stored.items()}
        return replace(batch, inputs={**batch.inputs, **inputs})

    def _token_store(self) -> TokenStore | None:
        captions, tokenize = self.pairs.captions, self.model.text.tokenize
        if not self.feed.can_index or not TokenStore.fits(len(captions), tokenize.context_length):
            return None
        return TokenStore(captions, tokenize, tokenize.context_length, tokenize.pad_id)

    def example(self, count: int) -> dict[str, dict[str, Tensor]]:
        """Return inputs of `count` samples with the longest captions, for measuring memory."""
        device = self.model.device
        gray = Image.new("RGB", (224, 224), (128, 128, 128))
        inputs: dict[str, dict[str, Tensor]] = {}
        for name, kind in self.encoded.items():
            if name in self.stores:
                # Copy the rows: with a view, the measured memory would include the whole store.
                inputs[name] = {TRUNK_FEATURES: self.stores[name][:count].clone()}
                continue
            if name in self.stored:
                inputs[name] = {key: value.to(device) for key, value in self.stored[name].example(count).items()}
                continue
            if kind.tower == "image":
                made = stack_inputs([self.model.image.preprocess(gray)] * count)
            else:
                made = self.model.text.tokenize([self._longest()] * count)
            inputs[name] = {key: value.to(device) for key, value in made.items()}
        return inputs

    def _longest(self) -> str:
        if not self.feed.can_index:
            return "a " * self.model.text.tokenize.context_length
        columns = (self.pairs.captions, self.pairs.negatives, self.pairs.paraphrases)
        return max((longest(texts) for texts in columns if texts is not None), key=len)

    @torch.no_grad()
    def features(self) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]:
        """Return the features of all images and captions with the current weights.

        Every process returns all features, on the CPU.
        """
        model, processes, stores = self.model, self.processes, self.stores
        with evaluating(model):
            if "image_features" in self.stored:
                image = self._features_of("image_features", len(self.pairs.images))
            elif "image_features" in stores:
                image = F.normalize(model.image.head(stores["image_features"]).float(), dim=-1)
            else:
                image = encode_shared(self.pairs.images, model.encode_image, processes)
            if "text_features" in self.stored:
                text = self._features_of("text_features", len(self.pairs.captions))
            elif "text_features" in stores:
                text = F.normalize(model.text.head(stores["text_features"]).float(), dim=-1)
            else:
                text = encode_shared(self.pairs.captions, model.encode_text, processes)
        return image.cpu(), text.cpu()

    def _features_of(self, name: str, count: int) -> Float[Tensor, "N D"]:
        """Return the features of all images or all captions, computed from inputs that are stored on disk.

        If the inputs differ between epochs, those of epoch 0 are used.
        """
        stored, tower = self.stored[name], self.encoders[name].tower
        lengths = stored.lengths()

        def encode(positions: Sequence[int]) -> Tensor:
            order = torch.tensor(positions)[lengths[positions].argsort(stable=True)]
            parts = []
            for part in order.split(_BATCH):
                inputs = {key: value.to(self.model.device) for key, value in stored.take(part).items()}
                parts.append(F.normalize(tower(inputs).float(), dim=-1))
            return torch.cat(parts)[(order - positions[0]).argsort()]

        return encode_shared(range(count), encode, self.processes)


def _noting_epochs(slices: Any, epochs: deque[int]) -> Iterator[Any]:
    """Pass on a sampler's slices (this process's samples of each batch), and append their epochs to `epochs`."""
    for samples in slices:
        epochs.append(samples[0].epoch if samples else 0)
        yield samples


def _no_tokens(texts: list[str]) -> dict[str, Tensor]:
    raise NotImplementedError("this run computes no features of texts")
