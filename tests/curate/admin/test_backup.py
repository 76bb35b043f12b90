"""Backup and restore: the same project comes back, and a damaged or hostile archive changes nothing."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curate import files
from curate.admin import backup, setup
from curate.admin.status import summarise
from curate.data import Label
from curate.errors import CurateError
from curate.index import database, rounds, sync
from curate.index.dataset import Index
from curate.index.documents import NewSample
from curate.index.intake import ImageFacts
from curate.labels.log import LabelState
from curate.project import Project, load
from tests import fakes
from tests.conftest import Make, dump
from tests.curate.index.test_dataset import draw_in_app


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory, server: str) -> bytes:
    """The archive of a project of six images, of which nothing else is left."""
    folder = tmp_path_factory.mktemp("archived")
    for number in range(6):
        fakes.save_image(folder / "line" / f"coil{number}.png", 32, 24, seed=number)
    project = setup.write(folder / "plant", [{"name": "line", "format": "images", "data": folder / "line"}], ["crack"])
    sync.run(project)
    backup.backup(project, folder / "plant.tar.gz")
    Index(project).dataset.delete()
    return (folder / "plant.tar.gz").read_bytes()


@pytest.fixture
def foreign(archived: bytes, tmp_path: Path) -> Path:
    """An untrusted archive, which tests change."""
    (tmp_path / "foreign.tar.gz").write_bytes(archived)
    return tmp_path / "foreign.tar.gz"


@pytest.fixture
def saved(indexed: Project, tmp_path: Path) -> Path:
    draw_in_app(indexed, "coil0_0.png")
    file = tmp_path / "plant.tar.gz"
    id = sorted(Index(indexed).ids())[0]
    pick = {"rank": 1, "id": id, "path": "x.png", "slot": "audit", "score": 1.0, "reason": "drawn"}
    rounds.write(indexed.work, {"round": 1, "pushed": "2026-11-21T00:00:00Z"}, [pick])
    rounds.show(Index(indexed))
    backup.backup(indexed, file)
    return file


def test_round_trip(indexed: Project, saved: Path, tmp_path: Path) -> None:
    report = backup.restore(saved, tmp_path / "elsewhere" / "plant", {}, force=False, trust=True)
    back = load(tmp_path / "elsewhere" / "plant")
    assert report["samples"] == 26
    assert dump(back) == dump(indexed)
    assert summarise(back) == summarise(indexed)
    for part in ("labels", "splits", "rounds"):
        ours = {p.relative_to(indexed.work): p.read_bytes() for p in (indexed.work / part).rglob("*") if p.is_file()}
        theirs = {p.relative_to(back.work): p.read_bytes() for p in (back.work / part).rglob("*") if p.is_file()}
        assert ours == theirs
    again = sync.run(back)
    assert Index(back).dataset.match_tags("audit").values("content_id") == [sorted(Index(indexed).ids())[0]]
    assert Index(back).tally("round") == {"1": 1}
    assert (again.added, again.updated, again.app_edits) == (0, 0, 0)
    Index(back).dataset.delete()


def test_edits_in_the_app_are_in_the_backup(indexed: Project, saved: Path, tmp_path: Path) -> None:
    backup.restore(saved, tmp_path / "back", {}, force=False, trust=True)
    back = load(tmp_path / "back")
    assert sum(item.label.present == {"hole"} and item.source == "production" for item in Index(back).items()) == 1
    Index(back).dataset.delete()


def test_images_may_lie_elsewhere(indexed: Project, saved: Path, library: Path, tmp_path: Path) -> None:
    moved = tmp_path / "new-disk" / "library"
    moved.parent.mkdir()
    shutil.move(library, moved)
    backup.restore(saved, tmp_path / "back", {"library": str(moved)}, force=False, trust=True)
    back = load(tmp_path / "back")
    assert all(item.path.exists() for item in Index(back).items()), "also the source whose relative path broke"
    Index(back).dataset.delete()


def test_an_existing_project_is_only_set_aside_when_told(indexed: Project, saved: Path) -> None:
    with pytest.raises(CurateError, match="exists; give another folder with --to, or --force"):
        backup.restore(saved, indexed.folder, {}, force=False, trust=True)
    before = dump(indexed)
    report = backup.restore(saved, indexed.folder, {}, force=True, trust=True)
    assert [Path(kept).name.split(".before")[0] for kept in report["set_aside"]] == ["project.toml", "work"]
    assert dump(load(indexed.folder)) == before


def test_an_older_backup_is_never_overwritten(indexed: Project, saved: Path) -> None:
    content = saved.read_bytes()
    with pytest.raises(CurateError, match="exists already"):
        backup.backup(indexed, saved)
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
        (escaping, r"is damaged: its member \.\./\.\./escaped.toml is no file that its manifest names"),
        (newer, "newer curate"),
    ],
)
def test_a_bad_archive_changes_nothing(indexed: Project, saved: Path, tmp_path: Path, change: Any, reason: str) -> None:
    before = dump(indexed)
    files = sorted(path for path in tmp_path.rglob("*") if "changed" not in path.name)
    with pytest.raises(CurateError, match=reason):
        backup.restore(repacked(saved, change), indexed.folder, {}, force=True, trust=True)
    assert sorted(path for path in tmp_path.rglob("*") if "changed" not in path.name) == files
    assert dump(indexed) == before


def test_a_cut_off_archive_is_refused(saved: Path, tmp_path: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-200])
    with pytest.raises(CurateError, match=r"damaged|cannot be read"):
        backup.restore(saved, tmp_path / "back", {}, force=False, trust=True)
    assert not (tmp_path / "back").exists()


def test_any_other_file_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_text("hello")
    with pytest.raises(CurateError, match="cannot be read as a backup"):
        backup.restore(tmp_path / "x.tar.gz", tmp_path / "back", {}, force=False, trust=True)


def test_an_unknown_source_is_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CurateError, match=r"unknown source 'libary'.*did you mean 'library'"):
        backup.restore(saved, tmp_path / "back", {"libary": "/x"}, force=False, trust=True)
    assert not (tmp_path / "back").exists()


# --- archives of somebody else's ------------------------------------------------------------------------------------

Members = dict[str, bytes]


def forged(saved: Path, change: Callable[[Members], object], **claims: Any) -> Path:
    """The archive with other members, and a manifest that fits them."""
    with tarfile.open(saved) as tar:
        members: Members = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]
    manifest = json.loads(members.pop("manifest.json"))
    change(members)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    members = {"manifest.json": json.dumps(manifest | {"files": sums} | claims).encode()} | members
    target = saved.with_name("forged.tar.gz")
    with tarfile.open(target, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return target


def written(name: str, content: str | bytes) -> Callable[[Members], object]:
    return lambda members: members.update({name: content.encode() if isinstance(content, str) else content})


def replaced(name: str, old: str, new: str) -> Callable[[Members], object]:
    def change(members: Members) -> None:
        assert old.encode() in members[name], (old, members[name][:2000])
        members[name] = members[name].replace(old.encode(), new.encode())

    return change


def sample(**values: Any) -> Callable[[Members], object]:
    """The index with other values in its first image."""

    def change(members: Members) -> None:
        index = json.loads(members["index/samples.json"])
        index["samples"][0].update(values)
        members["index/samples.json"] = json.dumps(index).encode()

    return change


def with_row(members: Members) -> None:
    """The table of files names one outside its data root."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.deserialize(members["work/files.sqlite"])
        query = (
            "update files set reference = 'line:../../etc/x.png' where reference = (select min(reference) from files)"
        )
        db.execute(query)
        db.commit()
        members["work/files.sqlite"] = db.serialize()


