"""`curate init`: what it writes can be read back, whatever the names; nothing is left where it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curate.admin import setup
from curate.admin.layout import Layout
from curate.errors import CurateError
from curate.project import ENV_PROJECT, load
from tests.fakes import save_image, save_text, voc_xml


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(ENV_PROJECT, raising=False)
    (tmp_path / "house").mkdir()
    monkeypatch.chdir(tmp_path / "house")
    return tmp_path / "house"


def voc_data(root: Path, *names: str) -> Path:
    for number, name in enumerate(names or ("crack", "hole")):
        save_image(root / "JPEGImages" / f"i{number}.jpg")
        escaped = name.replace("&", "&amp;").replace("<", "&lt;")
        save_text(root / "Annotations" / f"i{number}.xml", voc_xml(f"i{number}.jpg", (escaped, 1, 2, 5, 6)))
    return root


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_a_project_is_made_below_projects_with_the_classes_that_the_labels_name(here: Path) -> None:
    data = voc_data(here.parent / "lib", "hole", "crack")
    project = setup.init("plant", "voc", data, fully_labelled=True)
    assert project.folder == here / "projects" / "plant"
    assert project.class_names == ["crack", "hole"]
    source = project.config.sources[0]
    assert (source.format, source.kind, source.fully_labelled) == ("voc", "public", True)
    assert project.root(source) == data
    assert load(project.folder).config == project.config
    assert everything(here / "projects") == {project.folder, project.file}


def test_production_images_are_production_unless_told_otherwise(here: Path) -> None:
    save_image(here / "line" / "a.jpg")
    assert setup.init("one", "images", Path("line")).config.sources[0].kind == "production"
    assert setup.init("two", "images", Path("line"), kind="public").config.sources[0].kind == "public"


def coils(root: Path) -> Path:
    for line in (1, 2):
        for coil in range(3):
            for n in (1, 2):
                save_image(root / f"line{line}" / f"coil{coil}_{n:03d}.png", seed=100 * line + 10 * coil + n)
    return root


def test_template_stratum_and_group_of_production_images_are_guessed_and_shown(here: Path) -> None:
    planned = setup.plan("plant", "images", coils(here / "photos"))
    assert planned.guessed == ("template", "stratum", "group")
    assert [image.stratum for image in planned.examples(9)] == ["line1", "line2"]
    assert {image.group for image in planned.placed} == {"coil0", "coil1", "coil2"}
    assert not (here / "projects").exists(), "a plan writes nothing"
    source = setup.make(planned).config.sources[0]
    assert (source.template, source.stratum) == ("{line}/{coil}_{name}", "{line}")


def test_what_is_given_is_not_guessed_and_an_empty_text_means_none(here: Path) -> None:
    data = coils(here / "photos")
    planned = setup.plan("plant", "images", data, layout=Layout("{place}/{name}", "{place}", ""))
    assert planned.guessed == ()
    assert (planned.placed[0].stratum, planned.placed[0].group) == ("line1", None)
    assert setup.make(planned).config.sources[0].group is None
    assert setup.plan("two", "images", data, layout=Layout(group="(coil)")).guessed == ("template", "stratum")
    assert setup.plan("three", "images", data, layout=Layout(stratum="{coil}")).guessed == ("template", "group")
    assert setup.plan("four", "images", data, layout=Layout("", "")).guessed == ("group",)


def test_a_labelled_source_is_never_guessed_but_may_be_told(here: Path) -> None:
    data = voc_data(here / "lib")
    assert setup.plan("plant", "voc", data).placed == ()
    planned = setup.plan("plant", "voc", data, layout=Layout(group=r"(i\d)\."))
    assert {image.group for image in planned.placed} == {"i0", "i1"}


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        (
            Layout(stratum="{lime}"),
            "stratum '{lime}' names a field that is not in the template; allowed: {line}, {coil}",
        ),
        (Layout("", "{line}"), "allowed: none without a template"),
        (Layout("{line}/{name}", "{lime}"), "allowed: {line}, {name}"),
        (Layout("{a}/{a}"), "field {a} is repeated"),
        (Layout(group="("), "sources.group: not a regular expression"),
    ],
)
def test_a_layout_that_cannot_be_is_reported_and_nothing_is_written(here: Path, layout: Layout, says: str) -> None:
    coils(here / "photos")
    before = everything(here)
    with pytest.raises(CurateError) as problem:
        setup.init("plant", "images", Path("photos"), layout=layout)
    assert says in str(problem.value)
    assert everything(here) == before


def test_a_name_with_a_folder_is_a_path_and_a_dot_is_here(here: Path) -> None:
    data = voc_data(here / "lib")
    assert setup.init("deep/er/plant", "voc", data).folder == here / "deep" / "er" / "plant"
    assert setup.init(str(here / "x"), "voc", data).folder == here / "x"
    assert setup.init(".", "voc", data).folder == here


@pytest.mark.parametrize("name", ["", "..", "a b", "ö", "-x", ".x", "a'b", 'a"b', "a\nb", "projects/a b"])
def test_a_name_that_makes_trouble_later_is_refused(here: Path, name: str) -> None:
    data = voc_data(here.parent / "lib")
    with pytest.raises(CurateError, match="may hold letters"):
        setup.init(name, "voc", data)
    assert everything(here) == set()


def test_an_existing_project_is_never_overwritten(here: Path) -> None:
    data = voc_data(here.parent / "lib")
    file = setup.init("plant", "voc", data).file
    file.write_text(file.read_text() + "# mine\n")
    before = file.read_bytes()
    with pytest.raises(CurateError, match="project 'plant' exists already, with other settings: edit"):
        setup.init("plant", "voc", data)
    assert file.read_bytes() == before


def test_init_repeated_is_done(here: Path) -> None:
    data = voc_data(here.parent / "lib")
    file = setup.init("plant", "voc", data).file
    before = file.read_bytes(), file.stat().st_mtime_ns
    assert setup.plan("plant", "voc", data).made
    assert setup.init("plant", "voc", data).file == file
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "vox"}, "unknown format 'vox' (did you mean 'voc'?)"),
        ({"data": Path("none")}, "--data none: no such file or folder"),
        ({"data": Path("file")}, "is not a folder"),
        ({"labels": Path("none")}, "--labels none: no such file or folder"),
        ({"kind": "synthetic"}, "unknown kind 'synthetic'; allowed: production, public"),
        ({"options": ["x"]}, "--set 'x' is not key=value; options of voc:"),
        ({"options": ["bogus=1"]}, "unknown option of format voc 'bogus'"),
        ({"format": "severstal", "options": ["bogus=1"]}, "unknown option of format severstal 'bogus'"),
        (
            {"format": "severstal", "options": ["image_folder=null"]},
            "option 'image_folder' of format severstal is None",
        ),
        ({"format": "severstal", "data": Path("file")}, "is not a folder"),
    ],
)
def test_a_mistake_is_reported_and_nothing_is_written(here: Path, change: dict[str, Any], says: str) -> None:
    voc_data(here / "lib")
    (here / "file").touch()
    before = everything(here)
    arguments: dict[str, Any] = {"format": "voc", "data": Path("lib")} | change
    with pytest.raises(CurateError) as problem:
        setup.init("plant", **arguments)
    assert says in str(problem.value)
    assert everything(here) == before


def test_a_config_that_could_not_be_read_back_is_not_left(here: Path) -> None:
    data = voc_data(here.parent / "lib")
    with pytest.raises(CurateError, match="should have at least 1 character"):
        setup.write(here / "projects" / "deep" / "p", [{"format": "voc", "data": data}], [""])
    with pytest.raises(CurateError, match="a config cannot hold None"):
        setup.write(here / "p", [{"format": "voc", "data": data, "options": {"a": [None]}}], [])
    assert everything(here) == set()


@pytest.mark.parametrize(
    "name", ["Daten für Öl", "it's", 'a "b" c', "back\\slash", "tab\there", "# {x} = [1]", "back\\sl'ash"]
)
def test_odd_folders(here: Path, name: str) -> None:
    data = voc_data(here / name)
    project = setup.init("plant", "voc", Path(name), labels=data / "Annotations")
    assert project.root(project.config.sources[0]) == data
    assert project.labels(project.config.sources[0]) == data / "Annotations"


def test_paths_are_relative_in_one_tree_and_absolute_beyond(here: Path) -> None:
    near, far = voc_data(here / "lib"), voc_data(here.parent / "far")
    assert setup.init("one", "voc", near).config.sources[0].data == Path("../../lib")
    assert setup.init("two", "voc", far).config.sources[0].data == far


def test_odd_class_names_from_label_files(here: Path) -> None:
    names = ["Riß & Loch", 'a "b"', "c\\d", "it's", "# no", "😀", "a.b", "[x]", "{1}"]
    data = voc_data(here / "lib", *names)
    assert setup.init("plant", "voc", data).class_names == sorted(names)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXT, unique=True, max_size=4), st.dictionaries(TEXT, TEXT, max_size=3), TEXT)
def test_any_text_comes_back(tmp_path: Path, classes: list[str], mapped: dict[str, str], value: str) -> None:
    folder = tmp_path / "projects" / "p"
    options = {"text": value, "list": [value, 1, True, 2.5], "table": mapped}
    source = {
        "format": "voc",
        "data": Path("/d"),
        "classes": mapped,
        "stratum": value.replace("{", "").replace("}", ""),
    }
    project = setup.write(folder, [source | {"options": options}], classes)
    assert project.class_names == classes
    assert project.config.sources[0].classes == mapped
    assert project.config.sources[0].options == options


def test_the_commented_examples_are_valid_where_they_are_uncommented(here: Path) -> None:
    file = setup.init("plant", "voc", voc_data(here / "lib")).file
    lines = file.read_text().splitlines()
    opened = [line[2:] if line.startswith("# ") and ("=" in line or line.startswith("# [")) else line for line in lines]
    file.write_text("\n".join(opened))
    project = load(file.parent)
    assert [source.name for source in project.config.sources] == ["voc", "line-a"]
    assert project.config.limits.max_pixels == 200_000_000
