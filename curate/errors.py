"""The one exception that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CurateError(Exception):
    """One line for a person: what is wrong, what is allowed, what to do. The CLI prints it and exits 1."""


class LabelProblem(CurateError):
    """One image's file or label cannot be trusted; the index quarantines the image with this reason."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def unknown(what: str, name: str, known: Iterable[str], remedy: str = "") -> CurateError:
    """Return the error for a name that does not exist: the value, the nearest one, all allowed ones, the remedy."""
    names = sorted(known)
    text = f"unknown {what} '{name}'{did_you_mean(name, names)}; allowed: {', '.join(names) or 'none'}"
    return CurateError(f"{text}. {remedy}" if remedy else text)
