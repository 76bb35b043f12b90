"""A user's `train.py`, or another distribution's package of that name, is told at the start, in one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from curate import packages
from curate.errors import CurateError
from tests.fakes import REPOSITORY


def started(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=os.environ | path, capture_output=True, text=True, check=False)


def test_all_is_well_here() -> None:
    packages.check()


def test_the_user_s_own_train_py(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit('this must not run')\n")
    done = started(tmp_path, "-m", "curate", "status")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: `import train` finds {tmp_path / 'train.py'}, but curate needs its own at")
    assert "Rename it" in line
    assert started(tmp_path / "..", "-m", "curate", "--version").returncode == 0


def test_a_folder_of_images_named_labeling_stands_in_nobody_s_way(tmp_path: Path) -> None:
    """A folder without __init__.py gives way to a package further down Python's path."""
    (tmp_path / "labeling").mkdir()
    assert started(tmp_path, "-m", "curate", "--version").returncode == 0


def test_from_python(tmp_path: Path) -> None:
    (tmp_path / "labeling").mkdir()
    (tmp_path / "labeling" / "__init__.py").touch()
    code = "import curate\ntry: curate.open('x')\nexcept curate.CurateError as error: print(error)\n"
    done = started(tmp_path, "-c", code)
    assert done.stdout.startswith(f"`import labeling` finds {tmp_path / 'labeling' / '__init__.py'}, but"), done.stderr


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the packages' first files, as `pip install` puts them beside each other."""
    for name in packages.OURS:
        (tmp_path / name).mkdir()
        shutil.copy(REPOSITORY / name / "__init__.py", tmp_path / name)
    monkeypatch.setattr(packages, "_origin", lambda name: tmp_path / name / "__init__.py")
    packages.check(tmp_path)
    return tmp_path


def test_a_distribution_that_replaced_a_package_is_named(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (installed / "train" / "__init__.py").write_text("'''Trains of the railway.'''\n")
    about = installed / "railway-3.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: railway\nVersion: 3.0\n")
    (about / "RECORD").write_text("train/__init__.py,,\n")
    monkeypatch.syspath_prepend(installed)
    with pytest.raises(CurateError, match=r"train/__init__.py is not curate's: the distribution railway 3.0 has"):
        packages.check(installed)


def test_a_package_that_is_missing(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(installed / "synth")
    monkeypatch.setattr(packages, "_origin", lambda name: None)
    with pytest.raises(CurateError, match=r"package synth is missing at .*synth. Run: pip install --force-reinstall"):
        packages.check(installed)
