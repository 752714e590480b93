"""CLIP-style contrastive learning: train, evaluate and use paired image and text encoders.

>>> import clipkit
>>> model = clipkit.load("openai/clip-vit-base-patch32")              # doctest: +SKIP
>>> model.classify(["photo.jpg"], ["a cat", "a dog"])                 # doctest: +SKIP
"""

import importlib
from typing import TYPE_CHECKING, Any

from clipkit.versions import __version__

if TYPE_CHECKING:
    from clipkit import evaluation as evaluate
    from clipkit import losses, metrics
    from clipkit.evaluation import Result
    from clipkit.evaluation.explanation import Explanation, explain
    from clipkit.evaluation.mteb import mteb_model
    from clipkit.models import DualEncoder, load
    from clipkit.models.export import export
    from clipkit.models.merge import merge
    from clipkit.processes import Processes
    from clipkit.recipe import Recipe
    from clipkit.search import Index, embed
    from clipkit.suggestion import Suggestion, suggest
    from clipkit.training import train
    from clipkit.training.callbacks import Callback, Progress
    from clipkit.training.objectives.objective import Objective
    from clipkit.training.own_step import Step
    from clipkit.training.run_object import Run

# Public name -> (module, attribute); the attribute is None if the name is the module itself. Imported on first use, so
# that `import clipkit` and `clipkit --help` stay instant.
_PUBLIC: dict[str, tuple[str, str | None]] = {
    "Callback": ("clipkit.training.callbacks", "Callback"),
    "DualEncoder": ("clipkit.models", "DualEncoder"),
    "Explanation": ("clipkit.evaluation.explanation", "Explanation"),
    "Index": ("clipkit.search", "Index"),
    "Objective": ("clipkit.training.objectives.objective", "Objective"),
    "Processes": ("clipkit.processes", "Processes"),
    "Progress": ("clipkit.training.callbacks", "Progress"),
    "Recipe": ("clipkit.recipe", "Recipe"),
    "Result": ("clipkit.evaluation.result_object", "Result"),
    "Run": ("clipkit.training.run_object", "Run"),
    "Step": ("clipkit.training.own_step", "Step"),
    "Suggestion": ("clipkit.suggestion", "Suggestion"),
    "embed": ("clipkit.search", "embed"),
    "evaluate": ("clipkit.evaluation", None),
    "explain": ("clipkit.evaluation.explanation", "explain"),
    "export": ("clipkit.models.export", "export"),
    "load": ("clipkit.models", "load"),
    "losses": ("clipkit.losses", None),
    "merge": ("clipkit.models.merge", "merge"),
    "metrics": ("clipkit.metrics", None),
    "mteb_model": ("clipkit.evaluation.mteb", "mteb_model"),
    "suggest": ("clipkit.suggestion", "suggest"),
    "train": ("clipkit.training", "train"),
}

__all__ = [
    "Callback",
    "DualEncoder",
    "Explanation",
    "Index",
    "Objective",
    "Processes",
    "Progress",
    "Recipe",
    "Result",
    "Run",
    "Step",
    "Suggestion",
    "__version__",
    "embed",
    "evaluate",
    "explain",
    "export",
    "load",
    "losses",
    "merge",
    "metrics",
    "mteb_model",
    "suggest",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'clipkit' has no attribute {name!r}")
    module_name, attribute = _PUBLIC[name]
    module = importlib.import_module(module_name)
    return module if attribute is None else getattr(module, attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
