"""Models: recipes, training, prediction, evaluation, export and simulation. Read `recipe.py` and `fit/run.py` first."""

# Part of steel-curate, like the packages beside it.
