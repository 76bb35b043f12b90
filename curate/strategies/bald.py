"""Most disagreement: mutual information between prediction and model (Houlsby et al., 2011; Gal et al., 2017)."""

from __future__ import annotations

import numpy as np

from curate.errors import CurateError
from curate.select import linear_probe, uncertainty
from curate.select.pool import Floats, Picks, Pool
from curate.strategies._common import class_probabilities, picks_of, predictor, top


def select(pool: Pool, budget: int, rng: np.random.Generator, *, members: int = 8) -> Picks:
    """Pick the images on which repeated predictions disagree most.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: draws the bootstrap samples of the probes, where no model gives scores.
        members: the number of probes of the ensemble that is used where no model gives scores.

    Returns:
        One pick an image, best first.
    """
    if members < 2:
        raise CurateError(f"option 'members' of strategy bald is {members}; allowed: 2 or more")
    score = pool.scores["bald"] if "bald" in pool.scores else _of_probes(pool, members, rng)

    def reason(row: int) -> str:
        return f"repeated predictions of the {predictor(pool)} disagree: mutual information {score[row]:.3f}"

    return picks_of(pool, top(pool, score, budget), "bald", score, reason)


def _of_probes(pool: Pool, members: int, rng: np.random.Generator) -> Floats:
    class_probabilities(pool, "bald")  # raises where there is no probe either
    seen = np.nan_to_num(linear_probe.ensemble(pool, members, rng), nan=0.0)
    return np.asarray(uncertainty.bald_multilabel(seen), np.float32)
