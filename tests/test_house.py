"""The house itself: who may import whom, what `curate --help` loads, what lies in git, what `make clean` removes."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[1]
MAY_IMPORT = {"curate": {"curate"}, "train": {"curate", "train"}, "labeling": {"curate", "labeling", "train"}}
MAY_IMPORT["synth"] = {"curate", "synth", "train"}
ROOMS = frozenset(MAY_IMPORT)
HEAVY = {
    *("torch", "torchvision", "fiftyone", "diffusers", "transformers", "ray", "label_studio_sdk", "pandas", "sklearn"),
    *("albumentations", "segmentation_models_pytorch", "timm", "lance", "lancedb", "scipy"),
    *("onnx", "onnxruntime", "optuna", "pytorch_grad_cam", "label_studio", "httpx"),
}
SLOW = HEAVY | {"numpy", "numba", "cv2", "pydantic", "PIL", "tomlkit", "yaml"}
TOP = {
    *("pyproject.toml", "README.md", "curate", "labeling", "synth", "train", "tests", "projects"),
    *("Makefile", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "constraints.txt", "docs"),
    *(".ci", ".gitignore", ".pre-commit-config.yaml", ".github"),
}
LARGEST = 200_000
FIXTURE_LARGEST = 1_000_000  # an old project's backup


@cache
def modules() -> dict[str, Path]:
    found = {}
    for room in sorted(ROOMS):
        for path in sorted((HOUSE / room).rglob("*.py")):
            parts = path.relative_to(HOUSE).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST, module: str, is_package: bool, deep: bool) -> Iterator[str]:
    """Dotted names that the code imports; without `deep` only those that importing the module itself brings."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not deep:
            yield from imported(ast.Module(node.orelse, []), module, is_package, deep)
        elif deep or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imported(node, module, is_package, deep)


