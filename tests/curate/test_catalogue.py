"""Plug-ins of other packages: found by entry points, listed with their package, broken ones told in one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import curate
from curate import catalogue, exports, formats
from curate.admin import doctor
from curate.errors import CurateError
from curate.strategies import CATALOGUE
from tests.curate.cli.test_cli import Run, ok, run
from tests.fakes import REPOSITORY

__all__ = ["run"]
EXAMPLE = REPOSITORY / "docs" / "example-plugin"
Install = Callable[..., None]
WRITTEN = ("worn", "greedy_package", "plant_tools", "own", "nets")  # packages that tests write


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the example package is installed."""
    source, target = tmp_path_factory.mktemp("example") / "source", tmp_path_factory.mktemp("installed")
    shutil.copytree(EXAMPLE, source)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    catalogue._entry_points.cache_clear()
    yield
    catalogue._entry_points.cache_clear()
    for name in [name for name in sys.modules if name.startswith(("curate_example", *WRITTEN))]:
        del sys.modules[name]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package on the path: its entry points by group, and the text of its one module."""

    def installed(name: str, points: dict[str, str], code: str = "") -> None:
        home = tmp_path / name
        about = home / f"{name}-2.1.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.1\n")
        lines = [f"[{group}]\n{point}\n" for group, point in points.items()]
        (about / "entry_points.txt").write_text("".join(lines))
        (home / f"{name}.py").write_text(code)
        monkeypatch.syspath_prepend(home)

    return installed


def test_the_example_package_adds_a_strategy_and_an_exporter(
    example: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.syspath_prepend(example)
    listed = ok(run("select", "--list", "--json"))
    assert listed["strategies"]["outermost"].startswith("Outliers first")
    assert listed["from"]["outermost"] == "curate-example 1.0"
    assert listed["from"]["portfolio"] == "curate"
    assert listed["problems"] == []
    assert "(from curate-example 1.0)" in run("select", "--list")[1]
    assert list(CATALOGUE.options("outermost")) == ["power"]
    vectors = np.random.default_rng(0).standard_normal((50, 8))
    rows = curate.pick(vectors, budget=5, strategy="outermost", options={"power": 2.0}, plain=True)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert set(rows) == set(np.argsort(-np.linalg.norm(unit - unit.mean(axis=0), axis=1))[:5])
    assert "id_list" in exports.names()
    assert exports.CATALOGUE.load("id_list").__name__ == "curate_example.id_list"
    check = doctor._plugins()
    assert check.state == "ok"
    assert "strategies outermost (curate-example 1.0)" in check.found


def test_the_table_of_groups_is_complete() -> None:
    table = (EXAMPLE / "README.md").read_text()
    assert all(f"| `{group}` | " in table for group in catalogue.GROUPS.values())
    assert set(catalogue.FUNCTIONS) == set(catalogue.GROUPS.values())


@pytest.mark.parametrize(
    ("point", "code", "problem"),
    [
        ("bad = worn", "import no_such_library", "cannot be loaded (ModuleNotFoundError: No module named 'no_such_"),
        ("bad = worn", "1 / 0", "cannot be loaded (ZeroDivisionError: division by zero)"),
        ("bad = worn", "def pick(): ...", "is 'worn', which is no module with select()"),
        ("bad = worn:select", "def select(): ...", "is 'worn:select', which is no module with select()"),
        ("bad = worn", "def select(pool, *, k: 'Nothing' = 1): ...", "cannot be loaded (NameError: name 'Nothing'"),
        ("bad = gone_away", "", "cannot be loaded (ModuleNotFoundError"),
    ],
)
def test_a_broken_plugin_is_one_line_and_stops_no_list(
    install: Install, run: Run, point: str, code: str, problem: str
) -> None:
    install("worn", {"curate.strategies": point}, code)
    listed = ok(run("select", "--list", "--json"))
    assert "portfolio" in listed["strategies"]
    assert "bad" not in listed["strategies"]
    (told,) = listed["problems"]
    assert told.startswith("strategies plug-in 'bad' of worn 2.1 ")
    assert problem in told
    assert "\n" not in told
    _, shown, warned = run("select", "--list")
    assert "portfolio" in shown
    assert told in warned
    with pytest.raises(CurateError, match="plug-in 'bad' of worn"):
        CATALOGUE.load("bad")
    assert len(curate.pick(np.eye(6), budget=2, strategy="random")) == 2
    assert problem in doctor._plugins().found


def test_built_in_names_win(install: Install, run: Run) -> None:
    install("greedy_package", {"curate.strategies": "random = greedy_package"}, "def select(pool, budget, rng): ...")
    assert CATALOGUE.load("random").__name__ == "curate.strategies.random"
    listed = ok(run("select", "--list", "--json"))
    assert listed["from"]["random"] == "curate"
    assert listed["problems"] == ["strategies plug-in 'random' of greedy_package 2.1 is left out: the name is built in"]


def test_formats_and_encoders_of_others_are_listed_too(install: Install, run: Run) -> None:
    points = {"curate.formats": "rolls = plant_tools", "curate.encoders": "sums = plant_tools"}
    code = "'''Rolls as our plant stores them.'''\ndef read(root, labels, fully_labelled, *, depth: int = 2):\n"
    code += "    return iter(())\ndef build(*, bins: int = 8): ...\n"
    install("plant_tools", points, code)
    assert ok(run("formats", "--json"))["from"]["rolls"] == "plant_tools 2.1"
    assert "Rolls as our plant stores them. (from plant_tools 2.1)" in run("formats")[1]
    assert list(formats.read("rolls", Path.cwd(), None, True, {"depth": 3})) == []
    with pytest.raises(CurateError, match="option 'depth' of format rolls is 'x'"):
        formats.read("rolls", Path.cwd(), None, True, {"depth": "x"})
    listed = ok(run("embed", "--list", "--json"))
    assert listed["encoders"]["sums"]["options"] == {"bins": 8}
    assert listed["from"]["sums"] == "plant_tools 2.1"
    assert "(from plant_tools 2.1)" in run("embed", "--list")[1]


def test_an_unknown_name_says_all_that_there_are(install: Install) -> None:
    install("own", {"curate.strategies": "homemade = own"}, "def select(pool, budget, rng): ...")
    with pytest.raises(CurateError, match="did you mean 'homemade'"):
        CATALOGUE.load("home_made")
    assert "homemade" in CATALOGUE.names()


def test_architectures_and_synthesisers_have_their_groups(install: Install) -> None:
    from synth import generate
    from train import architectures

    points = {"curate.architectures": "tiny_net = nets", "curate.synthesisers": "painted = nets"}
    install("nets", points, "def build(config, channels, outputs): ...\ndef fit(): ...\ndef generate(): ...\n")
    assert "tiny_net" in architectures.CATALOGUE.names()
    assert "painted" in generate.MAKE.names()
    assert generate.FIT.load("painted").__name__ == "nets"
    assert {group for group, _ in catalogue.added()} == {"curate.architectures", "curate.synthesisers"}
