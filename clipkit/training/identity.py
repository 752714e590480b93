"""Identity of a run: everything except the recipe that determines its result."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from clipkit.catalogue import Need
from clipkit.evaluation import versions
from clipkit.models import DualEncoder
from clipkit.processes import Processes
from clipkit.recipe import Recipe
from clipkit.training.objectives.teacher import Teacher
from clipkit.training.run_data import RunData

# Parts that change the results by rounding errors only.
MACHINE = ("versions", "processes", "device")

# Parts that change the evaluation, not the training.
MEASURED = ("the images of data.labelled",)


def identity_of(
    recipe: Recipe,
    data: RunData,
    model: DualEncoder,
    teachers: Mapping[str, Teacher],
    processes: Processes,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Return hashes of data, frozen weights and teachers, and the machine.

    The names of the parts appear in messages and checkpoints, so they must not change.
    """
    train, validation = data.train, data.validation
    return {
        "the images or captions of data.train": train.fingerprint,
        "the weights of data.train": [source.weight for source in recipe.data.sources],
        "the images or captions of data.validation": validation.fingerprint if validation else None,
        "the frozen weights of the model": frozen_weights_hash(model),
        "the teacher": [teacher.fingerprint for teacher in teachers.values()],
        "the wrong captions": _hash_of((train.pairs.negatives or []) if Need.NEGATIVES in recipe.needs else []),
        "the paraphrases": [
            _hash_of(pairs.paraphrases or []) for pairs in (train.pairs, validation) if pairs is not None
        ],
        "the images of data.labelled": [labeled.fingerprint for labeled in data.labelled],
        "the processes and workers that read the stream": (
            [processes.count, recipe.data.workers] if train.depends_on_workers else None
        ),
        "versions": versions(),
        "processes": processes.count,
        "device": f"{accelerator.device.type}, {accelerator.mixed_precision.replace('no', 'fp32')}",
    }


def frozen_weights_hash(model: nn.Module) -> str:
    """Return a hash of the parameters that are not trained; checkpoints do not contain them."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _hash_of(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
