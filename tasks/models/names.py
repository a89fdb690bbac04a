"""What can be asked for by name, for help, lists and the completion of a shell; reads no model."""

from segcore import models
from segcore.crf.dense_crf import CRF_PRESETS, CrfParams
from segcore.learning.recipes import RECIPES, TrainRecipe
from segcore.models import checkpoint


def model_names() -> list[str]:
    """Models: ours, and those in this user's cache."""
    here = (folder.parent.name for folder in checkpoint.cache_directory().glob(f"*/{checkpoint.WEIGHTS_FILE}"))
    return sorted({*models.NAMES, *here})


def presets() -> dict[str, CrfParams]:
    """Published CRF parameters."""
    return dict(CRF_PRESETS)


def recipes() -> dict[str, TrainRecipe]:
    """Recipes of training."""
    return dict(RECIPES)


def recipe_names() -> list[str]:
    """Names of the recipes."""
    return list(RECIPES)


def recipe_name(recipe: TrainRecipe) -> str:
    """The name that a recipe has; its model's name where it has none."""
    return next((name for name, known in RECIPES.items() if known == recipe), recipe.model)
