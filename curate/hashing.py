"""Hashes of content and of parameters: content ids, checksums, and the keys of labels and results.

They stand in file names, in the label log and in manifests: what a function returns for the same input never changes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

DIGEST_BYTES = 12  # of a key: 24 hex digits
SHORT_KEY = 12  # hex digits of a key that stands in a table's name


def content_id(content: bytes) -> str:
    """Return the SHA-256 of an image file's bytes: the image's identity everywhere."""
    return hashlib.sha256(content).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_of(text: str) -> str:
    """Return 24 hex digits that change with the text, which may hold a file name that is not UTF-8."""
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=DIGEST_BYTES).hexdigest()


def key_of(inputs: Any) -> str:
    """Return the key of a result: 24 hex digits that change with anything in its inputs.

    Args:
        inputs: Whatever JSON can hold, in any order of its keys; other values count by their `str`.
    """
    return digest_of(json.dumps(inputs, sort_keys=True, separators=(",", ":"), default=str))


def short_key(*parts: Any) -> str:
    """Return 12 hex digits that change with anything that an encoder's vectors depend on."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:SHORT_KEY]


def seeded_number(seed: int, *parts: object) -> int:
    """Return a 64-bit number that depends on nothing but the arguments: the same on any machine."""
    text = "\0".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
