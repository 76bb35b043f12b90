"""Label Studio, both ways."""

# Part of steel-curate, like the packages beside it.
