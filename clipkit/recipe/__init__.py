"""Recipes: typed settings that determine a training run, validated once when they are read.

>>> recipe = Recipe.from_dict({"model": {"name": "my/clip"}, "data": {"train": "train.csv"}, "output": "runs/a"})
>>> recipe.optim.lr
LearningRates(pretrained=1e-05, new=0.001, adapter=0.0001)
>>> print(recipe.override({"optim.lr": 5e-6}).optim.lr)
5e-06
"""

from clipkit.recipe.data import DataRecipe, HardNegativesRecipe
from clipkit.recipe.loop import CheckpointRecipe, EvalRecipe, LearningRates, OptimRecipe, TrainRecipe
from clipkit.recipe.lora import LoraRecipe
from clipkit.recipe.loss import CaptionLossRecipe, LossOptions, LossRecipe, LossTerm
from clipkit.recipe.model import ImageTowerRecipe, ModelRecipe, TextTowerRecipe
from clipkit.recipe.overrides import parse_overrides
from clipkit.recipe.policies import Policy, Step, steps_of
from clipkit.recipe.terms import ImageViewsTerm, Side, Term, TextViewsTerm, TranslationsTerm
from clipkit.recipe.translations import TranslationsRecipe
from clipkit.recipe.views import HeadRecipe, ImageViewsRecipe, TextViewsRecipe, ViewsRecipe
from clipkit.recipe.whole import Recipe

__all__ = [
    "CaptionLossRecipe",
    "CheckpointRecipe",
    "DataRecipe",
    "EvalRecipe",
    "HardNegativesRecipe",
    "HeadRecipe",
    "ImageTowerRecipe",
    "ImageViewsRecipe",
    "ImageViewsTerm",
    "LearningRates",
    "LoraRecipe",
    "LossOptions",
    "LossRecipe",
    "LossTerm",
    "ModelRecipe",
    "OptimRecipe",
    "Policy",
    "Recipe",
    "Side",
    "Step",
    "Term",
    "TextTowerRecipe",
    "TextViewsRecipe",
    "TextViewsTerm",
    "TrainRecipe",
    "TranslationsRecipe",
    "TranslationsTerm",
    "ViewsRecipe",
    "parse_overrides",
    "steps_of",
]
