"""Identity of a run: everything that determines its result, apart from the recipe."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from torch import nn

from clipkit.catalogue import Need
from clipkit.data.content_hash import content_hash
from clipkit.data.labels import LabeledImages
from clipkit.data.pairs import Pairs
from clipkit.evaluation import versions
from clipkit.models import DualEncoder
from clipkit.models.fingerprint import weights_hash
from clipkit.processes import Processes
from clipkit.recipe import Recipe
from clipkit.training.given import Given
from clipkit.training.objectives.teacher import Teacher
from clipkit.training.pull import Pull
from clipkit.training.run_data import RunData

# Parts that change the results by rounding errors only.
MACHINE = ("versions", "processes", "device")

# Parts that change the evaluation, not the training.
MEASURED = ("the images of data.labelled", "the content of the images of data.labelled")


def identity_of(
    recipe: Recipe,
    data: RunData,
    model: DualEncoder,
    teachers: Mapping[str, Teacher],
    pull: Pull | None,
    processes: Processes,
    accelerator: Accelerator,
    given: Given,
) -> dict[str, Any]:
    """Return the identity of a run: hashes of data, frozen weights and teachers, and a description of the machine.

    The keys must stay the same, because they appear in checkpoints.
    """
    train, validation = data.train, data.validation

    def content(sources: Sequence[Pairs | LabeledImages]) -> list[str]:
        hashes = [content_hash(source.images) for source in sources] if processes.is_main else []
        return processes.gather_objects(hashes)[0]

    return {
        "the images or captions of data.train": train.fingerprint,
        "the weights of data.train": [source.weight for source in recipe.data.sources],
        "the images or captions of data.validation": validation.fingerprint if validation else None,
        "the frozen weights of the model": frozen_weights_hash(model),
        "the initial weights of the model": None if pull is None else pull.fingerprint(),
        "the teacher": [teacher.fingerprint for teacher in teachers.values()],
        "the wrong captions": _hash_of((train.pairs.negatives or []) if Need.NEGATIVES in recipe.needs else []),
        "the paraphrases": [
            _hash_of(pairs.paraphrases or []) for pairs in (train.pairs, validation) if pairs is not None
        ],
        "the images of data.labelled": [labeled.fingerprint for labeled in data.labelled],
        "the processes and workers that read the stream": (
            [processes.count, recipe.data.workers] if train.depends_on_workers else None
        ),
        "the content of the images of data.train": content([train.pairs] if train.can_index else []),
        "the content of the images of data.validation": content([validation] if validation else []),
        "the content of the images of data.labelled": content(data.labelled),
        **given.identity_parts(),
        "versions": versions(),
        "processes": processes.count,
        "device": f"{accelerator.device.type}, {accelerator.mixed_precision.replace('no', 'fp32')}",
    }


def frozen_weights_hash(model: nn.Module) -> str:
    """Return a hash of the frozen parameters, which are not in checkpoints."""
    return weights_hash((name, each) for name, each in model.named_parameters() if not each.requires_grad)


def _hash_of(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
