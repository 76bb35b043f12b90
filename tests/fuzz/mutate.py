"""Damage: to bytes, to text with numbers and fields, to JSON values, and to files as such."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
NUMBERS = (
    *("1e30", "-1e30", "1e308", "nan", "NaN", "inf", "-inf", "Infinity", "-0", "0", "-1", "1e-320", "1e400"),
    *("2147483648", "-2147483649", "4294967295", "9223372036854775807", "99999999999999999999", "9" * 400, "1" * 5000),
    *("0x10", "1_0", "1,5", "٣", "", " ", "true", "null", "0.5", "1", "16", "12", "192"),
)
VALUES: tuple[Any, ...] = (
    *(1e30, -1e30, 1e308, float("nan"), float("inf"), float("-inf"), -0.0, 0, -1, 0.5, 1e-320, 2**31, -(2**31) - 1),
    *(2**32 - 1, 2**63, -(2**63) - 1, 2**64, 10**400, None, True, False, "", " ", "x", "0", "1", [], {}, [[]], [None]),
    *({"x": 1}, [1, 2, 3], "NaN", "\0", "\n", "é", "\ud800", "a" * 5000, 1, 16, 12, 192),
)
QUOTES = (
    '"',
    "'",
    "`",
    "\\",
    "\0",
    "\r",
    "\n",
    "\r\n",
    "\t",
    ",",
    ";",
    "<",
    ">",
    "&",
    "\ufeff",
    "\u2028",
    "é",
    "{",
    "[",
)
ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "latin-1", "utf-8-sig", "cp500", "utf-7")
DEEP = (500, 3_000, 100_000)
SEARCHED = 5_000  # characters in which names and numbers are looked for


def names(outside: Path) -> list[str]:
    """File names that a label file must not be able to make anyone open, and odd ones."""
    secret = outside / "passwd.jpg"
    return [
        *("../outside/passwd.jpg", "../../outside/passwd.jpg", str(secret), f"./{secret}", "linked/passwd.jpg"),
        *(
            "/etc/passwd",
            "/dev/zero",
            "/dev/stdin",
            "..",
            ".",
            "",
            "/",
            "~/x.jpg",
            "C:\\x.jpg",
            "..\\outside\\passwd.jpg",
        ),
        *("file:///etc/passwd", "http://127.0.0.1:9/x.jpg", "a\nb.jpg", "a\0b.jpg", "\ud800.jpg", "x" * 300 + ".jpg"),
        *("x/" * 3000 + "a.jpg", "a.jpg/", "a.jpg/b.jpg", "CON", "-rf", "a.JPG", "‮gpj.a", "é.jpg", "%2e%2e/passwd.jpg"),
    ]


# --- bytes ------------------------------------------------------------------------------------------------------------


def some_bytes(random: Random, data: bytes, head: int = 0) -> bytes:
    """One to four small damages; with `head`, most of them among the first so many bytes."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = _damage(random, data, head)
    return data


def _damage(random: Random, data: bytes, head: int) -> bytes:
    if not data:
        return random.randbytes(random.randrange(64))
    end = min(head, len(data)) if head and random.random() < 0.7 else len(data)
    at = random.randrange(end)
    length = min(random.choice((1, 1, 2, 4, 8, 64)), len(data) - at)
    before, piece, after = data[:at], data[at : at + length], data[at + length :]
    match random.randrange(8):
        case 0:
            return before + bytes([piece[0] ^ 1 << random.randrange(8)]) + piece[1:] + after
        case 1:
            return before + random.randbytes(length) + after
        case 2:
            return before + random.choice((b"\xff", b"\0", b"\x7f", b"\x80")) * length + after
        case 3:
            return before
        case 4:
            return before + after
        case 5:
            return before + piece * random.choice((2, 3, 100)) + after
        case 6:
            return before + random.randbytes(length) + piece + after
        case _:
            other = random.randrange(len(data))
            return before + data[other : other + length] + after


# --- text -------------------------------------------------------------------------------------------------------------


def text(random: Random, data: bytes, outside: Path, planted: Sequence[str] = ()) -> bytes:
    """Damage to a text file: numbers, names, fields, lines, quotes, encodings, nesting; now and then plain bytes."""
    if planted and random.random() < 0.05:
        return random.choice(planted).encode("utf-8", "surrogatepass")
    if random.random() < 0.25:
        return some_bytes(random, data)
    found = data.decode("utf-8", "replace")
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        found = _edit(random, found, outside, planted)
    encoding = random.choice(ENCODINGS) if random.random() < 0.03 else "utf-8"
    return found.encode(encoding, "ignore" if encoding != "utf-8" else "surrogatepass")


