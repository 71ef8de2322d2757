"""One file per paper: configuration, stages, tables, claims, deviations."""

from paper_repro.recipes import (
    challenge,
    deep_defense,
    free_at,
    loss_landscape,
    masking_of_g,
    published_table,
    smoothing_vs_ibp,
    stability,
    training_methods,
)
from paper_repro.recipes.recipe import Recipe

RECIPES: dict[str, Recipe] = {
    module.RECIPE.name: module.RECIPE
    for module in (
        free_at,
        challenge,
        stability,
        masking_of_g,
        deep_defense,
        loss_landscape,
        smoothing_vs_ibp,
        training_methods,
        published_table,
    )
}

__all__ = ["RECIPES", "Recipe"]
