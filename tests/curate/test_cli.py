"""The command line as scripts and people meet it: exit codes, one JSON object on stdout, errors with a remedy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curate import __version__, cli, indexing
from curate.project import Project, load
from tests import fakes
from tests.conftest import LIBRARY, Make

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `curate ...` here; (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["curate", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def ok(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert code == 0, err
    value: dict[str, Any] = json.loads(out)  # fails unless stdout is exactly one object
    assert isinstance(value, dict)
    return value


def failed(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert (code, out) == (1, "")
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: "), err
    assert "Traceback" not in err
    return line


def test_help_and_version(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in ("init", "index", "status", "app", "doctor", "export", "backup", "restore", "classes", "gc"):
        assert command in out
    assert run("--version")[1].strip() == f"curate {__version__}"


def test_wrong_usage_exits_2(run: Run) -> None:
    assert run("index", "--no-such-flag")[0] == 2
    assert run("no-such-command")[0] == 2
    assert run("init", "x")[0] == 2


def test_init_index_status_export(run: Run, library: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    home = library.parent
    (home / "projects").mkdir()
    monkeypatch.chdir(home)
    made = ok(run("init", "tile", "--format", "mask_folder", "--data", "library", "--fully-labelled", "--json"))
    assert made["classes"] == ["crack", "hole"]
    report = ok(run("index", "--json"))
    assert (report["added"], report["quarantined"]) == (16, 0)
    summary = ok(run("status", "--json"))
    wanted = {"samples", "by_source", "by_split", "by_status", "by_class", "quarantined", "missing", "duplicates"}
    assert wanted | {"conflicts"} <= summary.keys()
    assert summary["samples"] == 16
    exported = ok(run("export", home / "out", "--format", "coco", "--json"))
    assert exported["images"] == 16
    assert (home / "out" / "annotations.json").exists()
    assert "exists" in failed(run("export", home / "out", "--format", "coco", "--json"))
    make_owner = load(home / "projects" / "tile")
    indexing.Index(make_owner).dataset.delete()


def test_folds_and_split_flags_reach_the_index(run: Run, plant: Project) -> None:
    report = ok(run("index", "-p", plant.folder, "--split", "100/0/0", "--folds", "2", "--repeats", "2", "--json"))
    assert (report["folds"], report["groups_in_folds"]) == (2, 8)
    assert ok(run("status", "-p", plant.folder, "--json"))["by_split"] == {"train": 16, "none": 10}


def test_a_bad_split_names_value_and_remedy(run: Run, plant: Project) -> None:
    line = failed(run("index", "-p", plant.folder, "--split", "70/30"))
    assert "'70/30'" in line
    assert "70/15/15" in line


def test_strict_exits_1_when_anything_was_quarantined(run: Run, plant: Project, library: Path) -> None:
    assert run("index", "-p", plant.folder, "--strict")[0] == 0
    (library / "images" / "bad.jpg").write_text("no image")
    code, out, err = run("index", "-p", plant.folder, "--strict", "--json")
    assert code == 1
    assert json.loads(out)["quarantined"] == 1
    assert "1 files are quarantined" in err


def test_an_unknown_project_names_the_nearest_and_all(run: Run, plant: Project, monkeypatch: Any) -> None:
    monkeypatch.chdir(plant.folder.parent.parent)
    assert "unknown project 'plnat' (did you mean 'plant'?); allowed: plant" in failed(run("status", "-p", "plnat"))


def test_several_projects_must_be_told_apart(run: Run, make: Make, library: Path, monkeypatch: Any) -> None:
    for name in ("one", "two"):
        make([LIBRARY | {"data": library}], name=name)
    monkeypatch.chdir(library.parent)
    assert "several projects: one, two. Say which: --project NAME" in failed(run("status"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("init", "new", "-f", "severstall", "-d", "."), "did you mean 'severstal'"),
        (("init", "new", "-f", "images", "-d", "no-such-folder"), "no-such-folder"),
        (("init", "new", "-f", "images", "-d", ".", "--kind", "synthetic"), "allowed: production, public"),
        (("init", "a b", "-f", "images", "-d", "."), "project name"),
        (("init", "new", "-f", "yolo", "-d", ".", "--set", "names"), "key=value"),
        (("restore", "no-such-file.tar.gz"), "no archive at no-such-file.tar.gz"),
    ],
)
def test_bad_input_is_one_clear_line(run: Run, tmp_path: Path, monkeypatch: Any, arguments: Any, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert text in failed(run(*arguments))
    assert list(tmp_path.rglob("project.toml")) == []


def test_status_says_what_to_run_next(run: Run, indexed: Project, library: Path) -> None:
    assert "next: curate" in run("status", "-p", indexed.folder)[1]
    fakes.save_mask(library / "masks" / "hole" / "piece0_9.png", [(20, 10, 4, 4)], (32, 24))
    (library / "images" / "piece0_9.png").write_bytes((library / "images" / "piece0_0.png").read_bytes())
    run("index", "-p", indexed.folder)
    code, out, _ = run("status", "-p", indexed.folder)
    assert code == 0
    assert "next: curate resolve" in out


def test_formats_are_listed_with_their_options(run: Run) -> None:
    found = ok(run("formats", "--json"))["formats"]
    assert {"severstal", "neu_det", "gc10", "voc", "coco", "yolo", "mask_folder", "magnetic_tile"} <= found.keys()


def test_doctor_checks_every_part(run: Run, indexed: Project) -> None:
    found = ok(run("doctor", "-p", indexed.folder, "--json"))
    by_name = {check["what"]: check for check in found["checks"]}
    assert {"database", "disk", "GPU", "Label Studio", "Ray", "weights"} <= by_name.keys()
    assert by_name["database"]["state"] == "ok"
    assert all(check["remedy"] for check in found["checks"] if check["state"] != "ok")


def test_doctor_says_when_the_server_does_not_answer(run: Run, indexed: Project, monkeypatch: Any) -> None:
    monkeypatch.setenv("FIFTYONE_DATABASE_URI", "mongodb://someone:topsecret@127.0.0.1:9/")
    code, out, err = run("doctor", "-p", indexed.folder)
    assert code == 1
    assert "127.0.0.1:9" in out
    assert "topsecret" not in out + err


def test_gc_lists_first_and_deletes_only_when_told(run: Run, indexed: Project) -> None:
    part = indexed.work / "vectors" / ".x.lance.123.part"
    fakes.save_text(part / "data", "x" * 1000)
    labels = sorted((indexed.work / "labels").iterdir())
    assert ok(run("gc", "-p", indexed.folder, "--json"))["removed"] is False
    assert part.exists()
    report = ok(run("gc", "-p", indexed.folder, "--json", "--yes"))
    assert (report["removed"], report["bytes"]) == (True, 1000)
    assert not part.exists()
    assert sorted((indexed.work / "labels").iterdir()) == labels
