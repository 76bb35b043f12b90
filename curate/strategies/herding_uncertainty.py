"""Coverage weighted by uncertainty: images typical of many uncertain ones (Bae et al., 2025)."""

from __future__ import annotations

import numpy as np

from curate.select import uncertainty
from curate.select.pool import Picks, Pool
from curate.strategies._common import class_probabilities, picks_of, wanted_classes
from curate.strategies.maxherding import covering


def select(pool: Pool, budget: int, rng: np.random.Generator, *, most: int = 30_000) -> Picks:
    """Pick images that are similar to many uncertain ones.

    Args:
        pool: the images to pick from.
        budget: the number of picks; where there are fewer candidates, all are picked.
        rng: not used.
        most: in a larger pool an even sample of about this many images is considered.

    Returns:
        One pick an image, best first.
    """
    likely = class_probabilities(pool, "herding_uncertainty")
    entropy = uncertainty.predictive_entropy_multilabel(likely[:, wanted_classes(pool)])
    weights = np.nan_to_num(np.asarray(entropy, np.float32))
    rows, gain = covering(pool, budget, weights, most)

    def reason(row: int) -> str:
        return f"typical of images whose entropies add up to {gain[row]:.1f}; its own entropy {weights[row]:.2f}"

    return picks_of(pool, rows, "herding_uncertainty", gain, reason)
