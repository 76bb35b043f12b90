"""Inputs that once ended in a traceback, a crash or a hang, each as small as it could be made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate import state, tables
from curate.data import Record, Reject
from curate.errors import CurateError
from curate.index import reading, rounds
from curate.index.intake import SourceRules
from curate.labels.log import LabelLog, lead_times
from curate.labels.splits import Decisions
from curate.project import LimitsConfig, Project, ProjectConfig
from curate.tables import Table
from curate.vectors import store as vectors
from curate.vectors.store import Vectors
from labeling import results
from labeling.consensus import LoggedAnnotations
from tests import fakes

LINE: dict[str, Any] = {
    "id": "a" * 64,
    "origin": "import",
    "who": "coco",
    "at": "2026-01-01T00:00:00Z",
    "path": "library:a.png",
    "digest": "d",
    "status": "labelled",
    "defects": [{"label": "crack", "box": [1, 2, 3, 4]}],
    "extra": {"lead_time": 3.0},
}
DEFECT = LINE["defects"][0]


def log(folder: Path, line: Any) -> Path:
    folder.mkdir()
    text = line if isinstance(line, str) else json.dumps(line)
    (folder / "000001.jsonl").write_text(f"{text}\n")
    return folder


def whole_log(folder: Path) -> None:
    """Everything that is ever read of a label log."""
    book = LabelLog(folder, ("crack",))
    for id in book.ids():
        book.state(id), book.key(id), book.versions(id), list(book.entries())
    list(lead_times(folder))


@pytest.mark.parametrize(
    "changed",
    [
        {"defects": [DEFECT | {"box": [1, 2]}]},
        {"defects": [DEFECT | {"box": [1, 2, 3, float("nan")]}]},
        {"defects": [{"label": "crack"}]},
        {"defects": [DEFECT | {"label": ["crack"]}]},
        {"defects": [DEFECT | {"rle": 5}]},
        {"defects": 5},
        {"classes": [1, "crack"]},
        {"status": "clean"},
        {"status": None},
        {"digest": [1]},
        {"id": 5},
        {"who": None},
        {"path": []},
        {"extra": []},
        {"extra": {"others": {"x": {"status": "labelled", "defects": [{}]}}}},
        {"event": "rename", "names": [1]},
        {"event": "rename", "names": {"crack": ["x"]}},
    ],
)
def test_a_damaged_line_of_the_label_log_is_reported_in_one_line(changed: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CurateError, match=r"damaged line in an append-only log.*curate restore") as error:
        whole_log(log(tmp_path / "labels", LINE | changed))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a":' * 100_000, "null", '"x"', "9" * 5000])
def test_a_line_that_is_no_entry_is_damage(line: str, tmp_path: Path) -> None:
    with pytest.raises(CurateError, match=r"000001.jsonl:1: damaged line"):
        whole_log(log(tmp_path / "labels", line))


@pytest.mark.parametrize("of", ["x", {"7@x": ["2026"]}, {"7@x": 5}])
def test_a_damaged_note_on_annotations_is_reported(of: Any, tmp_path: Path) -> None:
    line = {**LINE, "origin": "label-studio", "extra": {"task": "1@x", "of": of}}
    book = LabelLog(log(tmp_path / "labels", json.dumps(line, separators=(",", ":"))))
    with pytest.raises(CurateError, match=r"damaged line in an append-only log"):
        LoggedAnnotations.of(book)


@pytest.mark.parametrize("kind", ["a\nb", "\r\n"])
def test_a_reason_for_a_dispute_is_one_line(kind: str) -> None:
    label = results.label_in([{"id": "r", "type": kind, "value": {"x": 1}}], (16, 12))
    assert label.status == "disputed"
    assert "\n" not in (label.reason or "")


def test_a_reason_for_quarantine_is_one_line(tmp_path: Path) -> None:
    rules = SourceRules(tmp_path, LimitsConfig(), {}, frozenset({"crack"}))
    fakes.save_image(tmp_path / "a.jpg")
    found = [Reject("a.jpg", "2 label files: a\nb.xml"), Record("a.jpg", classes=("a\nb",), labelled=True)]
    found += [Record("../a\nb.jpg", labelled=True)]
    outcomes = reading.examine_records([(one, None) for one in found], "src", rules, rules.digest)
    assert all(one.row.problem and "\n" not in one.row.problem for one in outcomes)


def test_a_folder_in_the_place_of_a_log_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "000001.jsonl").mkdir()
    with pytest.raises(CurateError, match=r"000001.jsonl cannot be read: Is a directory"):
        LabelLog(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        {"group": "a", "split": "nothing"},
        {"group": "a", "split": ["train"]},
        {"group": ["a"], "split": "train"},
        {"join": "a", "into": "a"},
        {"join": ["a"], "into": "b"},
        {"join": "a", "into": None},
        {"split": "train"},
    ],
)
def test_a_damaged_split_is_reported_in_one_line(line: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CurateError, match=r"000001.jsonl:1: damaged line"):
        Decisions(log(tmp_path / "splits", line))


def test_groups_that_are_joined_in_a_circle_do_not_hang(tmp_path: Path) -> None:
    circle = [{"join": "a", "into": "b"}, {"join": "b", "into": "c"}, {"join": "c", "into": "a"}]
    folder = log(tmp_path / "splits", "\n".join(map(json.dumps, circle)))
    with pytest.raises(CurateError, match=r"000001.jsonl:3: damaged line"):
        Decisions(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"schema": 1e400}', '{"schema": []}', "9" * 5000])
def test_a_damaged_state_is_reported_in_one_line(text: str, tmp_path: Path) -> None:
    config = ProjectConfig.model_validate({"sources": [{"format": "images", "data": "data"}]})
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "state.json").write_text(text)
    with pytest.raises(CurateError, match=r"state.json is damaged"):
        state.recorded(Project(tmp_path, config))


# --- rounds -----------------------------------------------------------------------------------------------------------

PICK: dict[str, Any] = {"id": "a" * 64, "path": "library:a.png", "slot": "audit", "reason": "", "rank": 0, "score": 0.5}


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{}", '{"round": 1e400}', '{"round": 1, "withdrawn": [[1]]}'])
def test_a_damaged_round_is_reported_in_one_line(text: str, tmp_path: Path) -> None:
    made = rounds.write(tmp_path, {"round": 1}, [PICK])
    (made.folder / rounds.MANIFEST).write_text(text)
    with pytest.raises(CurateError, match=r"round.json is damaged or missing"):
        rounds.every(tmp_path)


@pytest.mark.parametrize("columns", [{"id": [1]}, {"path": ["x"]}, {"id": ["a"], "rank": ["x"]}])
def test_picks_with_other_columns_are_damage(columns: dict[str, Any], tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    made = rounds.write(tmp_path, {"round": 1}, [PICK], {"id": ["a"], "class crack": [0.5]})
    assert made.picks()[0]["slot"] == "audit"
    pyarrow.parquet.write_table(pa.table(columns), made.folder / rounds.PICKS)
    with pytest.raises(CurateError, match=r"picks.parquet is damaged"):
        made.picks()
    pyarrow.parquet.write_table(pa.table({"class crack": ["x"]}), made.folder / rounds.PREDICTED)
    with pytest.raises(CurateError, match=r"predicted.parquet is damaged"):
        made.predicted()


# --- tables -----------------------------------------------------------------------------------------------------------


def damaged(path: Path, pattern: str, change: Callable[[bytes], bytes]) -> None:
    for file in sorted(path.glob(pattern)):
        file.write_bytes(change(file.read_bytes()))


def everything(folder: Path) -> None:
    found = tables.latest(folder)
    assert found is not None
    found.ids(), found.read(["a"], ["margin"]), list(found.chunks(["margin"]))


@pytest.mark.parametrize("pattern", ["data/*", "_versions/*.manifest"])
@pytest.mark.parametrize(
    "change", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b[8:], lambda b: b"\xff" * len(b)]
)
def test_a_damaged_table_is_reported_in_one_line(
    pattern: str, change: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    """Lance raises ValueError, OSError or a panic of its own, which is no Exception."""
    path = tmp_path / "scores" / "model-1.lance"
    table = Table.create(path, {"margin": "float32"})
    table.append({"id": ["a", "b"], "margin": [1, 2]})
    damaged(path, pattern, change)
    with pytest.raises(CurateError, match=r"cannot be read .*remove its folder") as error:
        everything(path.parent)
    assert "\n" not in str(error.value)


def test_a_table_with_other_columns_is_reported_in_one_line(tmp_path: Path) -> None:
    import lance
    import pyarrow as pa

    path = tmp_path / "model-1.lance"
    lance.write_dataset(pa.table({"id": pa.array([[1.0] * 3], pa.list_(pa.float16(), 3))}), str(path))
    with pytest.raises(CurateError, match=r"cannot be read"):
        Table(path).ids()
    with pytest.raises(CurateError, match=r"cannot be read"):
        Table(path).read(["a"], ["margin"])


@pytest.mark.parametrize("about", [{}, {"key": "k"}, {"key": "k", "dim": "x"}, {"key": "k", "dim": "5"}, {"dim": "-1"}])
def test_vectors_that_are_none_of_ours_are_reported(about: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "vectors" / "texture-1.lance"
    columns = {"tile": "int16", **dict.fromkeys(vectors.PLACE, "int32"), "vector": "float16[4]"}
    table = Table.create(path, columns, about)
    table.append({"id": ["a"], "tile": [-1], **{name: [0] for name in vectors.PLACE}, "vector": np.ones((1, 4))})
    with pytest.raises(CurateError, match=r"is not a vector table.*curate embed"):
        vectors.open_latest(tmp_path)


def test_damaged_vectors_are_not_taken_for_missing_ones(tmp_path: Path) -> None:
    path = tmp_path / "vectors" / "texture-k.lance"
    made = Vectors.create(path, "k", 4)
    made.append(["a"], [np.zeros((1, 4), np.int32)], [np.ones((1, 4), np.float16)])
    damaged(path, "data/*", lambda content: b"\xff" * len(content))
    with pytest.raises(CurateError, match=r"cannot be read"):
        vectors.open_latest(tmp_path).whole(["a"])


@pytest.mark.parametrize("text", ["[", "5", "[1]", '{"a": 1}', "[" * 100_000])
def test_the_classes_of_a_damaged_table_are_reported(text: str, tmp_path: Path) -> None:
    with pytest.raises(CurateError, match=r"its classes are not a list of names"):
        Table.create(tmp_path / "model-1.lance", {"margin": "float32"}, {"classes": text}).classes  # noqa: B018
