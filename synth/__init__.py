"""Synthesis of scarce defects."""

# Part of steel-curate, like the packages beside it.
