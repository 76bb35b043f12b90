"""README against the code: its listings are complete, and its tested block runs as it stands."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from curate import cli, formats
from curate.index import database
from tests.fakes import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def listed(marker: str) -> list[str]:
    table = README.split(f"<!-- {marker} -->")[1].split("\n\n")[0]
    return re.findall(r"^\| `(?:curate )?([\w-]+)`", table, flags=re.MULTILINE)


def test_every_command_is_listed() -> None:
    group: Any = typer.main.get_command(cli.app)
    assert listed("commands") == list(group.commands)


def test_every_format_is_listed() -> None:
    assert sorted(listed("formats")) == formats.names()


def test_readme_opens_with_the_two_commands() -> None:
    first = README.split("```sh")[1].split("```")[0]
    assert re.findall(r"^make \w+", first, flags=re.MULTILINE) == ["make demo", "make test"]


def test_every_shown_option_exists() -> None:
    group: Any = typer.main.get_command(cli.app)
    for line in re.findall(r"^curate .*$", README, flags=re.MULTILINE):
        words = shlex.split(line, comments=True)[1:]
        command = group.commands[words[0]]
        command = command.commands[words[1]] if hasattr(command, "commands") else command
        known = {flag for parameter in command.params for flag in parameter.opts}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= known, line


def test_the_tested_block_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    block = README.split("<!-- tested -->\n```sh")[1].split("```")[0]
    (tmp_path / "projects").mkdir()
    monkeypatch.chdir(tmp_path)
    for line in block.strip().splitlines():
        if "copy" in line or "--project" in line:
            monkeypatch.delenv("CURATE_PROJECT", raising=False)
        monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code, f"{line}: {capsys.readouterr().err}"
    assert (tmp_path / "out" / "coco" / "annotations.json").exists()
    fo = database.connect(tmp_path)
    for name in fo.list_datasets():
        if name.startswith(("demo-", "copy-")):
            fo.delete_dataset(name)
