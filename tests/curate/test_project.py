"""project.toml: strict, with errors that name file, line and remedy; and which project a command means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.errors import CurateError
from curate.project import (
    ENV_PROJECT,
    PALETTE,
    ClassConfig,
    Project,
    ProjectConfig,
    SourceConfig,
    find,
    load,
    parse_ratio,
)
from tests.fakes import save_text

SMALL = '[[sources]]\nformat = "voc"\ndata = "data"\n'


def wrote(folder: Path, text: str) -> Path:
    return save_text(folder / "project.toml", text).parent


def problem(folder: Path, text: str, overrides: Any = None) -> str:
    with pytest.raises(CurateError) as error:
        load(wrote(folder, text), overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- what a config says -----------------------------------------------------------------------------------------------


def test_the_smallest_config_and_its_defaults(tmp_path: Path) -> None:
    project = load(wrote(tmp_path / "plant", SMALL))
    source = project.config.sources[0]
    assert (project.name, project.work) == ("plant", tmp_path / "plant" / "work")
    assert (source.name, source.kind, source.fully_labelled) == ("voc", "public", False)
    assert project.config.splits.shares == pytest.approx({"train": 0.7, "val": 0.15, "test": 0.15})
    assert (project.config.limits.verify, project.config.limits.boxes) == ("tail", "clip")
    assert project.class_names == []


def test_defaults_yield_to_the_file_and_the_file_to_flags(tmp_path: Path) -> None:
    folder = wrote(tmp_path, SMALL + '[splits]\nratio = "80/10/10"\nseed = 7\n')
    assert load(folder).config.splits.seed == 7
    changed = load(folder, {"splits": {"ratio": "60/20/20"}, "limits": {"max_pixels": 9}}).config
    assert (changed.splits.ratio, changed.splits.seed) == ("60/20/20", 7)
    assert (changed.limits.max_pixels, changed.limits.boxes) == (9, "clip")


def test_paths_are_relative_to_the_project_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[[sources]]\nformat="voc"\nname="x"\ndata="../lib/./a"\nlabels="l.csv"\n' + SMALL.replace("data", "/abs", 2)
    text = text.replace("/abs =", "data =")
    project = load(wrote(tmp_path / "p", text))
    monkeypatch.chdir("/")
    first, second = project.config.sources
    assert project.root(first) == tmp_path / "lib" / "a"
    assert project.labels(first) == tmp_path / "p" / "l.csv"
    assert project.root(second) == Path("/abs")
    assert project.labels(second) is None
    assert project.locate("x:sub/a:b.jpg") == tmp_path / "lib" / "a" / "sub" / "a:b.jpg"
    with pytest.raises(CurateError, match="leaves the data root"):
        project.locate("x:../b.jpg")
    with pytest.raises(CurateError, match=r"unknown source 'y'.*allowed: voc, x"):
        project.locate("y:b.jpg")


def test_two_checkouts_have_two_datasets_unless_the_config_names_one(tmp_path: Path) -> None:
    one, two = (load(wrote(tmp_path / place / "plant", SMALL)) for place in "ab")
    assert one.dataset_name != two.dataset_name
    assert one.dataset_name.startswith("plant-")
    assert load(wrote(tmp_path / "c", 'dataset = "shared"\n' + SMALL)).dataset_name == "shared"


def test_colours_are_given_or_follow_the_palette() -> None:
    classes = tuple(ClassConfig(name=f"c{n}", color="#123456" if n == 1 else None) for n in range(12))
    config = ProjectConfig(sources=(SourceConfig(format="voc", data=Path()),), classes=classes)
    colors = Project(Path(), config).colors
    assert (colors["c0"], colors["c1"], colors["c2"]) == (PALETTE[0], "#123456", PALETTE[2])
    assert colors["c11"] == PALETTE[1]


def test_a_config_cannot_be_changed(tmp_path: Path) -> None:
    project = load(wrote(tmp_path, SMALL))
    with pytest.raises(ValueError, match="frozen"):
        project.config.splits.seed = 3  # type: ignore[misc]


# --- what is wrong with it: file, line, value, allowed values ---------------------------------------------------------

LONG = """\
# a comment with ratoi = 3 in it
dataset = "x"