def _edit(random: Random, found: str, outside: Path, planted: Sequence[str]) -> str:
    match random.randrange(10):
        case 0 | 1 | 2:
            return _replaced(random, NUMBER, found, random.choice(NUMBERS))
        case 3:
            return _replaced(random, re.compile(r"[^\s<>,:\"'=\[\]{}]+\.\w+"), found, random.choice(names(outside)))
        case 4:
            return _replaced(
                random, re.compile(r"[A-Za-z_]\w*"), found, random.choice(("x", "", "images", "name", "é"))
            )
        case 5:
            return _element(random, found)
        case 6:
            return _lines(random, found)
        case 7:
            at = random.randrange(len(found) + 1)
            return found[:at] + random.choice(QUOTES) + found[at:]
        case 8:
            at, opening = random.randrange(len(found) + 1), random.choice("[{(<\"'&*")
            return found[:at] + opening * random.choice(DEEP) + found[at:]
        case _:
            at = random.randrange(len(found) + 1)
            return found[:at] + (random.choice(planted) if planted else " ") + found[at:]


def _replaced(random: Random, pattern: re.Pattern[str], found: str, by: str) -> str:
    places = list(pattern.finditer(found[:SEARCHED]))
    if not places:
        return found
    place = random.choice(places)
    return found[: place.start()] + by + found[place.end() :]


def _element(random: Random, found: str) -> str:
    """An XML element (or else a word) that is left out, doubled, or put into itself."""
    head = found[:SEARCHED]
    places = list(re.finditer(r"<(\w+)>.*?</\1>", head, re.DOTALL)) or list(re.finditer(r"\S+", head))
    if not places:
        return found
    place = random.choice(places)
    by = random.choice(("", place[0] * 2, place[0].replace(">", f">{place[0]}", 1), place[0] * 200))
    return found[: place.start()] + by + found[place.end() :]


def _lines(random: Random, found: str) -> str:
    lines = found.split("\n")
    at = random.randrange(len(lines))
    match random.randrange(4):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, random.choice(lines))
        case 2:
            random.shuffle(lines)
        case _:
            lines[at] = lines[at][: random.randrange(len(lines[at]) + 1)]
    return random.choice(("\n", "\n", "\r\n", "\r")).join(lines)


# --- JSON -------------------------------------------------------------------------------------------------------------


def json_text(random: Random, data: bytes, outside: Path, planted: Sequence[str] = ()) -> bytes:
    """A JSON file, damaged as a value or as text; its keys may then stand twice."""
    if random.random() < 0.3:
        return text(random, data, outside, (*planted, *(opening * 100_000 for opening in ("[", '{"a":'))))
    found = json.dumps(value(random, json.loads(data), outside))
    if found.endswith("}") and random.random() < 0.05:  # a key that stands twice: readers see the last one
        key = random.choice(re.findall(r'"(\w+)": ', found) or ["x"])
        found = f'{found[:-1]}, "{key}": []}}'
    return found.encode()


def value(random: Random, found: Any, outside: Path) -> Any:
    """The value with one to three of its parts replaced, left out, doubled or moved."""
    found = copy.deepcopy(found)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        found = _changed(random, found, outside)
    return found


def _changed(random: Random, found: Any, outside: Path) -> Any:
    places = list(_places(found))
    if not places:
        return found if isinstance(found, dict) else random.choice(VALUES)
    holder, key = random.choice(places)
    match random.randrange(8):
        case 0:
            del holder[key]
        case 1:
            other = random.choice(places)
            holder[key] = copy.deepcopy(other[0][other[1]])
        case 2:
            holder[key] = random.choice(names(outside))
        case 3:
            holder[key] = [copy.deepcopy(holder[key])] * random.choice((1, 2, 50))
        case 4 if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        case 5 if isinstance(holder, dict):
            holder[random.choice(("x", "", "id", "size", "counts", "_cls", "__class__"))] = holder.pop(key)
        case 6 if isinstance(holder[key], str | int | float) and not isinstance(holder[key], bool):
            part = holder[key]
            holder[key] = (
                part[: len(part) // 2]
                if isinstance(part, str)
                else random.choice((-part, part * 10**9, repr(part)[:50]))
            )
        case _:
            holder[key] = copy.deepcopy(random.choice(VALUES))
    return found


def _places(found: Any) -> Any:
    """(holder, key) of every part, at any depth."""
    todo = [found]
    while todo:
        holder = todo.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            yield holder, key
            todo.append(holder[key])


# --- files ------------------------------------------------------------------------------------------------------------


THINGS = ("pipe", "folder", "link out", "link out", "loop", "dangling", "empty", "gone", "device", "huge")


def other_thing(random: Random, path: Path, outside: Path, kinds: Sequence[str] = THINGS) -> str:
    """Something else in the place of a file: a pipe, a folder, a link. Says which."""
    kind = random.choice(kinds)
    if path.is_dir() and not path.is_symlink():
        return "folder already"
    path.unlink(missing_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "link out":
            path.symlink_to(outside / f"secret{path.suffix}")
        case "loop":
            path.symlink_to(path.name)
        case "dangling":
            path.symlink_to("nowhere")
        case "device":
            path.symlink_to("/dev/zero")
        case "empty":
            path.touch()
        case "huge":
            with path.open("wb") as handle:
                handle.truncate(8 << 30)  # sparse: costs nothing until it is read
    return kind
