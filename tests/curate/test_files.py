"""Whole-or-nothing writes, and the one-writer lock between real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from curate.errors import CurateError
from curate.files import read_json, remove, write_json, write_text, writer_lock, written_aside

HOLDER = """
import sys, time
from pathlib import Path
from curate.files import writer_lock
with writer_lock(Path(sys.argv[1]), "curate train"):
    print("held", flush=True)
    sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- whole or nothing -------------------------------------------------------------------------------------------------


def test_a_file_is_there_whole_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with written_aside(target) as aside:
        aside.write_text("one")
        assert not target.exists()
        assert aside.parent == target.parent
    assert target.read_text() == "one"
    write_text(target, "zwei ö")
    assert target.read_text(encoding="utf-8") == "zwei ö"
    assert names(target.parent) == ["a.txt"]


def test_a_folder_is_there_whole(tmp_path: Path) -> None:
    with written_aside(tmp_path / "model") as aside:
        (aside / "deep").mkdir(parents=True)
        (aside / "deep" / "w.bin").write_bytes(b"1")
        assert names(tmp_path) == [aside.name]
    assert (tmp_path / "model" / "deep" / "w.bin").read_bytes() == b"1"
    assert names(tmp_path) == ["model"]


def _fail_half_way(target: Path, folder: bool, error: type[BaseException]) -> None:
    with written_aside(target) as aside:
        if folder:
            aside.mkdir()
            (aside / "half").write_text("new")
        else:
            aside.write_text("new")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("existed", [True, False])
def test_a_failure_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, error: type[BaseException], folder: bool, existed: bool
) -> None:
    target = tmp_path / "a"
    if existed:
        target.write_text("old")
    with pytest.raises(error):
        _fail_half_way(target, folder, error)
    assert names(tmp_path) == (["a"] if existed else [])
    assert not existed or target.read_text() == "old"


def test_a_block_that_writes_nothing_fails_clean(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), written_aside(tmp_path / "a"):
        pass
    assert names(tmp_path) == []


def test_a_full_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    with pytest.raises(OSError, match="not empty"), written_aside(tmp_path / "model") as aside:
        aside.mkdir()
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["old"]


def test_what_a_killed_run_of_the_same_pid_left_is_no_hindrance(tmp_path: Path) -> None:
    left = tmp_path / f".a.{os.getpid()}.part"
    left.mkdir()
    (left / "x").touch()
    write_text(tmp_path / "a", "new")
    assert names(tmp_path) == ["a"]


def test_json_is_sorted_and_ends_with_a_line(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [2]})
    text = (tmp_path / "a.json").read_text()
    assert text.endswith("}\n")
    assert list(json.loads(text)) == ["a", "b"]


def test_what_killed_processes_left_of_a_file_goes_when_it_is_written(tmp_path: Path) -> None:
    dead, target = 2**22 + 1, tmp_path / "project.toml"  # no process has this number
    for name in (f".project.toml.{dead}.part", f".project.toml.{os.getppid()}.part", f".other.toml.{dead}.part"):
        (tmp_path / name).write_text("half")
    (tmp_path / f".project.toml.{dead}.gone.part").mkdir()
    write_text(target, "whole")
    kept = [f".other.toml.{dead}.part", f".project.toml.{os.getppid()}.part", "project.toml"]
    assert names(tmp_path) == sorted(kept)


def test_a_folder_vanishes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in the middle must not leave half a round or half a model under its name."""
    (tmp_path / "003").mkdir()
    (tmp_path / "003" / "round.json").write_text("{}")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove(tmp_path / "003")
    (left,) = names(tmp_path)
    assert left.startswith(".003.")
    assert left.endswith(".part")
    remove(tmp_path / left)
    assert not names(tmp_path)


def test_remove_takes_the_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    remove(tmp_path / "link")
    remove(tmp_path / "none")
    assert names(tmp_path) == ["real"]
    remove(tmp_path / "real")
    assert names(tmp_path) == []


# --- one writer -------------------------------------------------------------------------------------------------------


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_writer_is_reported_who_writes(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(CurateError) as problem, writer_lock(tmp_path, "curate index"):
        pytest.fail("two writers")
    message = str(problem.value)
    assert message.startswith(f"'curate train' (pid {holder.pid} on ")
    assert str(tmp_path / ".lock") in message
    assert "Wait for it to end" in message
    assert "\n" not in message


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_when_the_holder_is_gone_however_the_lock_is_free(
    tmp_path: Path, holder: subprocess.Popen[str], end: signal.Signals | None
) -> None:
    if end is None:
        holder.communicate("")
    else:
        holder.send_signal(end)
        holder.wait()
    with writer_lock(tmp_path, "curate index"):
        assert json.loads((tmp_path / ".lock").read_text())["purpose"] == "curate index"
    assert (tmp_path / ".lock").read_text() == ""


def test_a_failure_frees_the_lock_and_forgets_its_holder(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="oops"), writer_lock(tmp_path / "work", "curate index"):
            raise ValueError("oops")
        assert (tmp_path / "work" / ".lock").read_text() == ""


@pytest.mark.parametrize("text", ["", "{", "5", "{}", "null", '{"pid": 3}'])
def test_a_lock_that_does_not_say_who_is_still_a_lock(tmp_path: Path, holder: subprocess.Popen[str], text: str) -> None:
    (tmp_path / ".lock").write_text(text)
    with pytest.raises(CurateError, match=r"^another command is writing"), writer_lock(tmp_path, "curate index"):
        pytest.fail("two writers")
    assert (tmp_path / ".lock").read_text() == text


def test_projects_do_not_wait_for_each_other(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with writer_lock(tmp_path / "other", "curate index"):
        assert holder.poll() is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError("11222 requested and 3040 written"),
        RuntimeError("disk I/O error"),
    ],
)
def test_a_full_disk_in_any_library_s_words_names_the_file(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(CurateError, match=r"vectors\.npy cannot be written: .*Make room"),
        written_aside(tmp_path / "vectors.npy"),
    ):
        raise error
    with pytest.raises(ValueError, match="other"), written_aside(tmp_path / "vectors.npy"):
        raise ValueError("other")


@pytest.mark.parametrize("text", [None, "", "{", 20_000 * "[", "\0", '{"a": NaN'])
def test_a_damaged_result_names_its_file_and_the_remedy(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "result.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(CurateError, match=r"result\.json is damaged or missing .*Remove .*, then run"):
        read_json(file)
    write_json(file, {"a": [1]})
    assert read_json(file) == {"a": [1]}
