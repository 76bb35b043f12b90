"""One file a strategy: `select(pool, budget, rng, *, …) -> Picks`; the file's name is its name, the docstring its help.

A strategy returns exactly `min(budget, candidates)` picks, best first, and leaves the pool alone. What all strategies
need (near-duplicates, groups, strata quotas) is the selection layer's: `curate/select/rules.py`.

Score arrays that strategies know, all optional: `probability` (n, classes) that the image shows a class,
`class_entropy` (n, classes) of the most doubtful tiles a class, `uncertainty` (n,), `bald` (n,), `defect_pixels`
(n, classes). Where there is no model yet, a linear probe on the vectors stands in for it.
"""

from __future__ import annotations

from curate.catalogue import Catalogue

CATALOGUE = Catalogue(__name__, "strategy", "select")
DEFAULT = "portfolio"
