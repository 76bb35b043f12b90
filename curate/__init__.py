"""Find, label and balance the rarest surface defects.

`curate.open` and `curate.create` give a project, `curate.pick` chooses rows of plain arrays; see docs/api.md. They are
loaded when they are first used: importing this package is quick.
"""

import os
from typing import TYPE_CHECKING, Any

from curate.errors import CurateError

if TYPE_CHECKING:
    from curate.api import create, open, pick

__version__ = "0.1.0"
__all__ = ["CurateError", "__version__", "create", "open", "pick"]

# OpenMP's threads would spin while they wait for each other, and on a busy machine take the core from the very thread
# that they wait for. It is read when torch is loaded, so it stands here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    """Load the Python API when one of its functions is first used."""
    if name not in ("create", "open", "pick"):
        raise AttributeError(f"module 'curate' has no attribute '{name}'; it has {', '.join(__all__)}")
    from curate import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
