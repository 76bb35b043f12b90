"""Hashes that stand in file names, logs and manifests: what a function returns for the same input never changes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from curate.hashing import content_id, digest_of, key_of, seeded_number, sha256_of, short_key


def test_the_hashes_of_old_projects_hold() -> None:
    assert key_of({"b": [1, "裂"], "a": None}) == "84198659a390d6b3ff4773ae"
    assert short_key("texture", 3, "auto", 0.25) == "07f8c2db3c45"
    assert digest_of("import||a\udc80.png") == "ac36a2ce530fd07e3eef43af"
    assert seeded_number(42, "a", None, 3) == 9284150814364267761


def test_a_file_and_its_bytes_have_the_same_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"steel")
    assert content_id(b"steel") == sha256_of(tmp_path / "a") == hashlib.sha256(b"steel").hexdigest()


def test_a_key_changes_with_its_inputs_and_not_with_their_order() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 1, "b": 3})
