"""The label config that annotators work with: for any class names, and as the real server reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from defusedxml.ElementTree import fromstring
from hypothesis import given
from hypothesis import strategies as st

from curate.data import Label
from curate.errors import CurateError
from curate.project import ClassConfig, LabelStudioConfig, Project, ProjectConfig, SourceConfig
from labeling import config, results
from labeling.client import Studio
from labeling.results import BOX, BRUSH, CLEAN, IMAGE, PRESENT, SEVERITY, UNSURE, VERDICT, WHY
from tests.labeling import studio as ls_helpers

SIZE = (32, 24)
HOSTILE = [
    *('say "crack"', "it's", "<b>bold</b>", "a < b & c > d", "&amp;", "]]>", "--> <!--", "</Label>"),
    *("$x", "$title", "$image", "{{x}}", "%s", "\\n", "裂纹", "Überzug", "🔥", "عيب", "e\u0301", "long " * 60),
    *("1", "-", "a,b", "a/b", "a:b", ".", "none", "null", "crack", "Crack", "CRACK", "clean", "not sure", "image"),
]


def project(classes: Sequence[str | ClassConfig], **labelstudio: Any) -> Project:
    named = tuple(one if isinstance(one, ClassConfig) else ClassConfig(name=one) for one in classes)
    source = SourceConfig(format="images", data=Path("data"), name="s")
    options = LabelStudioConfig(**labelstudio)
    return Project(Path("/plants/plant"), ProjectConfig(sources=(source,), classes=named, labelstudio=options))


def offered(text: str, tag: str) -> list[str]:
    """The names under this tag, as they get into an annotation."""
    (found,) = (one for one in fromstring(text).iter() if one.get("name") == tag)
    return [child.get("alias") or child.get("value") for child in found]


def attributes(text: str, tag: str, what: str) -> list[str | None]:
    (found,) = (one for one in fromstring(text).iter() if one.get("name") == tag)
    return [child.get(what) for child in found]


# --- without a server -------------------------------------------------------------------------------------------------

WRITABLE = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1)


@pytest.mark.slow
@given(st.lists(WRITABLE, unique=True, max_size=15))
def test_any_class_name_is_offered_as_it_is(names: list[str]) -> None:
    text = config.build(project(names))
    for tag in (BRUSH, BOX, PRESENT):
        assert offered(text, tag) == names
    assert config.lacking(text, project(names)) == []


@given(st.lists(WRITABLE, unique=True, max_size=15))
def test_nothing_that_label_studio_resolves_stands_in_a_label(names: list[str]) -> None:
    text = config.build(project(names))
    assert not any(re.search(r"\$[\w{\[]", str(value)) for value in attributes(text, BRUSH, "value"))


def test_keys_are_given_once_and_none_by_label_studio() -> None:
    names = [f"class {number}" for number in range(14)]
    text = config.build(project(names, severities=("minor",)), ["old"])
    keys = [key for tag in (BRUSH, BOX, VERDICT) for key in attributes(text, tag, "hotkey")]
    given = [key for key in keys if key != config.NO_KEY]
    assert len(given) == len(set(given)) == 22
    assert not set(given) & set("behkmopruvw"), "Label Studio's own"
    choices = [one for one in fromstring(text).iter() if one.tag in ("Label", "Choice")]
    assert all(one.get("hotkey") for one in choices), "what has no key is given one that may be a tool's"


def test_the_controls_stand_above_a_strip_and_beside_anything_else() -> None:
    above, beside = (fromstring(config.build(project(["crack"]), beside=beside)) for beside in (False, True))
    assert (above.get("className"), beside.get("className")) == ("curate-above", "curate-beside")
    for page in (above, beside):
        assert [part.get("className") for part in page if part.tag == "View"] == ["curate-controls", "curate-image"]


def test_old_names_come_last_and_grey() -> None:
    text = config.build(project(["crack", "hole"]), ["blister"])
    for tag in (BRUSH, BOX, PRESENT):
        assert offered(text, tag) == ["crack", "hole", "blister"]
    assert attributes(text, BRUSH, "background")[-1] == config.OLD_COLOR


def test_retired_classes_are_not_offered() -> None:
    text = config.build(project(["crack", ClassConfig(name="gone", retired=True)]))
    assert offered(text, BRUSH) == ["crack"]
    assert config.lacking(text, project(["crack", ClassConfig(name="gone", retired=True)])) == []


def test_severity_is_asked_for_only_where_it_is_wanted() -> None:
    assert SEVERITY not in config.build(project(["crack"]))
    text = config.build(project(["crack"], severities=("minor", "$major")))
    assert offered(text, SEVERITY) == ["minor", "$major"]
    assert next(one.get("perRegion") for one in fromstring(text).iter() if one.get("name") == SEVERITY) == "true"


def test_the_version_changes_with_classes_colours_and_reasons() -> None:
    made = [
        project(["crack", "hole"]),
        project(["hole", "crack"]),
        project(["crack"]),
        project(["crack", ClassConfig(name="hole", color="#123456")]),
        project(["crack", "hole"], severities=("minor",)),
        project(["crack", "hole"], skip_reasons=("dark",)),
    ]
    versions = [config.version(config.build(one)) for one in made]
    assert len(set(versions)) == len(made)
    assert config.version(config.build(made[0])) == versions[0]
    assert config.version(config.build(made[0], ["old"])) != versions[0]


def test_what_was_removed_by_hand_is_reported() -> None:
    one = project(["crack", "$hole"])
    text = config.build(one)
    without = fromstring(text)
    for parent in without.iter():
        for child in list(parent):
            if child.get("name") == VERDICT or (parent.get("name") == BOX and child.get("alias") == "$hole"):
                parent.remove(child)
    from xml.etree.ElementTree import tostring

    assert config.lacking(tostring(without, encoding="unicode"), one) == [
        f"the tag '{VERDICT}'",
        f"the class '$hole' in the tag '{BOX}'",
    ]
    assert config.lacking("<View/>", one) == [f"the tag '{name}'" for name in (IMAGE, BRUSH, BOX, VERDICT, PRESENT)]
    assert config.lacking("<View>", one)[0].startswith("a config that can be read")
    assert config.lacking('<!DOCTYPE x [<!ENTITY a "b">]><View/>', one)[0].startswith("a config that can be read")
    more = text.replace("</View>", '<TextArea name="note" toName="image"/></View>', 1)
    assert config.lacking(more, one) == [], "what somebody added is theirs"


def test_a_name_that_no_config_can_hold_is_reported() -> None:
    with pytest.raises(CurateError, match=r"class 'a\\x07b' holds the character"):
        config.build(project(["a\x07b"]))


def test_instructions_escape_what_they_show() -> None:
    one = ClassConfig(name="<b>&", description='<script>alert("x")</script>')
    html = config.instructions(project([one]), [config.ExampleCrop("<b>&", '/data/"><script>')])
    assert "<script" not in html
    assert "&lt;b&gt;&amp;" in html


def test_a_class_that_is_called_like_a_verdict_is_a_class() -> None:
    classes = (CLEAN, UNSURE)
    for names in ((CLEAN,), (UNSURE,), classes):
        said = results.of_label(Label("labelled", (), names), SIZE)
        assert [one["from_name"] for one in said] == [PRESENT]
        assert results.label_in(said, SIZE, classes=classes) == Label("labelled", (), names)
    assert results.label_in(results.of_label(Label("labelled"), SIZE), SIZE, classes=classes).clean
    unsure = Label("skipped", reason="glare")
    assert results.label_in(results.of_label(unsure, SIZE), SIZE, classes=classes) == unsure


# --- as the real server reads it --------------------------------------------------------------------------------------


def test_the_server_takes_every_name_and_gives_it_back(studio: Studio) -> None:
    one = project(HOSTILE, severities=("minor", "<major>"))
    text = config.build(one, ["old & gone"])
    number = ls_helpers.project(studio, "hostile", text)
    held = studio.get(f"/api/projects/{number}/")
    assert held["label_config"] == text
    parsed = held["parsed_label_config"]
    for tag in (BRUSH, BOX, PRESENT):
        assert parsed[tag]["labels"] == [*HOSTILE, "old & gone"]
    assert parsed[VERDICT]["labels"] == [CLEAN, UNSURE]
    assert parsed[SEVERITY]["labels"] == ["minor", "<major>"]
    assert parsed[WHY]["labels"] == list(one.config.labelstudio.skip_reasons)


def test_every_name_comes_back_from_an_annotation(studio: Studio) -> None:
    from curate.data import make_defect

    number = ls_helpers.project(studio, "hostile", config.build(project(HOSTILE)))
    (task,) = ls_helpers.import_tasks(studio, number, [{"data": {"image": "/x.png", "title": "t"}}])
    boxes = tuple(make_defect(name, (at % 16, at // 16, 4, 5)) for at, name in enumerate(HOSTILE))
    label = Label("labelled", boxes, tuple(HOSTILE))
    ls_helpers.annotate(studio, task, results.of_label(label, SIZE))
    (back,) = ls_helpers.task(studio, task)["annotations"]
    assert results.label_in(back["result"], SIZE, classes=HOSTILE).digest == label.digest


def test_names_that_annotations_bear_may_go_to_the_end(studio: Studio) -> None:
    from curate.data import make_defect

    number = ls_helpers.project(studio, "renamed", config.build(project(["crack", "$hole"])))
    (task,) = ls_helpers.import_tasks(studio, number, [{"data": {"image": "/x.png", "title": "t"}}])
    label = Label("labelled", (make_defect("$hole", (1, 1, 4, 5)),), ("crack",))
    ls_helpers.annotate(studio, task, results.of_label(label, SIZE))
    text = config.build(project(["pit"]), ["$hole", "crack"])
    assert studio.ask("PATCH", f"/api/projects/{number}/", json={"label_config": text})["label_config"] == text
