"""The label log: a dictionary is the model, random operations are played on both; then damage, kills and reopening."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.data import UNLABELLED, Defect, Label
from curate.errors import CurateError
from curate.labels.log import DUPLICATE_LABELS, Entry, LabelLog, LabelState, Segments, Writer, now, user_name

CRACK = Label("labelled", (Defect("crack", (1.0, 2.0, 3.0, 4.0), "PPY11"),))
HOLE = Label("labelled", (Defect("hole", (0.5, 0.25, 3.0, 4.125)),))
CLEAN = Label("labelled")


def imported(label: Label, path: str = "lib:a.jpg", id: str = "i1", at: str = "2026-01-01T00:00:00Z") -> Entry:
    return Entry(id, label, "import", "voc", at, path)


def by_person(label: Label, origin: Any = "app", id: str = "i1") -> Entry:
    return Entry(id, label, origin, "ann", now())


def reopened(log: LabelLog) -> LabelLog:
    log.flush()
    return LabelLog(log.segments.folder)


@pytest.fixture
def log(tmp_path: Path) -> LabelLog:
    return LabelLog(tmp_path / "labels")


# --- lines and segments ----------------------------------------------------------------------------------------------


def test_a_log_that_says_nothing_leaves_nothing_on_disk(log: LabelLog) -> None:
    log.flush()
    log.close()
    assert not log.segments.folder.exists()
    assert list(log.ids()) == []
    assert log.state("i1") == LabelState(UNLABELLED)
    assert log.key("i1") == ""
    assert log.versions("i1") == []
    assert not log.person_decided("i1")


def test_each_run_writes_a_segment_of_its_own_and_never_touches_an_older_one(tmp_path: Path) -> None:
    before: dict[str, bytes] = {}
    for run in range(12):
        log = LabelLog(tmp_path)
        log.append(imported(CRACK if run % 2 else HOLE, f"lib:{run}.jpg"))
        log.rename({"crack": f"crack{run}"}, "ann", "rename")
        log.close()
        now_there = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert before.items() <= now_there.items()
        assert len(now_there) == run + 1
        before = now_there
    assert Segments(tmp_path).names() == [f"{n:06d}.jsonl" for n in range(1, 13)]


def test_a_log_goes_on_after_close_in_a_new_segment(log: LabelLog) -> None:
    log.append(imported(CRACK))
    log.close()
    log.append(imported(HOLE, id="i2"))
    assert log.state("i1").label == CRACK
    assert log.state("i2").label == HOLE
    assert len(log.segments.names()) == 2


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_cut_off_by_a_kill_is_passed_over(log: LabelLog, cut: int) -> None:
    log.append(imported(CRACK))
    log.append(imported(HOLE, id="i2"))
    log.close()
    file = log.segments.folder / "000001.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    again = LabelLog(log.segments.folder)
    assert list(again.ids()) == ["i1"]
    again.append(imported(CLEAN, id="i3"))
    last = reopened(again)
    assert list(last.ids()) == ["i1", "i3"]
    assert last.state("i3").label == CLEAN


@pytest.mark.parametrize("rubbish", [b"{", b"[1]", b"\xff\xfe", b"", b"null", b'{"id": "x"}', b'{"event": "rename"}'])
def test_a_damaged_line_is_named_with_file_and_line(log: LabelLog, rubbish: bytes) -> None:
    for number in range(3):
        log.append(imported(CRACK, id=f"i{number}"))
    log.close()
    file = log.segments.folder / "000001.jsonl"
    lines = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([lines[0], rubbish, *lines[2:]]))
    with pytest.raises(CurateError) as problem:
        LabelLog(log.segments.folder)
    assert str(problem.value).startswith(f"{file}:2: damaged line")
    assert "curate restore" in str(problem.value)


def test_a_line_that_is_damaged_while_the_log_is_open_is_named_too(log: LabelLog) -> None:
    for number in range(3):
        log.append(imported(CRACK, id=f"i{number}"))
    log.flush()
    file = log.segments.folder / "000001.jsonl"
    lines = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([*lines[:2], b"!" * len(lines[2]), b""]))
    log._recent.clear()  # what was just written is otherwise not read back
    with pytest.raises(CurateError, match=r"000001\.jsonl:3: damaged"):
        log.state("i2")


def test_lines_of_events_that_this_version_does_not_know_are_passed_over(log: LabelLog) -> None:
    with Writer(log.segments) as writer:
        writer.append({"event": "weighed", "grams": 3})
    assert list(LabelLog(log.segments.folder).ids()) == []


def test_a_file_name_that_is_no_utf8_survives_the_log(log: LabelLog) -> None:
    path = "lib:" + os.fsdecode(b"gr\xfcn.jpg")
    entry = imported(CRACK, path)
    log.append(entry)
    assert reopened(log).state("i1").entry == entry
    assert reopened(log).key("i1") == log.key("i1")


def test_a_flushed_label_outlives_kill_9(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from curate.labels.log import LabelLog, Entry; from curate.data import Label\n"
        "log = LabelLog(Path(sys.argv[1]))\n"
        "for i in range(1000): log.append(Entry(f'i{i}', Label('labelled'), 'app', 'ann', 'now'))\n"
        "log.flush()\n"
        "for i in range(1000, 1500): log.append(Entry(f'i{i}', Label('labelled'), 'app', 'ann', 'now'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    ids = list(LabelLog(tmp_path).ids())
    assert len(ids) >= 1000
    assert ids == [f"i{n}" for n in range(len(ids))]


# --- what holds ------------------------------------------------------------------------------------------------------


def test_entries_come_back_as_they_went_in(log: LabelLog) -> None:
    entries = [
        Entry("i1", Label("disputed", reason="unclear"), "label-studio", "bo", now(), None, {"task": 7}),
        Entry("i2", Label("labelled", (), ("Riß", "a b")), "import", "coco", now(), "lib:ö/a.jpg", {"line": 3}),
        Entry("i3", Label("skipped"), "decision", user_name(), now()),
    ]
    for entry in entries:
        log.append(entry)
    again = reopened(log)
    assert [again.state(e.id).entry for e in entries] == entries
    assert [again.history(e.id) for e in entries] == [[e] for e in entries]


def test_a_person_wins_over_imports_that_come_before_and_after(log: LabelLog) -> None:
    assert log.append_import(imported(CRACK))
    log.append(by_person(CLEAN))
    assert log.append_import(imported(HOLE))
    for seen in (log, reopened(log)):
        assert seen.person_decided("i1")
        assert seen.state("i1").label == CLEAN
        assert seen.state("i1").others == ()
        assert [e.label for e in seen.history("i1")] == [CRACK, CLEAN, HOLE]
        assert seen.versions("i1") == [("lib:a.jpg", HOLE)]


@pytest.mark.parametrize("origin", ["app", "label-studio", "decision"])
def test_the_newest_word_of_a_person_holds(log: LabelLog, origin: Any) -> None:
    log.append(by_person(CRACK))
    log.append(by_person(HOLE, origin))
    assert reopened(log).state("i1").label == HOLE


def test_history_tells_what_is_not_flushed_yet(log: LabelLog) -> None:
    log.append(imported(CRACK))
    assert [e.label for e in log.history("i1")] == [CRACK]


def test_the_same_import_is_logged_once(log: LabelLog) -> None:
    assert log.append_import(imported(CRACK))
    assert not log.append_import(imported(CRACK, at="later"))
    assert log.append_import(imported(CRACK, "lib:copy.jpg"))
    again = reopened(log)
    assert not again.append_import(imported(CRACK))
    assert not again.append_import(imported(CRACK, "lib:copy.jpg"))
    assert len(again.history("i1")) == 2
    assert again.state("i1").others == ()


def test_regions_in_another_order_are_the_same_label(log: LabelLog) -> None:
    both = CRACK.defects + HOLE.defects
    log.append_import(imported(Label("labelled", both)))
    assert not log.append_import(imported(Label("labelled", both[::-1])))


def test_a_first_import_without_a_label_is_not_logged_but_a_retraction_is(log: LabelLog) -> None:
    assert not log.append_import(imported(UNLABELLED))
    assert list(log.ids()) == []
    log.append_import(imported(CRACK))
    assert log.append_import(imported(UNLABELLED))
    assert not log.append_import(imported(UNLABELLED))
    assert reopened(log).state("i1").label == UNLABELLED
    assert [e.label for e in log.history("i1")] == [CRACK, UNLABELLED]


def test_copies_with_different_labels_are_disputed_and_all_versions_kept(log: LabelLog) -> None:
    log.append_import(imported(CRACK, "lib:a.jpg"))
    log.append_import(imported(HOLE, "lib:b.jpg"))
    log.append_import(imported(CRACK, "lib:c.jpg"))
    log.append_import(imported(CLEAN, "lib:d.jpg"))
    for seen in (log, reopened(log)):
        state = seen.state("i1")
        assert (state.label.status, state.label.reason) == ("disputed", DUPLICATE_LABELS)
        assert state.label.defects == CRACK.defects
        assert state.others == (("lib:b.jpg", HOLE), ("lib:d.jpg", CLEAN))
        assert seen.versions("i1") == [("lib:a.jpg", CRACK), ("lib:b.jpg", HOLE), ("lib:d.jpg", CLEAN)]
    log.append(by_person(HOLE, "decision"))
    assert log.state("i1").label == HOLE


def test_a_copy_without_a_label_contradicts_nobody_and_a_retraction_ends_the_dispute(log: LabelLog) -> None:
    log.append_import(imported(CRACK, "lib:a.jpg"))
    log.append_import(imported(HOLE, "lib:b.jpg"))
    log.append_import(imported(UNLABELLED, "lib:c.jpg"))
    assert log.state("i1").label.status == "disputed"
    log.append_import(imported(UNLABELLED, "lib:a.jpg"))
    assert log.state("i1").label == HOLE
    assert reopened(log).state("i1") == log.state("i1")


# --- renames ---------------------------------------------------------------------------------------------------------


def named(*names: str) -> Label:
    return Label("labelled", (), tuple(sorted(names)))


def test_a_chain_of_renames_and_a_class_made_later_under_an_old_name(log: LabelLog) -> None:
    log.append_import(imported(named("a"), id="old"))
    log.rename({"a": "b"}, "ann", "1")
    log.append_import(imported(named("a"), id="new"))
    log.append_import(imported(named("b"), id="middle"))
    log.rename({"b": "c"}, "ann", "2")
    for seen in (log, reopened(log)):
        assert [seen.state(id).label.classes for id in ("old", "new", "middle")] == [("c",), ("a",), ("c",)]
    log.rename({"a": "z"}, "ann", "3")
    for seen in (log, reopened(log)):
        assert [seen.state(id).label.classes for id in ("old", "new", "middle")] == [("c",), ("z",), ("c",)]
        assert seen.history("old")[0].label.classes == ("c",)


def test_a_swap_is_no_merge(log: LabelLog) -> None:
    log.append_import(imported(named("a"), id="i1"))
    log.append_import(imported(named("a", "b", "c"), id="i2"))
    log.rename({"a": "b", "b": "a"}, "ann", "swap")
    assert log.state("i1").label == named("b")
    assert log.state("i2").label == named("a", "b", "c")
    log.rename({"a": "b", "b": "a"}, "ann", "swap")
    assert reopened(log).state("i1").label == named("a")


def test_a_merge_ends_a_dispute_about_what_is_now_one_class(log: LabelLog) -> None:
    log.append_import(imported(named("scratch"), "lib:a.jpg"))
    log.append_import(imported(named("kratzer"), "lib:b.jpg"))
    before = log.key("i1")
    assert log.state("i1").label.status == "disputed"
    log.rename({"kratzer": "scratch"}, "ann", "merge")
    for seen in (log, reopened(log)):
        assert seen.state("i1").label == named("scratch")
        assert seen.state("i1").others == ()
        assert seen.key("i1") != before


def test_after_a_rename_a_source_that_says_the_new_name_says_nothing_new(log: LabelLog) -> None:
    log.append_import(imported(CRACK))
    log.rename({"crack": "riss"}, "ann", "rename")
    assert not log.append_import(imported(CRACK.renamed({"crack": "riss"})))
    assert log.append_import(imported(CRACK))


# --- against a model --------------------------------------------------------------------------------------------------


@dataclass
class Model:
    """The plainest log: every label rewritten at once by every rename."""

    imports: dict[str, dict[str, Label]] = field(default_factory=dict)
    person: dict[str, Label] = field(default_factory=dict)

    def rename(self, names: Mapping[str, str]) -> None:
        self.person = {id: label.renamed(names) for id, label in self.person.items()}
        for paths in self.imports.values():
            paths.update({path: label.renamed(names) for path, label in paths.items()})

    def append_import(self, id: str, path: str, label: Label) -> bool:
        known = self.imports.get(id, {})
        if known.get(path, UNLABELLED) == label:
            return False
        self.imports.setdefault(id, {})[path] = label
        return True

    def state(self, id: str) -> tuple[str, Label, tuple[tuple[str, Label], ...]]:
        if id in self.person:
            return "person", self.person[id], ()
        paths = self.imports.get(id)
        if not paths:
            return "", UNLABELLED, ()
        labelled = {p: v for p, v in paths.items() if v != UNLABELLED} or paths
        versions: list[tuple[str, Label]] = []
        for path, label in labelled.items():
            if label not in [v for _, v in versions]:
                versions.append((path, label))
        first = versions[0][1]
        if len(versions) > 1:
            first = Label("disputed", first.defects, first.classes, DUPLICATE_LABELS)
        return "import", first, tuple(versions[1:])


NAMES = ("a", "b", "c")
LABELS = st.one_of(
    st.just(UNLABELLED),
    st.sets(st.sampled_from(NAMES)).map(lambda names: named(*names)),
    st.sampled_from(NAMES).map(lambda name: Label("labelled", (Defect(name, (0.0, 0.0, 1.0, 2.5)),))),
)
IDS, PATHS = st.sampled_from(("i1", "i2")), st.sampled_from(("p1", "p2", "p3"))
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("import"), IDS, PATHS, LABELS),
        st.tuples(st.just("import"), IDS, PATHS, LABELS),
        st.tuples(st.just("person"), IDS, LABELS),
        st.tuples(st.just("rename"), st.dictionaries(st.sampled_from(NAMES), st.sampled_from(NAMES), max_size=2)),
        st.tuples(st.just("reopen")),
    ),
    max_size=25,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(OPERATIONS)
def test_a_log_does_what_the_plain_model_does(operations: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log, model = LabelLog(Path(folder)), Model()
        seen: dict[tuple[str, str], Any] = {}
        keys: dict[tuple[str, Any], str] = {}
        for kind, *rest in operations:
            if kind == "import":
                id, path, label = rest
                assert log.append_import(imported(label, path, id)) == model.append_import(id, path, label)
            elif kind == "person":
                log.append(by_person(rest[1], id=rest[0]))
                model.person[rest[0]] = rest[1]
            elif kind == "rename":
                log.rename(rest[0], "ann", "rename")
                model.rename(rest[0])
            else:
                log = reopened(log)
            for id in ("i1", "i2"):
                state, expected = log.state(id), model.state(id)
                assert (state.label, state.others) == expected[1:]
                assert log.person_decided(id) == (expected[0] == "person")
                # The key tells states apart, and nothing else.
                key = log.key(id)
                assert seen.setdefault((id, key), expected) == expected
                assert keys.setdefault((id, expected), key) == key


def test_every_line_is_one_json_object_that_names_who_and_when(log: LabelLog) -> None:
    log.append_import(imported(CRACK))
    log.append(by_person(HOLE, "label-studio"))
    log.rename({"hole": "pore"}, "bo", "renamed hole to pore")
    log.close()
    lines = [json.loads(line) for line in (log.segments.folder / "000001.jsonl").read_text().splitlines()]
    assert [line.get("origin") for line in lines] == ["import", "label-studio", None]
    assert [line["who"] for line in lines] == ["voc", "ann", "bo"]
    assert all(line["at"].endswith("Z") for line in lines)
    assert lines[2]["names"] == {"hole": "pore"}
