"""All targets by name."""

from __future__ import annotations

from tests.fuzz import datasets, pictures, state, streams, studio
from tests.fuzz.kinds import Target

TARGETS: dict[str, Target] = {
    target.name: target for module in (datasets, pictures, streams, studio, state) for target in module.TARGETS
}