@cache
def imports_of(module: str, deep: bool) -> frozenset[str]:
    path = modules()[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(imported(tree, module, path.name == "__init__.py", deep))


def loaded_by(start: str) -> set[str]:
    """All of our modules that importing `start` brings, by their code alone."""
    everything, found, todo = modules(), set(), [start]
    while todo:
        module = todo.pop()
        if module in found or module not in everything:
            continue
        found.add(module)
        parents = [module.rsplit(".", n)[0] for n in range(1, module.count(".") + 1)]
        todo += [*parents, *imports_of(module, deep=False)]
    return found


# --- the walk over the code -------------------------------------------------------------------------------------------


def test_the_walk_sees_what_it_should() -> None:
    code = "import a.b\nfrom . import c\nfrom ..d import e\ndef f():\n    import g\nif TYPE_CHECKING:\n    import h\n"
    code += "class K:\n    import k\ntry:\n    import i\nexcept ImportError:\n    import j\n"
    shallow = set(imported(ast.parse(code), "room.sub.module", False, deep=False))
    assert shallow == {"a.b", "room.sub", "room.sub.c", "room.d", "room.d.e", "k", "i", "j"}
    assert set(imported(ast.parse(code), "room.sub.module", False, deep=True)) == shallow | {"g", "h"}
    assert set(imported(ast.parse("from . import c"), "room.sub", True, deep=False)) == {"room.sub", "room.sub.c"}
    assert len(modules()) > 40
    assert {"curate.cli", "curate.cli._index", "curate.errors"} <= loaded_by("curate.cli")


# Inside `curate`, from the ground up: a folder may import those before it, imports inside functions counted. Plug-ins
# are listed with the room that they serve; what is in no folder is the ground floor.
FLOORS: tuple[set[str], ...] = (
    {"masks", "labels", "formats", "greedy"},
    {"index", "exports"},
    {"embed"},
    {"vectors"},
    {"select", "strategies"},
    {"audit", "monitor"},
    {"admin", "demo"},
    {"ops"},
    {"cli", "app", "__main__", "api"},
)
DOORS = ("curate.cli", "curate.ops", "curate.app", "curate.api")  # may reach up into other rooms, inside a function


def floor(module: str) -> int:
    folder = module.split(".")[1] if "." in module else ""
    return next((number for number, rooms in enumerate(FLOORS, 1) if folder in rooms), 0)


def ours(module: str) -> set[str]:
    """Modules of ours that a module imports, anywhere in it; of `from package import name` the package, too."""
    everything = modules()
    return {name for name in imports_of(module, deep=True) if name in everything} - {module}


def test_imports_follow_the_arrows() -> None:
    wrong = {module: sorted(names) for module in modules() if (names := against_the_arrows(module))}
    assert not wrong, "these may not be imported"


def against_the_arrows(module: str) -> set[str]:
    room = module.split(".")[0]
    named = {name for name in imports_of(module, deep=True) if name.split(".")[0] in ROOMS | {"tests", "projects"}}
    wrong = {name for name in named if name.split(".")[0] not in MAY_IMPORT[room]}
    if module.startswith(DOORS):
        wrong &= {name for name in imports_of(module, deep=False) if name.split(".")[0] in ROOMS}
    if room == "labeling" and "backend" not in module:  # only the machine-learning backend needs models
        wrong |= {name for name in named if name.split(".")[0] == "train"}
    if room == "curate" and module != "curate":  # the package itself loads the Python API when it is first used
        wrong |= {name for name in ours(module) if name.startswith("curate.") and floor(name) > floor(module)}
    return wrong


def test_no_module_imports_itself_by_a_detour() -> None:
    """Imports inside functions and for types counted."""
    graph = {module: {name for name in ours(module) if modules()[name].name != "__init__.py"} for module in modules()}
    circles = []
    for start in graph:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            module = todo.pop()
            if module == start:
                circles.append(start)
                break
            if module not in seen:
                seen.add(module)
                todo += graph[module]
    assert not circles


# --- words ------------------------------------------------------------------------------------------------------------

OPENINGS = ("Of ", "What ", "Those ", "Whether ", "Also ")


def documented(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield getattr(node, "name", "the module"), ast.get_docstring(node) or ""


def test_docstrings_begin_with_a_verb_or_the_thing() -> None:
    odd = [
        (module, name)
        for module, path in modules().items()
        for name, text in documented(path)
        if text.startswith(OPENINGS)
    ]
    assert not odd, f"their docstrings open with one of {OPENINGS}"


def test_no_two_public_classes_share_a_name() -> None:
    homes: dict[str, list[str]] = {}
    for module, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module)
    assert not {name: home for name, home in homes.items() if len(home) > 1}


def test_no_heavy_library_at_the_top_of_a_module_of_curate() -> None:
    heavy = {
        module: names
        for module in modules()
        if module.split(".")[0] == "curate"
        and (names := sorted(name for name in imports_of(module, deep=False) if name.split(".")[0] in HEAVY))
    }
    assert not heavy, "import them inside the functions that need them"


def test_nothing_slow_at_the_top_of_what_the_command_line_loads() -> None:
    slow = {
        module: names
        for module in loaded_by("curate.cli")
        if (names := sorted(n for n in imports_of(module, deep=False) if n.split(".")[0] in SLOW))
    }
    assert not slow


@pytest.mark.parametrize("arguments", [["--help"], ["index", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import json, sys\n"
        f"sys.argv = ['curate', *{arguments!r}]\n"
        "from curate.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HOUSE)
    assert "curate" in done.stdout
    loaded = {name.split(".")[0] for name in json.loads(done.stderr)}
    assert "typer" in loaded
    # Typer itself looks for pydantic when it parses a command's options.
    assert not loaded & (SLOW - ({"pydantic"} if len(arguments) > 1 else set()))


# --- what lies in git -------------------------------------------------------------------------------------------------


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(HOUSE), *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    found = git("ls-files", "-z")
    if found.returncode or not found.stdout:
        pytest.skip("not a git checkout")
    return [HOUSE / name for name in found.stdout.split("\0") if name and (HOUSE / name).exists()]


def test_the_top_level_is_fixed(tracked: list[Path]) -> None:
    assert {path.relative_to(HOUSE).parts[0] for path in tracked} <= TOP


def test_every_file_is_small_text(tracked: list[Path]) -> None:
    for path in tracked:
        if path.is_relative_to(HOUSE / "tests" / "fixtures") and path.suffix == ".gz":
            assert path.stat().st_size < FIXTURE_LARGEST
            continue
        content = path.read_bytes()
        assert not path.is_symlink(), path
        assert len(content) <= LARGEST, path
        assert b"\0" not in content, path
        assert b"\r\n" not in content, path
        content.decode("utf-8")


@pytest.mark.parametrize("name", ["projects/x/work/labels/1.jsonl", "projects/demo/project.toml", ".venv/x", "a/x.pyc"])
def test_state_stays_out_of_git(tracked: list[Path], name: str) -> None:
    assert git("check-ignore", "-q", name).returncode == 0


def test_a_project_s_config_belongs_into_git(tracked: list[Path]) -> None:
    assert git("check-ignore", "-q", "projects/x/project.toml").returncode == 1


# --- make clean -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_clean_never_touches_a_project(tmp_path: Path) -> None:
    shutil.copy(HOUSE / "Makefile", tmp_path)
    kept = ["projects/a/work/labels/000001.jsonl", "projects/a/work/__pycache__/x", "projects/a/project.toml"]
    kept += ["projects/demo/work/db/x", "work/x", "curate/work/x", "curate/data.py", "tests/work/x", "build.txt"]
    gone = [".venv/bin/python", "curate/__pycache__/x.pyc", "tests/curate/__pycache__/x.pyc", ".pytest_cache/x"]
    for name in [*kept, *gone, "labeling/x.py", "synth/x.py", "train/x.py"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for _ in range(2):
        done = subprocess.run(["make", "-s", "clean"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert [name for name in kept if not (tmp_path / name).exists()] == []
        assert [name for name in gone if (tmp_path / name).exists()] == []


EXTENDED = {
    "curate/strategies": ("select",),
    "curate/embed": ("build",),
    "curate/formats": ("read",),
    "curate/exports": ("write",),
    "train/architectures": ("build",),
    "synth/synthesisers": ("fit", "generate"),
}


def extended() -> Iterator[tuple[str, str]]:
    for folder, names in EXTENDED.items():
        for path in sorted((HOUSE / folder).glob("[a-z]*.py")):
            yield from ((path.relative_to(HOUSE).as_posix(), name) for name in names)


@pytest.mark.parametrize(("file", "name"), extended())
def test_what_users_extend_says_what_it_takes_and_returns(file: str, name: str) -> None:
    tree = ast.parse((HOUSE / file).read_text(encoding="utf-8"))
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    text = ast.get_docstring(function) or ""
    arguments = text.partition("Args:")[2]
    silent = [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]
    silent = [argument for argument in silent if f"{argument}:" not in arguments and f"{argument}," not in arguments]
    assert not silent, f"no word about {silent}"
    assert "Returns:" in text or "Yields:" in text
