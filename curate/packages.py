"""The four packages of one installation: `curate`, `train`, `labeling` and `synth` must lie beside each other.

Their names are common. A `train.py` in the folder where Python starts, or another distribution's `labeling`, would be
imported in place of ours and fail somewhere inside a command; this is told at the start, in one line.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from curate.errors import CurateError

OURS = ("train", "labeling", "synth")
MARK = "# Part of steel-curate, like the packages beside it."  # a line of each package's __init__.py
REINSTALL = "pip install --force-reinstall --no-deps steel-curate"
HOME = Path(__file__).resolve().parents[1]


def check(home: Path = HOME) -> None:
    """Raise CurateError if Python would import something else than our own packages. Imports nothing."""
    for name in OURS:
        ours = home / name / "__init__.py"
        found = _origin(name)
        if found is not None and found.resolve() != ours:
            remedy = "Rename it, take it off PYTHONPATH, or start Python in another folder"
            raise CurateError(f"`import {name}` finds {found}, but curate needs its own at {ours.parent}. {remedy}")
        if not ours.is_file():
            raise CurateError(f"curate's package {name} is missing at {ours.parent}. Run: {REINSTALL}")
        if MARK not in ours.read_text(encoding="utf-8", errors="replace"):
            raise CurateError(
                f"{ours} is not curate's: {_owner(name)} has replaced it. Remove it, then run: {REINSTALL}"
            )


def _origin(name: str) -> Path | None:
    """Return the file that `import name` runs or has run; a folder without __init__.py for a namespace package."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module without a spec, which somebody put into sys.modules
        return Path(f"a module '{name}' that was made by hand")
    if spec is None:
        return None
    if spec.origin is None or not spec.has_location:
        return next((Path(place) for place in spec.submodule_search_locations or ()), None)
    return Path(spec.origin)


def _owner(name: str) -> str:
    from importlib.metadata import distributions

    for found in distributions():
        if found.name != "steel-curate" and f"{name}/__init__.py" in map(str, found.files or ()):
            return f"the distribution {found.name} {found.version}"
    return "another distribution"
