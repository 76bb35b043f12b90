"""The plug-in for the FiftyOne App: the operators and the panel "Rare defects" (Python entry file: this one).

FiftyOne loads this file by its path, so it imports absolutely. `commands.py` reads the command line's options as forms,
`operators.py` lists what can be asked for, `panel.py` shows where the project stands. What they do is done by `ops`.
"""

from __future__ import annotations

from typing import Any


def register(plugin: Any) -> None:
    """Register operators and panel; FiftyOne calls this."""
    from curate.app import operators, panel

    operators.register(plugin)
    panel.register(plugin)