METADATA, TOML, SAMPLES = "index/metadata.json", "project.toml", "index/samples.json"
SOURCE = '[[sources]]\nformat = "images"\ndata = "."\n'
HOSTILE: dict[str, tuple[Callable[[Members], object], str]] = {
    "toml-broken": (written(TOML, "[[sources]\n"), "project.toml: not valid TOML"),
    "toml-binary": (written(TOML, b"\xff\xfe"), "project.toml: not valid TOML"),
    "toml-deep": (written(TOML, "x = " + "[" * 50_000), "project.toml: not valid TOML"),
    "toml-no-sources": (written(TOML, 'dataset = "x"\n'), "sources"),
    "toml-long": (written(TOML, "#" * 2_000_000), "larger than 1 MB"),
    "toml-zero-byte": (written(TOML, SOURCE + 'labels = "a\\u0000b"'), "zero byte"),
    "toml-no-home": (written(TOML, SOURCE + 'labels = "~nobody-at-all/x"'), "no user of this name"),
    "samples-junk": (written(SAMPLES, "junk"), "its index cannot be read"),
    "samples-other": (written(SAMPLES, '{"samples": [5]}'), "its index cannot be read"),
    "samples-list": (written(SAMPLES, "[]"), "its index cannot be read|should hold 6 images, 0"),
    "samples-deep": (written(SAMPLES, '{"samples": [' + "[" * 50_000), "its index cannot be read"),
    "samples-gone": (lambda members: members.pop(SAMPLES), "its index cannot be read"),
    "metadata-junk": (written(METADATA, "{"), "index/metadata.json is no JSON"),
    "metadata-list": (written(METADATA, "[]"), "its index cannot be read"),
    "metadata-class": (replaced(METADATA, "fiftyone.core.fields.StringField", "subprocess.Popen"), "subprocess.Popen"),
    "climbs": (sample(paths=["line:../../../etc/passwd"]), "etc/passwd.*leaves the data root"),
    "second-climbs": (sample(paths=["line:a.png", "line:../x"]), "leaves the data root"),
    "gone-source-climbs": (sample(paths=["..:x/../../../y"]), "holds an image at"),
    "absolute": (sample(paths=["line:/etc/passwd"]), "leaves the data root"),
    "no-paths": (sample(paths=None), "without a content id and paths"),
    "paths-number": (sample(paths=[5]), "holds an image at '5'"),
    "strange-id": (sample(content_id="../../x"), "without a content id and paths"),
    "state-newer": (written("work/state.json", '{"schema": 99}'), "newer curate"),
    "state-junk": (written("work/state.json", "[]"), "work/state.json is damaged"),
    "log-junk": (written("work/labels/000001.jsonl", "junk\n"), "work/labels/000001.jsonl:1: damaged line"),
    "log-synthetic": (
        written("work/labels/000001.jsonl", '{"event": "x", "extra": {"synthetic": {"in": 1}}}\n'),
        "synthetic image is damaged",
    ),
    "files-junk": (written("work/files.sqlite", "junk"), "work/files.sqlite"),
    "files-climb": (with_row, "files.sqlite holds 'line:../../etc/x.png'"),
    "stranger": (written("work/models/x/weights.pt", b"x"), "work/models/x/weights.pt, which no backup holds"),
    "database": (written("work/db/WiredTiger", b"x"), "which no backup holds"),
    "data": (written("data/x.png", b"x"), "which no backup holds"),
    "up": (written("work/../../x", b"x"), "which is no file of a backup"),
    "root": (written("/etc/x", b"x"), "which is no file of a backup"),
    "twice-written": (written("work//labels/x.jsonl", b"x"), "which is no file of a backup"),
    "file-as-folder": (written("project.toml/x", b""), "is a file as well"),
}


