"""The table of files: what a run saw, in its order, and what earlier runs had."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import CurateError
from curate.index.file_ledger import MISSING, OK, QUARANTINED, FileRow, Ledger
from curate.paths import printable


def ok(
    reference: str, id: str, group: str | None = None, stratum: str | None = None, note: str | None = None
) -> FileRow:
    return FileRow(reference, f"print-{reference}", OK, id, group, stratum, note=note)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "work" / "files.sqlite") as opened:
        opened.begin()
        yield opened


def test_a_row_comes_back_as_it_went_in(ledger: Ledger) -> None:
    row = FileRow("lib:ö a.jpg", "f", QUARANTINED, "id", "g", "A/c1", 'it\'s "bad"', "l.csv", 7, "note")
    ledger.save([row])
    assert ledger.find(["lib:ö a.jpg"]) == {"lib:ö a.jpg": row}
    assert ledger.find(["lib:b.jpg"]) == {}
    assert ledger.seen(QUARANTINED) == [row]
    assert ledger.seen(OK) == []


def test_a_name_that_is_no_utf8_is_kept_in_escaped_form(ledger: Ledger) -> None:
    name = "lib:" + os.fsdecode(b"gr\xfcn.jpg")
    ledger.save([FileRow(name, "f", QUARANTINED, problem=f"bad {name}", label_file=name)])
    found = ledger.find([name]).get(printable(name))
    assert found is not None
    assert found.reference == "lib:gr\\udcfcn.jpg"
    assert found.fingerprint == "f"


def test_images_are_in_the_order_of_their_first_file_and_files_in_theirs(ledger: Ledger) -> None:
    ledger.save([ok("z", "i2", "g2"), ok("b", "i1", "g1", "B"), ok("a", "i2", "g3", "C"), ok("y", "i2", "g2", "A")])
    ledger.save([ok("c", "i1"), FileRow("q", "", QUARANTINED, "i9"), FileRow("m", "", MISSING)])
    assert list(ledger.images()) == [
        ("i2", ["z", "a", "y"], ["g2", "g3"], "A"),
        ("i1", ["b", "c"], ["g1"], "B"),
    ]
    assert ledger.duplicates() == 3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5), st.none() | st.integers(0, 3)), max_size=60))
def test_images_against_plain_dictionaries(rows: list[tuple[int, int, int | None]]) -> None:
    with Ledger(Path(":memory:")) as ledger:
        ledger.begin()
        ledger.save(ok(f"f{f}", f"i{i}", f"g{g}" if g is not None else None) for f, i, g in rows)
        files: dict[int, tuple[int, int | None]] = {}
        for file, image, group in rows:
            files.pop(file, None)  # a file that is named again stands where it was named last
            files[file] = (image, group)
        expected: dict[str, tuple[list[str], list[str]]] = {}
        for file, (image, group) in files.items():
            references, groups = expected.setdefault(f"i{image}", ([], []))
            references.append(f"f{file}")
            if group is not None and f"g{group}" not in groups:
                groups.append(f"g{group}")
        assert [(id, r, g) for id, r, g, _ in ledger.images()] == [(id, *both) for id, both in expected.items()]
        assert ledger.duplicates() == len(files) - len(expected)


def test_a_file_of_an_earlier_run_is_gone_unless_its_image_has_another(tmp_path: Path) -> None:
    for references in (["a", "b", "c"], ["a"]):
        with Ledger(tmp_path / "l") as ledger:
            ledger.begin()
            ledger.save(ok(r, {"a": "i1", "b": "i1", "c": "i2"}[r]) for r in references)
            ledger.finish()
    with Ledger(tmp_path / "l") as ledger:
        assert ledger.run == 2
        assert ledger.gone() == ["c"]
        assert [row.reference for row in ledger.seen(OK)] == ["a"]
        ledger.begin()
        ledger.save([ok("a", "i1"), ok("moved", "i2")])
        assert ledger.gone() == []


def test_a_quarantined_file_is_not_gone(ledger: Ledger) -> None:
    ledger.save([ok("a", "i1")])
    ledger.begin()
    ledger.save([FileRow("a", "f", QUARANTINED, "i1", problem="bad")])
    assert ledger.gone() == []


def test_all_rows_of_a_batch_or_none(ledger: Ledger) -> None:
    def rows() -> Iterator[FileRow]:
        yield ok("a", "i1")
        raise ValueError("killed")

    with pytest.raises(ValueError, match="killed"):
        ledger.save(rows())
    assert ledger.find(["a"]) == {}


def test_forget_keeps_rows_but_no_fingerprint(ledger: Ledger) -> None:
    ledger.save([ok("a", "i1"), ok("b", "i2")])
    ledger.forget()
    assert [row.fingerprint for row in ledger.seen(OK)] == ["", ""]


def test_notes_are_counted_the_most_frequent_first(ledger: Ledger) -> None:
    ledger.save([ok("a", "i1", note="y"), ok("b", "i2", note="x"), ok("c", "i3", note="y"), ok("d", "i4")])
    assert list(ledger.notes().items()) == [("y", 2), ("x", 1)]


def test_a_damaged_table_says_that_it_can_be_deleted(tmp_path: Path) -> None:
    (tmp_path / "files.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(CurateError, match=r"files\.sqlite: .*Delete it: the next curate index reads every file again"):
        Ledger(tmp_path / "files.sqlite")


def test_a_run_that_was_cut_short_leaves_no_file_missing(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        ledger.begin()
        ledger.save([ok("a", "i1"), ok("b", "i2")])
        ledger.finish()
    with Ledger(tmp_path / "l") as ledger:
        ledger.begin()
        ledger.save([ok("a", "i1")])
    with Ledger(tmp_path / "l") as ledger:
        assert ledger.gone() == []
        assert [row.reference for row in ledger.seen(OK)] == ["a", "b"]
