"""Durations and rates for people to read."""


def rate(speed: float, what: str = "") -> str:
    """Return a speed in items a second as `12 images/s`; below one a second, the time of each: `3.2 s each`."""
    if speed < 1:
        return f"{1 / speed:.1f} s each"
    return f"{speed:.{1 if speed < 10 else 0}f}{what and ' '}{what}/s"


def duration(seconds: float) -> str:
    """Return a time as 40 s, 3 min or 1.5 h."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