def test_a_hostile_archive_is_one_line_and_changes_nothing(foreign: Path, tmp_path: Path, server: str) -> None:
    datasets = database.connect(tmp_path).list_datasets()
    wrong = []
    for name, (change, reason) in HOSTILE.items():
        with pytest.raises(CurateError) as refused:
            backup.restore(forged(foreign, change), tmp_path / "back", {}, force=False, trust=True)
        message = str(refused.value)
        inside = "restoring.part" in message
        left = sorted(path.name for path in tmp_path.iterdir()) != ["foreign.tar.gz", "forged.tar.gz"]
        if not re.search(reason, message) or "\n" in message or inside or left:
            wrong.append((name, message, inside, left))
    assert not wrong
    assert database.connect(tmp_path).list_datasets() == datasets


def test_folders_outside_the_project_are_shown_and_agreed_to(
    indexed: Project, saved: Path, library: Path, line: Path, tmp_path: Path
) -> None:
    foreign = forged(saved, replaced("project.toml", "../../line", "/root"))
    asked: list[list[str]] = []
    for ask in (None, lambda named: bool(asked.append(list(named)))):  # type: ignore[func-returns-value]
        with pytest.raises(CurateError, match=r"outside the project .*line: images in /root.*--trust"):
            backup.restore(foreign, tmp_path / "back", {}, force=False, ask=ask)
    assert asked == [[f"library: images in {library}", "line: images in /root"]]
    assert not (tmp_path / "back").exists()
    given = {"library": str(library), "line": str(line)}
    backup.restore(foreign, tmp_path / "back", given, force=False)
    Index(load(tmp_path / "back")).dataset.delete()
    backup.restore(foreign, tmp_path / "again", {}, force=False, ask=lambda named: True)
    assert load(tmp_path / "again").config.sources[1].data == Path("/root")
    Index(load(tmp_path / "again")).dataset.delete()


