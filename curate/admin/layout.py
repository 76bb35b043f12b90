"""Layout of production images in their folders: a guess at template, stratum and group, for the user to check.

Pure: turns relative paths into a `Layout`. A part of the path (a folder, or a piece of the file's name between
underscores) is recognised by its values: `line1`, `cam0`, `shift_B`, `2024-05-01`, `coil123`. Nothing is guessed from
an ambiguous part.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

# Fields of a template, by the beginning of their values.
PLACES = {
    "plant": r"plant|works?|site|werk",
    "line": r"line|linie|l(?=\d)",
    "station": r"station|stand|zone",
    "camera": r"cam(era)?|kamera|c(?=\d$)",
    "side": r"side|top|bottom|upper|lower|left|right|front|back|oben|unten",
    "shift": r"shift|schicht|night|day(?!\W*\d)|early|late",
    "grade": r"grade|steel|alloy|dc\d|dp\d|s\d{3}",
}
PIECES = {
    "coil": r"coil|bund",
    "strip": r"strip",
    "slab": r"slab|bramme",
    "plate": r"plate|sheet|blech|panel",
    "tile": r"tile",
    "heat": r"heat|charge|schmelze",
    "piece": r"piece|sample|specimen|billet|pipe|tube|wheel|blade",
}
REST = r"$|[-_. ]?\d|[-_. ]\w|[A-Z]"  # after the word: `line`, `line2`, `line-north`, `shiftB`; not `samples`
DATE = re.compile(r"(19|20)\d\d([-_.]?\d\d){0,2}(T?\d+)?|\d\d[-.]\d\d([-.](\d\d)?\d\d)?")
COUNTER = r"([^/]+)[_-]\d+\.\w+$"  # numbered images of one coil: its name comes before the number
MOST = 0.9  # of the files that a guess has to fit
MOST_PLACES = 50  # different values; with more a folder is no stratum
LARGEST = 0.5  # of the files in one group; with more it is no group: splits could not be drawn


@dataclass(frozen=True)
class Layout:
    """A source's `template`, `stratum` and `group`, as in project.toml; None where there is no guess."""

    template: str | None = None
    stratum: str | None = None
    group: str | None = None


def guess(paths: Sequence[str]) -> Layout:
    """Guess the layout of most files; the others get no stratum or group."""
    usual = _usual(paths)
    folders, tokens = usual
    fitting = [path for path in paths if _shape(path) == usual]
    if not paths or len(fitting) < MOST * len(paths):  # the names differ: use the folders only
        tokens = 1
        folders = Counter(path.count("/") for path in paths).most_common(1)[0][0] if paths else 0
        fitting = [path for path in paths if path.count("/") == folders]
    if len(fitting) < max(1, MOST * len(paths)):
        return Layout(group=_numbered(paths))
    roles: list[str | None] = []
    for values in list(zip(*(_parts(path, tokens) for path in fitting), strict=True))[:-1]:
        role = _role(values)
        roles.append(None if role in roles else role)
    places = [f"{{{name}}}" for name in roles if name in PLACES]
    template = stratum = None
    if places:
        fields = [f"{{{name or f'part{number}'}}}" for number, name in enumerate(roles, start=1)] + ["{name}"]
        template, stratum = "/".join([*fields[:folders], "_".join(fields[folders:])]), "/".join(places)
    return Layout(template, stratum, _piece(roles, folders) or _numbered(paths))


def _usual(paths: Sequence[str]) -> tuple[int, int]:
    shapes = Counter(map(_shape, paths))
    return shapes.most_common(1)[0][0] if shapes else (0, 1)


def _shape(path: str) -> tuple[int, int]:
    """Number of folders, and of pieces of the file's name between underscores."""
    return path.count("/"), PurePosixPath(path).name.count("_") + 1


def _parts(path: str, tokens: int) -> list[str]:
    *folders, name = path.split("/")
    return [*folders, *(name.split("_") if tokens > 1 else [name])]


def _role(values: Sequence[str]) -> str | None:
    """The field of this part of the path, by its values; None where it is ambiguous."""
    counts = Counter(values)
    if all(DATE.fullmatch(value) for value in counts):
        return "date"
    for name, pattern in (PLACES | PIECES).items():
        if all(re.match(f"(?i:{pattern})({REST})", value) for value in counts):
            fits = _can_be_split(counts) if name in PIECES else len(counts) <= MOST_PLACES
            return name if fits else None
    return None


def _can_be_split(pieces: Counter[str]) -> bool:
    """True where no piece holds too many of the files for splits between pieces."""
    return max(pieces.values(), default=0) <= LARGEST * pieces.total()


def _piece(roles: Sequence[str | None], folders: int) -> str | None:
    """The pattern of the part that names the physical piece."""
    place = next((number for number, name in enumerate(roles) if name in PIECES), None)
    if place is None:
        return None
    if place < folders:
        return rf"^(?:[^/]+/){{{place}}}([^/]+)/" if place else "^([^/]+)/"
    before = rf"(?:[^/_]+_){{{place - folders}}}" if place > folders else ""
    return rf"(?:^|/){before}([^/_]+)_[^/]*$"


def _numbered(paths: Sequence[str]) -> str | None:
    """Pattern of names that are numbered within a piece (`A17_0001.jpg`, `A17_0002.jpg`)."""
    names = [match.group(1) for path in paths if (match := re.search(COUNTER, path))]
    counts = Counter(name for name in names if not DATE.fullmatch(name))
    fits = counts.total() >= max(2, MOST * len(paths)) and counts.total() >= 2 * len(counts)
    return COUNTER if fits and _can_be_split(counts) else None
