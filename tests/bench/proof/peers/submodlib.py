"""submodlib-py 0.0.3 (MIT): FLQMI (SIMILAR, TALISMAN) towards the exemplars, and FLCG given the labelled images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.bench.proof.peers import Ask


def choose(ask: Ask, method: str) -> NDArray[np.int64]:
    from submodlib import (
        FacilityLocationConditionalGainFunction,
        FacilityLocationVariantMutualInformationFunction,
    )

    size, count = len(ask.open), min(ask.count, len(ask.open))
    if method == "flqmi":
        near = ask.near[ask.open]
        function = FacilityLocationVariantMutualInformationFunction(size, near.shape[1], query_sijs=near)
    else:
        data = ask.vectors[ask.open]
        known = ask.vectors[ask.labelled]
        function = FacilityLocationConditionalGainFunction(
            size, len(known), data_sijs=data @ data.T, private_sijs=data @ known.T, privacyHardness=1
        )
    if count == size:  # submodlib refuses to choose all
        return ask.open
    found = function.maximize(budget=count, optimizer="LazyGreedy", show_progress=False)
    return ask.open[[place for place, _ in found]]