def test_files_that_samples_name_outside_the_project_are_shown(foreign: Path, tmp_path: Path) -> None:
    mask = {"_cls": "Segmentation", "mask_path": "/etc/shadow"}
    for change, shown in (
        (sample(ground={**mask}), "a mask at /etc/shadow"),
        (sample(content_id=None, filepath="/etc/passwd"), "an image at /etc/passwd"),
    ):
        asked: list[str] = []
        with pytest.raises(CurateError, match="outside the project"):
            backup.restore(forged(foreign, change), tmp_path / "back", {}, force=False, ask=asked.extend)  # type: ignore[arg-type]
        assert shown in asked


def test_an_image_that_somebody_added_by_hand_comes_back(indexed: Project, saved: Path, tmp_path: Path) -> None:
    index = Index(indexed)
    index.dataset.add_sample(index.fo.Sample(filepath=str(tmp_path / "by-hand.png")))
    backup.backup(indexed, tmp_path / "more.tar.gz")
    assert backup.restore(tmp_path / "more.tar.gz", tmp_path / "back", {}, force=False, trust=True)["samples"] == 27
    Index(load(tmp_path / "back")).dataset.delete()


def test_bombs_are_bounded(foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "ALWAYS", 1 << 20)
    bomb = forged(foreign, written("work/rounds/001/zeros", bytes(1 << 24)))
    with pytest.raises(CurateError, match="unpacks to more than 100 times its size"):
        backup.restore(bomb, tmp_path / "back", {}, force=False)
    monkeypatch.setattr(backup, "MEMBERS", 3)
    with pytest.raises(CurateError, match=r"its manifest names \d+ files; allowed: 3"):
        backup.restore(foreign, tmp_path / "back", {}, force=False)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("where", ["manifest.json", "project.toml"])
def test_a_header_without_end_is_not_read(foreign: Path, tmp_path: Path, where: str) -> None:
    def long(member: tarfile.TarInfo, content: bytes) -> bytes:
        if member.name == where:
            member.pax_headers = {"comment": "x" * (1 << 22)}
        return content

    with pytest.raises(CurateError, match="header is longer"):
        backup.restore(repacked(foreign, long), tmp_path / "back", {}, force=False)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_only_plain_files_are_unpacked(foreign: Path, tmp_path: Path, kind: bytes) -> None:
    def changed(member: tarfile.TarInfo, content: bytes) -> bytes:
        if member.name == "project.toml":
            member.type, member.linkname = kind, "/etc/passwd"
            return b""
        return content

    with pytest.raises(CurateError, match=r"its member project\.toml is no file that its manifest names"):
        backup.restore(repacked(foreign, changed), tmp_path / "back", {}, force=False)


