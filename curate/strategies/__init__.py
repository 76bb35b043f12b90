"""One file a strategy: `select(pool, budget, rng, *, …) -> Picks`; the file's name is its name, the docstring its help.

Keyword-only parameters are the strategy's options. A strategy returns exactly `min(budget, candidates)` picks, best
first, and does not change the pool. Rules that hold for all strategies (near-duplicates, groups, strata quotas) are
applied by the selection layer, `curate/select/rules.py`.

Score arrays in `Pool.scores`, all optional: `probability` (n, classes) that the image shows a class, `class_entropy`
(n, classes) of the most uncertain tiles of each class, `uncertainty` (n,), `bald` (n,), `defect_pixels` (n, classes).
Where there is no model yet, a linear probe on the vectors is used instead.
"""

from __future__ import annotations

from curate.catalogue import Catalogue

CATALOGUE = Catalogue(__name__, "strategy", "select")
DEFAULT = "portfolio"
