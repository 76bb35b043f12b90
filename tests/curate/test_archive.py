"""Backup and restore: the same project comes back, and a damaged or hostile archive changes nothing."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from curate import archive, indexing, rounds
from curate.errors import CurateError
from curate.index import Index
from curate.project import Project, load
from curate.status import summarise
from tests.conftest import dump
from tests.curate.test_index import draw_in_app


@pytest.fixture
def saved(indexed: Project, tmp_path: Path) -> Path:
    draw_in_app(indexed, "coil0_0.png")
    file = tmp_path / "plant.tar.gz"
    id = sorted(Index(indexed).ids())[0]
    pick = {"rank": 1, "id": id, "path": "x.png", "slot": "audit", "score": 1.0, "reason": "drawn"}
    rounds.write(indexed.work, {"round": 1, "pushed": "2026-11-21T00:00:00Z"}, [pick])
    rounds.show(Index(indexed))
    archive.backup(indexed, file)
    return file


def test_round_trip(indexed: Project, saved: Path, tmp_path: Path) -> None:
    report = archive.restore(saved, tmp_path / "elsewhere" / "plant", {}, force=False)
    back = load(tmp_path / "elsewhere" / "plant")
    assert report["samples"] == 26
    assert dump(back) == dump(indexed)
    assert summarise(back) == summarise(indexed)
    for part in ("labels", "splits", "rounds"):
        ours = {p.relative_to(indexed.work): p.read_bytes() for p in (indexed.work / part).rglob("*") if p.is_file()}
        theirs = {p.relative_to(back.work): p.read_bytes() for p in (back.work / part).rglob("*") if p.is_file()}
        assert ours == theirs
    again = indexing.run(back)
    assert Index(back).dataset.match_tags("audit").values("content_id") == [sorted(Index(indexed).ids())[0]]
    assert Index(back).tally("round") == {"1": 1}
    assert (again.added, again.updated, again.app_edits) == (0, 0, 0)
    Index(back).dataset.delete()


def test_edits_in_the_app_are_in_the_backup(indexed: Project, saved: Path, tmp_path: Path) -> None:
    archive.restore(saved, tmp_path / "back", {}, force=False)
    back = load(tmp_path / "back")
    assert sum(item.label.present == {"hole"} and item.source == "production" for item in Index(back).items()) == 1
    Index(back).dataset.delete()


def test_images_may_lie_elsewhere(indexed: Project, saved: Path, library: Path, tmp_path: Path) -> None:
    moved = tmp_path / "new-disk" / "library"
    moved.parent.mkdir()
    shutil.move(library, moved)
    archive.restore(saved, tmp_path / "back", {"library": str(moved)}, force=False)
    back = load(tmp_path / "back")
    assert all(item.path.exists() for item in Index(back).items()), "also the source whose relative path broke"
    Index(back).dataset.delete()


def test_an_existing_project_is_only_set_aside_when_told(indexed: Project, saved: Path) -> None:
    with pytest.raises(CurateError, match="exists; give another folder with --to, or --force"):
        archive.restore(saved, indexed.folder, {}, force=False)
    before = dump(indexed)
    report = archive.restore(saved, indexed.folder, {}, force=True)
    assert [Path(kept).name.split(".before")[0] for kept in report["set_aside"]] == ["work", "project.toml"]
    assert dump(load(indexed.folder)) == before


def test_an_older_backup_is_never_overwritten(indexed: Project, saved: Path) -> None:
    content = saved.read_bytes()
    with pytest.raises(CurateError, match="exists already"):
        archive.backup(indexed, saved)
    assert saved.read_bytes() == content


def repacked(saved: Path, change: Any) -> Path:
    """The archive with its members changed by hand."""
    target = saved.with_name("changed.tar.gz")
    with tarfile.open(saved) as old, tarfile.open(target, "w:gz") as new:
        for member in old.getmembers():
            handle = old.extractfile(member)
            content = change(member, handle.read() if handle else b"")
            if content is not None:
                member.size = len(content)
                new.addfile(member, io.BytesIO(content))
    return target


def flipped(member: tarfile.TarInfo, content: bytes) -> bytes:
    return content.replace(b"crack", b"crank") if member.name.startswith("work/labels") else content


def dropped(member: tarfile.TarInfo, content: bytes) -> bytes | None:
    return None if member.name == "project.toml" else content


def escaping(member: tarfile.TarInfo, content: bytes) -> bytes:
    if member.name == "project.toml":
        member.name = "../../escaped.toml"
    return content


def newer(member: tarfile.TarInfo, content: bytes) -> bytes:
    return (
        json.dumps(json.loads(content) | {"schema_version": 99}).encode() if member.name == "manifest.json" else content
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (flipped, "is damaged: work/labels/000001.jsonl"),
        (dropped, "is damaged: project.toml"),
        (escaping, r"is damaged: .*outside"),
        (newer, "newer curate"),
    ],
)
def test_a_bad_archive_changes_nothing(indexed: Project, saved: Path, tmp_path: Path, change: Any, reason: str) -> None:
    before = dump(indexed)
    files = sorted(path for path in tmp_path.rglob("*") if "changed" not in path.name)
    with pytest.raises(CurateError, match=reason):
        archive.restore(repacked(saved, change), indexed.folder, {}, force=True)
    assert sorted(path for path in tmp_path.rglob("*") if "changed" not in path.name) == files
    assert dump(indexed) == before


def test_a_cut_off_archive_is_refused(saved: Path, tmp_path: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-200])
    with pytest.raises(CurateError, match=r"damaged|cannot be read"):
        archive.restore(saved, tmp_path / "back", {}, force=False)
    assert not (tmp_path / "back").exists()


def test_any_other_file_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_text("hello")
    with pytest.raises(CurateError, match="cannot be read as a backup"):
        archive.restore(tmp_path / "x.tar.gz", tmp_path / "back", {}, force=False)


def test_an_unknown_source_is_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CurateError, match=r"unknown source 'libary'.*did you mean 'library'"):
        archive.restore(saved, tmp_path / "back", {"libary": "/x"}, force=False)
    assert not (tmp_path / "back").exists()