[[sources]]
name = "one"
format = "voc"
data = "d"
kind = "public"
classes = { Riss = "crack" }

[[sources]]
name = "two"
format = "voc"
data = "d"
KIND

[[classes]]
name = "one"
color = "#123456"

[[classes]]
name = "two"
COLOR

[splits]
RATIO
"""


@pytest.mark.parametrize(
    ("mark", "line", "number", "says"),
    [
        (
            "KIND",
            'kind = "privat"',
            15,
            "sources.kind: Input should be 'public', 'production' or 'synthetic' (it is 'pr",
        ),
        ("KIND", "kimd = 3", 15, "unknown key 'kimd' (did you mean 'kind'?); allowed: classes, data, format, fully_"),
        ("KIND", "classes = { Riss = 3 }", 15, "sources.classes.Riss: Input should be a valid string (it is 3)"),
        ("KIND", "options = [1]", 15, "sources.options: Input should be a valid dictionary"),
        (
            "KIND",
            f'group = "{5000 * "("}{5000 * ")"}"',
            15,
            "sources.group: not a regular expression: maximum recursion",
        ),
        (
            "KIND",
            'group = "("',
            15,
            "sources.group: not a regular expression: missing ), unterminated subpattern at pos",
        ),
        ("KIND", "fully_labelled = 7", 15, "sources.fully_labelled: Input should be a valid boolean"),
        ("COLOR", 'color = "red"', 23, "classes.color: String should match pattern '^#[0-9a-fA-F]{6}$' (it is 'red')"),
        (
            "COLOR",
            'colour = "#111111"',
            23,
            "unknown key 'colour' (did you mean 'color'?); allowed: color, description",
        ),
        ("COLOR", '"color" = 5', 23, "classes.color: Input should be a valid string (it is 5)"),
        ("RATIO", "ratoi = 3", 26, "unknown key 'ratoi' (did you mean 'ratio'?); allowed: ratio, seed"),
        ("RATIO", 'ratio = "70/30"', 26, "splits.ratio: split '70/30' is not three numbers; write train/val/test, for"),
        ("RATIO", 'ratio = "0/1/1"', 26, "splits.ratio: split '0/1/1' needs a train share above 0"),
        ("RATIO", "seed = 1.5", 26, "splits.seed: Input should be a valid integer"),
        ("RATIO", "[limits]\nmax_pixels = 0", 27, "limits.max_pixels: Input should be greater than 0 (it is 0)"),
        ("RATIO", '[limits]\nverify = "all"', 27, "limits.verify: Input should be 'tail' or 'decode' (it is 'all')"),
        (
            "RATIO",
            "[limist]\nx = 1",
            26,
            "unknown key 'limist' (did you mean 'limits'?); allowed: aliases, classes, da",
        ),
        ("RATIO", "[splits.more]\nx = 1", 26, "unknown key 'more'; allowed: ratio, seed"),
        ("RATIO", "[[classes]]\ncolor = '#123456'", 26, "classes.name: Field required"),
        ("RATIO", "[[classes]]\nname = ''", 27, "classes.name: String should have at least 1 character (it is '')"),
        ("RATIO", "[aliases]\na = '''\n\n'''\nb = 4", 30, "aliases.b: Input should be a valid string (it is 4)"),
    ],
)
def test_an_error_names_file_line_value_and_what_is_allowed(
    tmp_path: Path, mark: str, line: str, number: int, says: str
) -> None:
    text = LONG.replace(mark, line)
    for other in ("KIND", "COLOR", "RATIO"):
        text = text.replace(other, "")
    file = tmp_path / "project.toml"
    assert problem(tmp_path, text).startswith(f"{file}:{number}: {says}")


@pytest.mark.parametrize(
    ("text", "number", "says"),
    [
        (SMALL + 'splits = { ratio = "1/1/1", sed = 3 }', 4, "unknown key 'splits'"),
        ('splits = { ratio = "1/1/1", sed = 3 }\n' + SMALL, 1, "unknown key 'sed' (did you mean 'seed'?)"),
        ("splits.ratio = '1/1/1'\nsplits.sed = 3\n" + SMALL, 2, "unknown key 'sed'"),
        (
            'sources = [\n  # one\n  { format = "voc", data = "d" },\n  { fromat = "voc", data = "d" },\n]\n',
            4,
            "unknown key",
        ),
        ('[[source]]\nformat = "voc"\ndata = "d"\n', 1, "unknown key 'source' (did you mean 'sources'?)"),
        (SMALL + '[[sources]]\ndata = "d"\n', 4, "sources.format: Field required"),
        ("\n\nsources = 3\n", 3, "sources: Input should be a valid tuple (it is 3)"),
        ("sources = []\n", 1, "sources: Tuple should have at least 1 item"),
        (SMALL + 'name = "a:b"\n', 4, "sources.name: a source's name may not hold ':'"),
    ],
)
def test_lines_in_other_notations(tmp_path: Path, text: str, number: int, says: str) -> None:
    assert problem(tmp_path, text).startswith(f"{tmp_path / 'project.toml'}:{number}: {says}")


def test_an_empty_config_lacks_its_sources(tmp_path: Path) -> None:
    assert problem(tmp_path, "") == f"{tmp_path / 'project.toml'}: sources: Field required"


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("class", SMALL + '[[classes]]\nname = "a"\n[[classes]]\nname = "b"\n[[classes]]\nname = "a"\n'),
        ("source", SMALL.replace("voc", "a") + SMALL + 'name = "a"\n'),
        ("source", SMALL.replace("voc", "a") * 2),
    ],
)
def test_names_that_stand_twice(tmp_path: Path, what: str, text: str) -> None:
    assert f"{what} name 'a' is used twice; names must differ" in problem(tmp_path, text)


@pytest.mark.parametrize("text", ["[[sources", "a = ", "a = 1\na = 2", "\x00"])
def test_what_is_no_toml_says_where(tmp_path: Path, text: str) -> None:
    message = problem(tmp_path, text)
    assert message.startswith(f"{tmp_path / 'project.toml'}: not valid TOML: ")
    assert "(at " in message


def test_what_is_no_text_is_no_toml(tmp_path: Path) -> None:
    (tmp_path / "project.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(CurateError, match="not valid TOML"):
        load(tmp_path)


def test_a_missing_project_says_how_to_make_one(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none", save_text(tmp_path / "file", "")):
        with pytest.raises(CurateError, match=r"project\.toml is missing\. Make one with: curate init"):
            load(folder)
    (tmp_path / "project.toml").mkdir()
    with pytest.raises(CurateError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_a_bad_flag_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    message = problem(tmp_path, SMALL + '[splits]\nratio = "1/1/1"\n', {"splits": {"ratio": "x"}})
    assert message.startswith("splits.ratio: split 'x' is not three numbers")


@pytest.mark.parametrize("key", ["api_key", "token", "label_studio_token", "password"])
@pytest.mark.parametrize(
    "place", ["{} = 's3cret'\n" + SMALL, SMALL + "{} = 's3cret'\n", SMALL + "[limits]\n{} = 's3cret'"]
)
def test_a_secret_is_refused_and_not_shown(tmp_path: Path, key: str, place: str) -> None:
    message = problem(tmp_path, place.format(key))
    assert f"unknown key '{key}'" in message
    assert "s3cret" not in message


@pytest.mark.parametrize(
    ("template", "stratum", "wrong"),
    [
        ("{line}/{name}", "{camera}", "allowed: {line}, {name}"),
        ("{line}/{name}", "{line!r}", "allowed"),
        ("{line}/{name}", "{line", "allowed"),
        ("{line}/{name}", "{}", "allowed"),
        (None, "{line}", "none without a template"),
        ("{line}/{line}", None, "{line} is repeated or is not a name"),
        ("{1}/{name}", None, "{1} is repeated or is not a name"),
    ],
)
def test_templates_that_could_not_be_filled(
    tmp_path: Path, template: str | None, stratum: str | None, wrong: str
) -> None:
    text = SMALL + "".join(f'{k} = "{v}"\n' for k, v in (("template", template), ("stratum", stratum)) if v)
    message = problem(tmp_path, text)
    assert message.startswith(f"{tmp_path / 'project.toml'}:1: sources: ")
    assert wrong in message


def test_templates_that_can_be_filled(tmp_path: Path) -> None:
    for stratum in ("{line}", "x/{camera}-{line}", "fixed", ""):
        load(wrote(tmp_path, SMALL + f'template = "{{line}}/{{camera}}/{{name}}"\nstratum = "{stratum}"\n'))


# --- ratios -----------------------------------------------------------------------------------------------------------


@given(st.tuples(st.integers(1, 1000), st.integers(0, 1000), st.integers(0, 1000)))
def test_a_ratio_is_shares_that_add_up_to_one(parts: tuple[int, int, int]) -> None:
    shares = parse_ratio("/".join(map(str, parts)))
    assert sum(shares) == pytest.approx(1)
    assert [share * sum(parts) for share in shares] == pytest.approx(parts)


@pytest.mark.parametrize(
    "text",
    ["", "70", "70/30", "70/15/15/0", "a/b/c", "nan/1/1", "1/nan/1", "inf/1/1", "-1/1/1", "1/-1/1", "0/0/0", "//"],
)
def test_a_ratio_that_is_none(text: str) -> None:
    with pytest.raises(CurateError, match="for example 70/15/15"):
        parse_ratio(text)


# --- which project ----------------------------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(ENV_PROJECT, raising=False)
    for name in ("one", "two"):
        wrote(tmp_path / "projects" / name, SMALL)
    wrote(tmp_path / "elsewhere" / "three", SMALL)
    return tmp_path


def test_a_project_is_named_or_pointed_at(house: Path) -> None:
    one = house / "projects" / "one"
    assert find("one", house) == one
    assert find("one", one / "work") == one
    assert find("projects/one", house) == one
    assert find(str(one), Path("/")) == one
    assert find(str(one / "project.toml"), Path("/")) == one
    assert find("elsewhere/three", house) == house / "elsewhere" / "three"
    assert find(".", house / "elsewhere" / "three") == house / "elsewhere" / "three"


def test_an_unknown_name_lists_all(house: Path) -> None:
    with pytest.raises(CurateError, match=r"unknown project 'onne' \(did you mean 'one'\?\); allowed: one, two"):
        find("onne", house)


def test_the_environment_yields_to_the_flag_and_wins_over_the_place(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_PROJECT, "two")
    assert find(None, house / "projects" / "one") == house / "projects" / "two"
    assert find("one", house) == house / "projects" / "one"
    monkeypatch.setenv(ENV_PROJECT, "")
    assert find(None, house / "projects" / "one") == house / "projects" / "one"


def test_the_place_where_you_stand(house: Path) -> None:
    deep = house / "elsewhere" / "three" / "work" / "rounds"
    deep.mkdir(parents=True)
    assert find(None, deep) == house / "elsewhere" / "three"


def test_several_projects_are_listed_and_the_only_one_is_taken(house: Path) -> None:
    with pytest.raises(CurateError, match=r"several projects: one, two\. Say which: --project NAME"):
        find(None, house)
    (house / "projects" / "two" / "project.toml").unlink()
    assert find(None, house) == house / "projects" / "one"


def test_no_project_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV_PROJECT, raising=False)
    with pytest.raises(CurateError, match=r"no project found at or below .* Make one: curate init"):
        find(None, tmp_path)


def test_a_folder_with_half_a_restore_says_what_to_do(tmp_path: Path) -> None:
    """`curate restore --force` moves the config away first and into place last."""
    (tmp_path / "plant").mkdir()
    (tmp_path / "plant" / "project.toml.before-1796030637").write_text("")
    with pytest.raises(CurateError, match=r"into it was interrupted\. Run .* kept as project\.toml\.before-1"):
        find(str(tmp_path / "plant"), tmp_path)
