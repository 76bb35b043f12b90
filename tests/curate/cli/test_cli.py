"""The command line as scripts and people meet it: exit codes, one JSON object on stdout, errors with a remedy."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pymongo.errors
import pytest
import typer

from curate import __version__, cli, project
from curate.index import sync
from curate.project import Project, load
from tests import fakes, forked
from tests.conftest import LIBRARY, Make
from tests.curate.index.test_browser import free_port

Run = Callable[..., tuple[int, str, str]]
CURATE = [sys.executable, "-c", "from curate.cli import main; main()"]


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


def test_every_command_has_its_panel_and_the_first_day_comes_first(run: Run) -> None:
    group: Any = typer.main.get_command(cli.app)
    named = [command for commands in cli.PANELS.values() for command in commands]
    assert sorted(named) == sorted(group.commands)
    assert all(command.rich_help_panel in cli.PANELS for command in group.commands.values())
    out = run("--help")[1]
    places = [out.index(f"─ {panel} ─") for panel in cli.PANELS]
    assert places == sorted(places)
    assert "init" in out[places[0] : places[1]]
    assert f"─ {cli.OTHER} ─" not in out


def test_wrong_usage_exits_2(run: Run) -> None:
    assert run("index", "--no-such-flag")[0] == 2
    assert run("no-such-command")[0] == 2
    assert run("init", "x")[0] == 2


def test_init_index_status_export(run: Run, library: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    home = library.parent
    (home / "projects").mkdir()
    monkeypatch.chdir(home)
    opened = ok(run("init", "tile", "--format", "mask_folder", "--data", "library", "--fully-labelled", "--json"))
    assert opened["classes"] == ["crack", "hole"]
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
    sync.Index(make_owner).dataset.delete()


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


def test_init_of_production_images_shows_what_it_guessed(run: Run, line: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(line.parent)
    arguments = ("init", "shop", "-f", "images", "-d", line, "--group", r"(coil\d+)_")
    result = ok(run(*arguments, "--dry-run", "--json"))
    assert not (line.parent / "projects").exists()
    assert (result["template"], result["stratum"]) == ("{part1}/{camera}/{coil}_{name}", "{camera}")
    assert not result["written"]
    assert [example["stratum"] for example in result["examples"]] == ["cam0", "cam1"]
    code, out, _ = run(*arguments)
    assert code == 0
    for text in ("guessed", "as given", "A/cam1/coil0_1.png", "curate classes add NAME --project shop"):
        assert text in out
    assert load(line.parent / "projects" / "shop").config.sources[0].stratum == "{camera}"


def test_resolve_shows_how_versions_differ(run: Run, indexed: Project, library: Path) -> None:
    fakes.save_mask(library / "masks" / "crack" / "piece0_9.png", [(2, 2, 9, 9)], (32, 24))
    (library / "images" / "piece0_9.png").write_bytes((library / "images" / "piece0_0.png").read_bytes())
    run("index", "-p", indexed.folder)
    out = run("resolve", "-p", indexed.folder)[1]
    assert "area (pixels)" in out
    assert "1 / 1" in out
    assert "45 / 81" in out
    assert ".png" in out.splitlines()[-2]


def test_status_says_what_to_run_next(run: Run, indexed: Project, library: Path) -> None:
    assert "next: curate" in run("status", "-p", indexed.folder)[1]
    fakes.save_mask(library / "masks" / "hole" / "piece0_9.png", [(20, 10, 4, 4)], (32, 24))
    (library / "images" / "piece0_9.png").write_bytes((library / "images" / "piece0_0.png").read_bytes())
    run("index", "-p", indexed.folder)
    code, out, _ = run("status", "-p", indexed.folder)
    assert code == 0
    assert "next: curate resolve" in out


def test_formats_are_listed_with_their_options(run: Run) -> None:
    result = ok(run("formats", "--json"))["formats"]
    assert {"severstal", "neu_det", "gc10", "voc", "coco", "yolo", "mask_folder", "magnetic_tile"} <= result.keys()


def test_doctor_checks_every_part(run: Run, indexed: Project) -> None:
    result = ok(run("doctor", "-p", indexed.folder, "--json"))
    by_name = {check["what"]: check for check in result["checks"]}
    assert {"database", "disk", "GPU", "Label Studio", "Ray", "weights"} <= by_name.keys()
    assert by_name["database"]["state"] == "ok"
    assert all(check["remedy"] for check in result["checks"] if check["state"] != "ok")


def test_doctor_says_when_the_server_does_not_answer(run: Run, indexed: Project, monkeypatch: Any) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("FIFTYONE_DATABASE_URI", "mongodb://someone:topsecret@127.0.0.1:9/")
        code, out, err = run("doctor", "-p", indexed.folder)
    assert code == 1
    assert "127.0.0.1:9" in out
    assert "topsecret" not in out + err


def test_gc_lists_first_and_deletes_only_when_asked(run: Run, indexed: Project) -> None:
    part = indexed.work / "vectors" / ".x.lance.123.part"
    fakes.save_text(part / "data", "x" * 1000)
    labels = sorted((indexed.work / "labels").iterdir())
    assert ok(run("gc", "-p", indexed.folder, "--json"))["removed"] is False
    assert part.exists()
    report = ok(run("gc", "-p", indexed.folder, "--json", "--yes"))
    assert (report["removed"], report["bytes"]) == (True, 1000)
    assert not part.exists()
    assert sorted((indexed.work / "labels").iterdir()) == labels


# --- names that look like markup -----------------------------------------------------------------------------------

ODD = ["[/red]", "[x]y", ":smile:"]


@pytest.fixture
def odd(make: Make, library: Path) -> Project:
    (library.parent / "[").mkdir()
    source = library.rename(library.parent / "[" / "bold]")
    (source / "images" / "bad [dim].jpg").write_text("no image")
    opened = make([LIBRARY | {"data": source, "name": "[b]source"}], ["crack", "hole", *ODD])
    sync.run(opened)
    return opened


@pytest.mark.parametrize("command", [("status",), ("classes", "list")])
def test_names_in_brackets_are_shown_as_they_are(run: Run, odd: Project, command: tuple[str, ...]) -> None:
    code, out, err = run(*command, "-p", odd.folder)
    assert code == 0, err
    for name in ODD:
        assert any(line.startswith(f"■ {name} ") for line in out.splitlines()), out


def test_paths_in_brackets_are_shown_as_they_are(run: Run, odd: Project, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert "wrote [/i].tar.gz: 16 images" in run("backup", "[/i].tar.gz", "-p", odd.folder)[1]
    assert "to [/red]" in run("export", "[/red]", "-f", "coco", "-p", odd.folder)[1]
    copy = run("restore", "[/i].tar.gz", "--to", "projects/[i]copy", "--trust")
    assert copy[0] == 0, copy[2]
    assert "[i]copy" in copy[1]
    assert "projects/[i]copy" in run("doctor", "-p", "projects/[i]copy")[1]
    sync.Index(load(tmp_path / "projects" / "[i]copy")).dataset.delete()


def test_what_classes_and_index_did_is_shown_as_it_is(run: Run, odd: Project, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("index", "-p", odd.folder)
    assert code == 0, err
    assert "see projects/plant/work/quarantine.csv" in out
    assert run("classes", "add", "[/x]", "-p", odd.folder)[1].startswith("added [/x] (0 images")
    assert run("classes", "rename", "[/red]", "[/blue]", "-p", odd.folder)[1].startswith("renamed [/red] to [/blue] (")
    assert "unknown class '[/red]'" in failed(run("classes", "retire", "[/red]", "-p", odd.folder))
    assert run("classes", "no-such", "[/red]")[0] == 2


@pytest.mark.slow
def test_a_terminal_that_knows_few_letters_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "data" / "裂纹é").mkdir(parents=True)
    fakes.save_image(tmp_path / "data" / "裂纹é" / "a.png", 8, 8, seed=1)
    for number, more in enumerate(([], ["--json"])):
        arguments = ["init", tmp_path / f"p{number}", "-f", "class_folders", "-d", tmp_path / "data", *more]
        environment = os.environ | {"PYTHONIOENCODING": "ascii"}
        done = subprocess.run([*CURATE, *arguments], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["classes"] == ["裂纹é"]


# --- what a person can mend is one line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/d/labels"), "error: No space left on device: /d/labels"),
        (PermissionError(errno.EACCES, "Permission denied", "/d"), "error: /d: Permission denied"),
        (IsADirectoryError(errno.EISDIR, "Is a directory"), "error: Is a directory"),
        (
            pymongo.errors.AutoReconnect("connection closed"),
            "lost the database (connection closed). Run the command again",
        ),
        (pymongo.errors.ServerSelectionTimeoutError("x" * 500 + "\ny"), "curate doctor"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "curate doctor"),
    ],
)
def test_a_full_disk_or_a_lost_database_is_one_line(run: Run, monkeypatch: Any, error: Exception, text: str) -> None:
    monkeypatch.setattr(project, "find", raising(error))
    code, out, err = run("status")
    assert (code, out) == (1, "")
    assert text in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError("a library's own")])
def test_a_bug_shows_its_traceback(monkeypatch: Any, error: Exception) -> None:
    monkeypatch.setattr(project, "find", raising(error))
    monkeypatch.setattr(sys, "argv", ["curate", "status"])
    with pytest.raises(type(error)):
        cli.main()


def raising(error: Exception) -> Callable[..., Any]:
    def call(*_: object) -> Any:
        raise error

    return call


def test_a_name_too_long_is_one_line(run: Run) -> None:
    assert "File name too long: " in failed(run("status", "-p", "a" * 5000))


def test_an_argument_that_is_no_utf8_is_wrong_usage() -> None:
    done = subprocess.run([*CURATE, "init", b"caf\xe9"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: argument 'caf\\udce9' is not valid UTF-8" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", [("formats",), ("formats", "--json"), ("--help",)])
def test_a_reader_that_went_away_is_no_error(command: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*CURATE, *command], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.stderr == ""


# --- curate app ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_cannot_be_is_wrong_usage(run: Run, port: int) -> None:
    assert run("app", "--port", port)[0] == 2


@pytest.mark.exhaustive
def test_app_with_json_says_where_it_is_and_waits(indexed: Project) -> None:
    arguments = ["app", "-p", str(indexed.folder), "--port", str(free_port()), "--remote", "--json"]
    process = forked.start(forked.CURATE, *arguments)
    line = process.first_line()
    served = json.loads(line)
    with urllib.request.urlopen(served["url"]) as answer:
        assert answer.status == 200
    assert process.poll() is None
    process.terminate()
    assert process.communicate(timeout=60)[0] == f"{line}\n"
    assert (served["dataset"], served["view"]) == (indexed.dataset_name, None)


def test_the_help_shows_its_brackets(run: Run) -> None:
    assert "[splits]" in run("index", "--help")[1]
    assert "[default: CURATE_PROJECT," in " ".join(run("status", "--help")[1].replace("│", " ").split())
