"""Where the towers' inputs come from: pictures and captions each time, or a frozen trunk's output, computed once."""

from collections.abc import Generator
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from clipkit.data import EpochSampler, Pairs, SeededCrop, Unaugmented, pair_loader
from clipkit.data.loader import Batch
from clipkit.models import DualEncoder
from clipkit.models.encode import encode_pictures, encode_strings, stack_inputs
from clipkit.models.towers import TRUNK_FEATURES
from clipkit.processes import Processes
from clipkit.recipe import DataRecipe

_BATCH = 64


class TowerInputs:
    """Inputs of both towers for one set of pairs.

    A frozen trunk whose input is not augmented gives the same output in every epoch: it is run once a picture and
    once a caption, shared out over the processes, and kept in memory.

    Args:
        model: whose towers are fed.
        pairs: the data.
        processes: who takes part.
        augmented: whether pictures are augmented, so that their trunk has to run each time.
        negatives: whether the objective wants wrong captions.
    """

    def __init__(
        self, model: DualEncoder, pairs: Pairs, processes: Processes, augmented: bool, negatives: bool = False
    ) -> None:
        self.model = model
        self.pairs = pairs
        self.processes = processes
        self.negatives = negatives
        self.image_store = None
        self.text_store = None
        self.negative_store = None
        show = processes.is_main
        if model.image.trunk_is_frozen and not augmented:
            share = pairs.pictures[processes.share(len(pairs.pictures))]

            def image_trunk(inputs: dict[str, Tensor]) -> Tensor:
                return model.image.trunk(**inputs)

            rows = encode_pictures(model.image, share, image_trunk, _BATCH, model.device, show)
            self.image_store = self._gathered(rows, len(pairs.pictures))
        if model.text.trunk_is_frozen:

            def text_trunk(inputs: dict[str, Tensor]) -> Tensor:
                return model.text.trunk(**inputs)

            def stored(captions: list[str]) -> Tensor:
                share = captions[processes.share(len(captions))]
                rows = encode_strings(model.text, share, text_trunk, _BATCH, model.device, show)
                return self._gathered(rows, len(captions))

            self.text_store = stored(pairs.captions)
            self.negative_store = stored(pairs.negatives) if negatives and pairs.negatives is not None else None

    def _gathered(self, rows: Tensor, total: int) -> Tensor:
        # Cloned: inference-mode tensors cannot enter a graph.
        device = self.model.device
        return self.processes.gather(rows.to(device), total).clone()

    def batches(
        self, sampler: EpochSampler, recipe: DataRecipe, seed: int, first_step: int, last_step: int
    ) -> Generator[Batch, None, None]:
        """This process's slice of each step's global batch, on the model's device."""
        preprocess = self.model.image.preprocess
        augment = (
            Unaugmented(preprocess)
            if recipe.augment == "none"
            else SeededCrop(preprocess.image_size, recipe.crop_scale, preprocess.of_crop, seed)
        )
        batches = pair_loader(
            self.pairs,
            sampler.slices(first_step, last_step, self.processes.share(sampler.batch_size)),
            augment if self.image_store is None else None,
            self.model.text.tokenize if self.text_store is None else None,
            recipe.workers,
            self.negatives,
        )
        device = self.model.device
        for batch in batches:
            image = {name: value.to(device, non_blocking=True) for name, value in batch.image.items()}
            text = {name: value.to(device, non_blocking=True) for name, value in batch.text.items()}
            wrong = {name: value.to(device, non_blocking=True) for name, value in batch.negative_text.items()}
            if self.image_store is not None:
                image = {TRUNK_FEATURES: self.image_store[batch.image_ids]}
            if self.text_store is not None:
                text = {TRUNK_FEATURES: self.text_store[batch.caption_ids]}
            if self.negative_store is not None:
                wrong = {TRUNK_FEATURES: self.negative_store[batch.caption_rows]}
            yield replace(batch, image=image, text=text, negative_text=wrong)

    def example(self, count: int, caption: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Inputs of `count` pairs with this caption, for measuring."""
        device = self.model.device
        grey = Image.new("RGB", (224, 224), (128, 128, 128))
        image = {
            name: value.to(device) for name, value in stack_inputs([self.model.image.preprocess(grey)] * count).items()
        }
        if self.image_store is not None:
            image = {TRUNK_FEATURES: self.image_store[:count]}
        text = {name: value.to(device) for name, value in self.model.text.tokenize([caption] * count).items()}
        if self.text_store is not None:
            text = {TRUNK_FEATURES: self.text_store[:count]}
        return image, text

    @torch.no_grad()
    def features(self) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]:
        """Features of every picture and caption with the weights as they are now, on the CPU, on every process."""
        model, processes = self.model, self.processes
        learning = [module for module in model.modules() if module.training]
        model.eval()
        if self.image_store is not None:
            image = F.normalize(model.image.head(self.image_store).float(), dim=-1)
        else:
            share = self.pairs.pictures[processes.share(len(self.pairs.pictures))]
            image = processes.gather(model.encode_image(share).to(model.device), len(self.pairs.pictures))
        if self.text_store is not None:
            text = F.normalize(model.text.head(self.text_store).float(), dim=-1)
        else:
            captions = self.pairs.captions[processes.share(len(self.pairs.captions))]
            text = processes.gather(model.encode_text(captions).to(model.device), len(self.pairs.captions))
        for module in learning:
            module.training = True
        return image.cpu(), text.cpu()
