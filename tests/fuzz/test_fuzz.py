"""A short run of the fuzzer over every target, and that its own judgement can be relied on."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.fuzz import bad, child, datasets, mutate, run
from tests.fuzz.child import Batch
from tests.fuzz.kinds import CRASH, HANG, OK, OUTSIDE, TRACEBACK, WRONG
from tests.fuzz.run import Options, Tally, fuzz
from tests.fuzz.targets import TARGETS

INPUTS = 60  # of a target with share 1; `make fuzz` reads as many as its minutes allow


@pytest.fixture(scope="module")
def tally(tmp_path_factory: pytest.TempPathFactory) -> Tally:
    return fuzz(Options(list(TARGETS), inputs=INPUTS, out=tmp_path_factory.mktemp("fuzz"), quiet=True, debug=False))


@pytest.mark.parametrize("name", TARGETS)
def test_no_mutated_input_is_read_wrongly(name: str, tally: Tally) -> None:
    failures = [one for one in tally.failures.values() if one.target == name]
    assert not failures, f"python -m tests.fuzz.run --only {name} --count 1 --seed-from {failures[0].seed}"
    assert tally.counts[name].total() >= INPUTS * TARGETS[name].share


@pytest.mark.parametrize("name", sorted(datasets.EVIDENCE))
def test_whole_data_sets_are_read_without_a_fault(name: str, tmp_path: Path) -> None:
    """What the oracle counts in the files is what the reader finds in them."""
    datasets.prepare(name)
    for number, base in enumerate(datasets._bases[name]):
        root = tmp_path / str(number)
        for path, content in base.files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
        case = {"fully": True, "limits": {}, "discover": True, "options": base.options}
        datasets.check(name, case, root)
        if name not in ("images", "class_folders"):
            assert datasets.evidence(name, root, base.options).total() or base.options.get("class_from") == "values"


@pytest.mark.parametrize("name", ["coco", "brush", "studio", "config"])
def test_a_seed_gives_the_same_input_again(name: str, tmp_path: Path) -> None:
    TARGETS[name].prepare()
    made: list[Any] = []
    for folder in ("a", "b"):
        root = tmp_path / folder / "root"
        root.mkdir(parents=True)
        case = TARGETS[name].make(Random("x:7"), root)
        files = {path.relative_to(root): path.is_file() for path in root.rglob("*")}
        made.append((repr(case), files))
    assert made[0] == made[1]


def test_json_is_damaged_in_every_part() -> None:
    found = {"a": [1, {"b": "c"}], "d": None}
    changed = [repr(mutate.value(Random(seed), found, Path("/x"))) for seed in range(300)]
    assert len(set(changed)) > 100
    assert found == {"a": [1, {"b": "c"}], "d": None}


# --- what a child reports, and what its parent makes of a child that is gone ------------------------------------------


@pytest.mark.parametrize(
    ("what", "kind"), [("fine", OK), ("outside", OUTSIDE), ("two lines", WRONG), ("zero", TRACEBACK)]
)
def test_a_child_tells_how_an_input_failed(
    what: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    reader = child.Reader(tmp_path, tmp_path / "failures", [0.0] * 4)
    monkeypatch.setattr(reader, "_prepare", lambda number, target: None)  # no limit on this process's own memory
    found = reader.batch(0, bad.TARGETS[what], 5, 1, 1.0)
    assert dict(found.counts) == {kind: 1}
    assert found.next_seed == 6
    if kind != OK:
        command = f"--only {what} --seed-from 5 --count 1"
        assert command in (tmp_path / "failures" / f"{what}-5" / "what.txt").read_text()


@pytest.mark.parametrize(("what", "kind"), [("killed", CRASH), ("waits", HANG)])
def test_a_child_that_is_gone_is_replaced(
    what: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The input is counted, the next ones are read by another process."""
    monkeypatch.setattr(run, "SECONDS", 0.5)
    options = Options([what], inputs=2, out=tmp_path / "out", quiet=True, debug=False, home=bad.__name__)
    tally = fuzz(options)
    assert dict(tally.counts[what]) == {kind: 2}
    assert (tmp_path / "out" / f"{what}-0" / "what.txt").is_file()


def test_a_failure_is_counted_each_time_and_told_once() -> None:
    tally = Tally()
    one = child.Failure("coco", 1, TRACEBACK, "KeyError", "curate/x.py:1")
    batch = Batch("coco", failures=[one])
    batch.counts[TRACEBACK] += 1
    assert [tally.add(batch), tally.add(batch)] == [[one], []]
    assert (tally.inputs, tally.failed) == (2, 2)
    assert "2 failures" in tally.table()
    assert tally.to_json()["targets"]["coco"] == {"inputs": 2, TRACEBACK: 2}