def test_a_member_that_comes_twice_is_refused(foreign: Path, tmp_path: Path) -> None:
    with tarfile.open(foreign) as old, tarfile.open(tmp_path / "twice.tar.gz", "w:gz") as new:
        for member in [*old.getmembers(), old.getmember("project.toml")]:
            new.addfile(member, old.extractfile(member))
    with pytest.raises(CurateError, match=r"its member project\.toml is no file"):
        backup.restore(tmp_path / "twice.tar.gz", tmp_path / "back", {}, force=False)


def test_the_second_of_two_restores_into_one_folder_says_so(foreign: Path, tmp_path: Path) -> None:
    """The first is held up where it asks."""

    def meanwhile(named: object) -> bool:
        with pytest.raises(files.ProjectBusy, match=r"another restore to .*back is under way"):
            backup.restore(foreign, tmp_path / "back", {}, force=False, trust=True)
        return True

    backup.restore(foreign, tmp_path / "back", {}, force=False, ask=meanwhile)
    with pytest.raises(CurateError, match="back exists; give another folder"):
        backup.restore(foreign, tmp_path / "back", {}, force=False, trust=True)
    Index(load(tmp_path / "back")).dataset.delete()


def test_a_killed_restore_and_a_killed_backup_leave_nothing_behind(
    indexed: Project, saved: Path, tmp_path: Path
) -> None:
    files.write_text(tmp_path / ".back.restoring.part" / "work" / "labels" / "000009.jsonl", "x")
    backup.restore(saved, tmp_path / "back", {}, force=False, trust=True)
    assert not (tmp_path / "back" / "work" / "labels" / "000009.jsonl").exists()
    Index(load(tmp_path / "back")).dataset.delete()
    files.write_text(indexed.work / ".backup.999999.part" / "index" / "samples.json", "x")
    (tmp_path / ".new.tar.gz.999999.part").write_text("x")
    (tmp_path / ".other.tar.gz.999999.part").write_text("x")
    backup.backup(indexed, tmp_path / "new.tar.gz")
    assert [path.name for path in (*tmp_path.glob(".*.part"), *indexed.work.glob(".*.part"))] == [
        ".other.tar.gz.999999.part"
    ]


@pytest.mark.exhaustive
def test_saved_views_of_a_killed_import_go_and_those_without_an_owner_stay(foreign: Path, tmp_path: Path) -> None:
    import fiftyone as fo
    from bson import ObjectId

    views = fo.core.odm.get_db_conn().views
    killed = views.insert_one({"name": "clean", "_dataset_id": ObjectId()}).inserted_id
    older = views.insert_one({"name": "of an earlier FiftyOne"}).inserted_id
    backup.restore(foreign, tmp_path / "back", {}, force=False, trust=True)
    assert {view["_id"] for view in views.find({"_id": {"$in": [killed, older]}})} == {older}
    views.delete_one({"_id": older})


def test_ten_thousand_images_are_within_the_bounds(make: Make, tmp_path: Path) -> None:
    """Entries without files: an archive holds no image."""
    (tmp_path / "line").mkdir()
    project = make([{"name": "line", "format": "images", "data": tmp_path / "line"}], ["crack"])
    state = LabelState(Label("labelled"))
    index = Index(project, create=True)
    for start in range(0, 10_000, 1000):
        numbers = range(start, start + 1000)
        pictures = [ImageFacts(f"{number:064x}", 32, 24, 1, 900, "image/png", None) for number in numbers]
        place = {"source": "public", "format": "images", "stratum": None, "state": state}
        index.add(
            [
                NewSample(image, tmp_path / image.id, f"line:{image.id}.png", group=image.id, **place)
                for image in pictures
            ]
        )
    backup.backup(project, tmp_path / "big.tar.gz")
    report = backup.restore(tmp_path / "big.tar.gz", tmp_path / "back", {}, force=False, ask=lambda named: True)
    assert report["samples"] == 10_000
    Index(load(tmp_path / "back")).dataset.delete()
