"""Several jobs as one command: stages described as data, each in a folder of its own, skipped once finished."""

from fastcap.recipes.plan import RecipeError, Stage, read_plan
from fastcap.recipes.run import run_recipe

__all__ = ["RecipeError", "Stage", "read_plan", "run_recipe"]
