"""Where the towers' inputs come from: images and captions each time, or a frozen trunk's output, computed once."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from clipkit.data import (
    AtWork,
    Augment,
    Batch,
    Pairs,
    Policy,
    Sample,
    StandIn,
    StreamPairs,
    Stretch,
    TextOf,
    TokenStore,
    longest,
    pair_loader,
    stream_loader,
)
from clipkit.models import DualEncoder
from clipkit.models.encode import encode_images, encode_strings, stack_inputs
from clipkit.models.towers import TRUNK_FEATURES
from clipkit.processes import Processes
from clipkit.training.objectives.objective import Encoded
from clipkit.training.step import Encoder

_BATCH = 64


class TowerInputs:
    """Inputs of what an objective sees, for one set of pairs.

    A frozen trunk whose input is not augmented gives the same output in every epoch: it is run once an image and
    once a caption, shared out over the processes, and kept in memory.

    Args:
        model: whose towers are fed.
        pairs: the data.
        processes: who takes part.
        encoded: what is wanted, by the name of the features.
        augmented: whether the images beside captions are augmented, so that their trunk has to run each time.
        seed: the run's, for the order of a stream.
        stand_in: what takes the place of a sample whose image cannot be had; None: none may be such.
        bad: images that are known to be such.
    """

    def __init__(
        self,
        model: DualEncoder,
        pairs: Pairs,
        processes: Processes,
        encoded: Mapping[str, Encoded],
        augmented: bool,
        seed: int = 0,
        stand_in: StandIn | None = None,
        bad: Mapping[int, str] | None = None,
    ) -> None:
        self.model = model
        self.pairs = pairs
        self.seed = seed
        self.stand_in = stand_in
        self.bad = dict(bad or {})
        """Images that cannot be had, as far as is known before the first batch, by position: why."""
        self.at_work = AtWork(pairs)
        self.processes = processes
        self.encoded = encoded
        self.encoders = {
            name: Encoder(model.image if own.tower == "image" else model.text, own.of_trunk)
            for name, own in encoded.items()
        }
        self.stores: dict[str, Tensor] = {}
        """Outputs of frozen trunks by the name of the features: a row an image, or a row a caption."""
        if isinstance(pairs, StreamPairs):
            return
        show = processes.is_main
        if "image_features" in encoded and model.image.trunk_is_frozen and not augmented:
            share = processes.share(len(pairs.images))
            bad_here: dict[int, str] = {}

            def image_trunk(inputs: dict[str, Tensor]) -> Tensor:
                return model.image.trunk(**inputs)

            rows = encode_images(
                model.image,
                pairs.images[share],
                image_trunk,
                _BATCH,
                model.device,
                show,
                None if stand_in is None else bad_here,
            )
            for own in processes.gather_objects({share.start + place: said for place, said in bad_here.items()}):
                self.bad |= own
            self.stores["image_features"] = self._gathered(rows, len(pairs.images))
        if "text_features" in encoded and model.text.trunk_is_frozen:

            def text_trunk(inputs: dict[str, Tensor]) -> Tensor:
                return model.text.trunk(**inputs)

            def stored(captions: Sequence[str]) -> Tensor:
                share = captions[processes.share(len(captions))]
                rows = encode_strings(model.text, share, text_trunk, _BATCH, model.device, show)
                return self._gathered(rows, len(captions))

            self.stores["text_features"] = stored(pairs.captions)
            if "negative_text_features" in encoded and pairs.negatives is not None:
                self.stores["negative_text_features"] = stored(pairs.negatives)

    def _gathered(self, rows: Tensor, total: int) -> Tensor:
        # Cloned: inference-mode tensors cannot enter a graph.
        device = self.model.device
        return self.processes.gather(rows.to(device), total).clone()

    def batches(self, slices: Iterable[list[Sample]] | Stretch, workers: int) -> Generator[Batch, None, None]:
        """Batches of these samples, or of this stretch of a stream, on the model's device.

        What came from a frozen trunk is overwritten by the next batch.
        """
        wanted = {name: own for name, own in self.encoded.items() if name not in self.stores}
        augments = {name: cast(Augment, own.make) for name, own in wanted.items() if own.tower == "image"}
        texts = {name: cast(TextOf, own.make) for name, own in wanted.items() if own.tower == "text"}
        draft = _draft(list(augments.values()))
        tokenize = self.model.text.tokenize if texts else _no_tokens
        if isinstance(slices, Stretch):
            assert isinstance(self.pairs, StreamPairs)
            process = (self.processes.index, self.processes.count)
            batches = stream_loader(
                self.pairs, slices, augments, list(texts), tokenize, workers, self.seed, process, draft
            )
        else:
            batches = pair_loader(
                self.pairs,
                slices,
                augments,
                texts,
                tokenize,
                workers,
                self.stand_in,
                self.at_work,
                self.bad,
                draft=draft,
                store=self._token_store(wanted),
            )
        device = self.model.device
        # Fresh memory for every batch would cost more than the copy.
        held: dict[str, Tensor] = {}
        for batch in batches:
            inputs = {
                name: {key: value.to(device, non_blocking=True) for key, value in own.items()}
                for name, own in batch.inputs.items()
            }
            rows = {"image_features": batch.image_ids, "text_features": batch.caption_ids}
            for name, store in self.stores.items():
                own = rows.get(name, batch.caption_rows).to(store.device)
                if name not in held or len(held[name]) != len(own):
                    held[name] = store.new_empty(len(own), store.shape[1])
                inputs[name] = {TRUNK_FEATURES: torch.index_select(store, 0, own, out=held[name])}
            yield replace(batch, inputs=inputs)

    def _token_store(self, wanted: Mapping[str, Encoded]) -> TokenStore | None:
        captions, tokenize = self.pairs.captions, self.model.text.tokenize
        if not any(own.tower == "text" for own in wanted.values()):
            return None
        if not TokenStore.fits(len(captions), tokenize.context_length):
            return None
        return TokenStore(captions, tokenize, tokenize.context_length, tokenize.pad_id)

    def example(self, count: int) -> dict[str, dict[str, Tensor]]:
        """Inputs of `count` samples with the longest captions, for measuring."""
        device = self.model.device
        grey = Image.new("RGB", (224, 224), (128, 128, 128))
        inputs: dict[str, dict[str, Tensor]] = {}
        for name, own in self.encoded.items():
            if name in self.stores:
                # Not a view: the graph would seem to keep the whole store for two pairs.
                inputs[name] = {TRUNK_FEATURES: self.stores[name][:count].clone()}
                continue
            if own.tower == "image":
                made = stack_inputs([self.model.image.preprocess(grey)] * count)
            else:
                made = self.model.text.tokenize([self._longest()] * count)
            inputs[name] = {key: value.to(device) for key, value in made.items()}
        return inputs

    def _longest(self) -> str:
        if isinstance(self.pairs, StreamPairs):
            return "a " * self.model.text.tokenize.context_length
        texts = (self.pairs.captions, self.pairs.negatives, self.pairs.paraphrases)
        return max((longest(own) for own in texts if own is not None), key=len)

    @torch.no_grad()
    def features(self) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]:
        """Features of every image and caption with the weights as they are now, on the CPU, on every process."""
        model, processes, stores = self.model, self.processes, self.stores
        with evaluating(model):
            if "image_features" in stores:
                image = F.normalize(model.image.head(stores["image_features"]).float(), dim=-1)
            else:
                share = self.pairs.images[processes.share(len(self.pairs.images))]
                image = processes.gather(model.encode_image(share).to(model.device), len(self.pairs.images))
            if "text_features" in stores:
                text = F.normalize(model.text.head(stores["text_features"]).float(), dim=-1)
            else:
                captions = self.pairs.captions[processes.share(len(self.pairs.captions))]
                text = processes.gather(model.encode_text(captions).to(model.device), len(self.pairs.captions))
        return image.cpu(), text.cpu()


def _no_tokens(texts: list[str]) -> dict[str, Tensor]:
    raise NotImplementedError("nothing asks for tokens")


def _draft(makers: Sequence[object]) -> int | None:
    """The short side that is enough for all of them."""
    sides = [maker.draft if isinstance(maker, Policy) else None for maker in makers]
    enough = [side for side in sides if side is not None]
    return max(enough) if enough and len(enough) == len(sides) else None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, the model is in evaluation mode; then as it was."""
    learning = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in learning:
            module.training = True
