"""Most disagreement: mutual information between prediction and model (Houlsby et al., 2011; Gal et al., 2017)."""

from __future__ import annotations

import numpy as np

from curate.errors import CurateError
from curate.select import linear_probe, uncertainty
from curate.select.pool import Floats, Picks, Pool
from curate.strategies._common import likelihood, picks, source, top


def select(pool: Pool, budget: int, rng: np.random.Generator, *, members: int = 8) -> Picks:
    if members < 2:
        raise CurateError(f"option 'members' of strategy bald is {members}; allowed: 2 or more")
    score = pool.scores["bald"] if "bald" in pool.scores else _of_probes(pool, members, rng)

    def reason(row: int) -> str:
        return f"repeated predictions of the {source(pool)} disagree: mutual information {score[row]:.3f}"

    return picks(pool, top(pool, score, budget), "bald", score, reason)


def _of_probes(pool: Pool, members: int, rng: np.random.Generator) -> Floats:
    likelihood(pool, "bald")  # says what is missing
    seen = np.nan_to_num(linear_probe.ensemble(pool, members, rng), nan=0.0)
    return np.asarray(uncertainty.bald_multilabel(seen), np.float32)
