"""`curate anomaly` on a real index: the table, what the App shows, what labels change, odd pools in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from curate import files, tables
from curate.admin import gc
from curate.index import app_views, sync, unusual
from curate.index.dataset import Index
from curate.ops import anomaly as measuring
from curate.project import Project
from curate.select import anomaly as scores
from curate.select import anomaly_table
from curate.select import run as selecting
from curate.select.run import SelectRequest
from curate.tables import Table
from curate.vectors.store import Vectors
from tests import fakes
from tests.conftest import LINE, Make
from tests.curate.cli.test_cli import Run, failed, ok, run  # noqa: F401 - a fixture
from tests.curate.select.test_run import DIM, embedded, label, ready  # noqa: F401 - a fixture

BOXES = np.array([(0, 0, 32, 24), (0, 0, 16, 24), (16, 0, 16, 24)], np.int32)


def table_of(project: Project) -> Table:
    (path,) = (path for path in tables.listed(project.work / "scores") if tables.name_of(path) == "anomaly")
    return Table(path)


def planted(project: Project, id: str, seed: int = 7) -> None:
    """Vectors of one cloud for all images, but for the second window of this one."""
    ids = sorted(Index(project).ids())
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((len(ids), 3, DIM)).astype(np.float32) * 0.2 + 1
    values[ids.index(id), 2] *= -1
    values /= np.linalg.norm(values, axis=2, keepdims=True)
    table = Vectors.create(project.work / "vectors" / f"planted-{seed}.lance", str(seed), DIM)
    table.append(ids, [BOXES] * len(ids), list(values))


def unlabelled(project: Project) -> list[str]:
    return sorted(id for id, status in Index(project).rows("status") if status == "unlabelled")


def test_the_table_tells_the_window_and_the_app_shows_it(ready: Project, run: Run) -> None:  # noqa: F811
    odd = unlabelled(ready)[11]
    planted(ready, odd)
    report = ok(run("anomaly", "-p", ready.folder, "--json"))
    assert (report["vectors"], report["images"], report["searched"], report["fresh"]) == ("planted", 76, 76, True)
    first = report["unusual"][0]
    assert (first["id"], first["box"]) == (odd, [16, 0, 16, 24])
    table = table_of(ready)
    assert (table.metadata["vectors"], table.metadata["key"]) == ("planted", "7")
    row = {name: values[0] for name, values in table.read([odd], list(anomaly_table.COLUMNS)).items()}
    assert (row["tile"], row["x"], row["y"], row["w"], row["h"]) == (1, 16, 0, 16, 24)
    assert row["share"] == pytest.approx(1 - 1 / (3 * 76))
    dataset = Index(ready).dataset
    sample = dataset.match({"content_id": odd}).first()
    assert sample.anomaly == first["percent"] == pytest.approx(100 * row["share"], abs=1e-4)
    (region,) = sample.unusual.detections
    assert (region.label, region.bounding_box) == (None, [0.5, 0, 0.5, 1])
    view = dataset.load_saved_view(unusual.VIEW)
    assert view.first().content_id == odd
    assert set(view.values("content_id")) == set(unlabelled(ready))
    groups = {group.name: group.paths for group in dataset.app_config.sidebar_groups}
    assert ("anomaly" in groups["scores"], "unusual" in groups["predictions"]) == (True, True)


def test_the_same_again_changes_nothing_and_other_vectors_are_another_table(ready: Project, run: Run) -> None:  # noqa: F811
    first = measuring.run(ready)
    before = dict(Index(ready).rows("last_modified_at"))
    again = ok(run("anomaly", "-p", ready.folder, "--json"))
    assert (again["fresh"], again["table"]) == (False, first.table)
    assert [entry["id"] for entry in again["unusual"]] == [entry["id"] for entry in first.unusual]
    assert dict(Index(ready).rows("last_modified_at")) == before
    assert "nothing has changed since" in run("anomaly", "-p", ready.folder)[1]
    planted(ready, unlabelled(ready)[0])
    other = measuring.run(ready)
    assert (other.fresh, other.vectors) == (True, "planted")
    assert Path(other.table) != Path(first.table)
    assert [path.path.name for path in gc.find(ready)] == [], "the superseded table is gone"
    assert measuring.run(ready, "drawn").vectors == "drawn"
    assert "unknown vectors 'dino'; allowed: drawn, planted" in failed(
        run("anomaly", "-p", ready.folder, "--encoder", "dino")
    )


def test_select_writes_it_and_does_not_take_it_for_a_model(ready: Project) -> None:  # noqa: F811
    selecting.run(ready, SelectRequest("5", strategy="random"))
    assert not (ready.work / "scores").exists(), "no strategy has asked for it"
    selecting.run(ready, SelectRequest("5", strategy="anomaly"), dry=True)
    assert not (ready.work / "scores").exists()
    chosen = selecting.run(ready, SelectRequest("5", strategy="anomaly"))
    known = anomaly_table.windows(ready.work, [row["id"] for row in chosen.picks])
    assert len(known) == 5
    told = chosen.picks[0]
    percent = known[told["id"]].percent
    assert f"than {np.floor(10 * percent) / 10:g} % of windows" in told["reason"]
    assert Index(ready).dataset.exists(unusual.PERCENT).count("id") == 60
    assert selecting.run(ready, SelectRequest("6")).manifest["scores"] is None
    assert not measuring.run(ready).fresh


def test_a_table_whose_writing_was_killed_is_written_whole(ready: Project) -> None:  # noqa: F811
    path = Path(measuring.run(ready).table)
    whole = table_of(ready).read(table_of(ready).ids(), ["score"])["score"]
    metadata = Table(path).metadata
    shutil.rmtree(path)
    Table.create(path, anomaly_table.COLUMNS, metadata)  # as after a kill between creation and rows
    Index(ready).set({unusual.PERCENT: dict.fromkeys(unlabelled(ready)[:5], None)})
    report = measuring.run(ready)
    assert (report.fresh, report.shown) == (True, 60)
    assert np.array_equal(table_of(ready).read(table_of(ready).ids(), ["score"])["score"], whole)
    assert Index(ready).dataset.exists(unusual.PERCENT).count("id") == 60


def test_only_the_most_unusual_are_shown_and_those_of_before_are_not(
    ready: Project,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measuring.run(ready)
    monkeypatch.setattr(anomaly_table, "SHOWN", 4)
    report = measuring.run(ready)
    dataset = Index(ready).dataset
    assert report.shown == 4
    assert set(dataset.exists(unusual.PERCENT).values("content_id")) == {entry["id"] for entry in report.unusual[:4]}
    assert dataset.exists("unusual").count("id") == 4
    assert dataset.load_saved_view(unusual.VIEW).values("content_id")[0] == report.unusual[0]["id"]
    assert not dataset.match({"label_digest": None}).count("id")
    sync.run(ready, rebuild=True)
    app_views.arrange(ready)
    assert not measuring.run(ready).fresh
    assert Index(ready).dataset.exists(unusual.PERCENT).count("id") == 4


# --- labels -----------------------------------------------------------------------------------------------------------


def distances(project: Project) -> dict[str, float]:
    measuring.run(project)
    table = table_of(project)
    ids = list(table.ids())
    return dict(zip(ids, table.read(ids, ["distance"])["distance"].tolist(), strict=True))


def test_clean_images_join_the_bank_and_what_is_called_a_defect_leaves_it(ready: Project) -> None:  # noqa: F811
    """Two unusual images that are alike, in a bank where one neighbour is not enough: k is 5."""
    index = Index(ready)
    odd, twin = unlabelled(ready)[10], unlabelled(ready)[40]
    assert dict(index.rows("group"))[odd] != dict(index.rows("group"))[twin]
    ids = sorted(index.ids())
    rng = np.random.default_rng(3)
    values = rng.standard_normal((len(ids), 3, DIM)).astype(np.float32)
    rare = rng.standard_normal((4, DIM)) * 3
    for number, id in enumerate((odd, twin, *unlabelled(ready)[50:54])):  # one of each: six alike in one window
        values[ids.index(id), 1] = rare[0] + 0.01 * number
    values /= np.linalg.norm(values, axis=2, keepdims=True)
    Vectors.create(ready.work / "vectors" / "rare-0.lance", "0", DIM).append(ids, [BOXES] * len(ids), list(values))
    before = distances(ready)

    def alone(id: str) -> float:
        """The distance of the window in question, not of the image's most unusual one."""
        from curate.select import build_pool

        pool = build_pool.build(Index(ready), None, None, ()).pool
        found = scores.neighbours(pool)
        row = int(pool.rows_of([id])[0])
        return float(scores.distances(pool, found)[(found.rows == row) & (found.tiles == 0)][0])

    first = alone(odd)
    label(ready, twin, "crack")
    assert alone(odd) > first + 0.5, "one of its five neighbours is called a defect"
    label(ready, twin)
    assert alone(odd) < 0.1, "what is called clean is ordinary by itself"
    after = distances(ready)
    assert after.keys() == before.keys()
    assert after[odd] <= before[odd]
    assert twin not in Index(ready).dataset.load_saved_view(unusual.VIEW).values("content_id")


# --- bad input --------------------------------------------------------------------------------------------------------


def built(make: Make, folder: Path, groups: dict[str, int], alike: bool = False) -> Project:
    """`groups`: by camera, that many coils of one image each."""
    number = 0
    for camera, count in groups.items():
        for _ in range(count):
            path = folder / "line" / "A" / camera / f"coil{number}_{number}.png"
            fakes.save_image(path, 32, 24, seed=number)
            number += 1
    project = make([LINE | {"data": folder / "line", "stratum": "{camera}"}])
    sync.run(project)
    embedded(project)
    if alike:
        ids, same = sorted(Index(project).ids()), np.ones((3, DIM), np.float32) / DIM**0.5
        Vectors.create(project.work / "vectors" / "alike-0.lance", "0", DIM).append(
            ids, [BOXES] * len(ids), [same] * len(ids)
        )
    return project


@pytest.mark.parametrize(
    ("groups", "alike", "line"),
    [
        ({"cam0": 1}, False, "all images to compare with are of one group: none of it can be told to be unusual"),
        ({"cam0": 4}, False, "images are compared with 4 groups alone"),
        ({"cam0": 20}, True, "all images are alike to these vectors: none is more unusual than another"),
        (
            {"cam0": 60, "cam1": 3},
            False,
            "strata of fewer than 50 groups are compared with all strata, not with themselves: cam1",
        ),
    ],
)
def test_weak_comparisons_are_told_in_one_line_each(
    make: Make,
    tmp_path: Path,
    run: Run,  # noqa: F811
    groups: dict[str, int],
    alike: bool,
    line: str,
) -> None:
    project = built(make, tmp_path, groups, alike)
    for command in (("anomaly",), ("anomaly",), ("select", "--strategy", "anomaly", "--budget", "2", "--plain")):
        code, _, err = run(*command, "-p", project.folder)
        assert code == 0, err
        told = [text for text in err.splitlines() if line in text]
        assert len(told) == 1, (command, err)
        assert "Traceback" not in err
        assert "RuntimeWarning" not in err
    assert np.isfinite(table_of(project).read(table_of(project).ids(), ["score", "share"])["score"]).all()


def test_when_every_image_is_called_defective_nothing_is_ordinary(make: Make, tmp_path: Path) -> None:
    project = built(make, tmp_path, {"cam0": 7})
    for id in Index(project).ids():
        label(project, id, "crack")
    Index(project).set({"split": dict.fromkeys(Index(project).ids(), "train")})
    report = measuring.run(project)
    assert any("people call every image defective" in note for note in report.notes)
    assert report.unusual == []


def test_vectors_of_another_encoder_are_told(ready: Project, run: Run) -> None:  # noqa: F811
    table = ready.work / "vectors" / "drawn-0000.lance"
    copied = ready.work / "vectors" / "texture-1f0c.lance"
    shutil.copytree(table, copied)
    Table(copied).touch()
    for command in ("anomaly", "select"):
        line = failed(run(command, "-p", ready.folder, "--json"))
        assert "texture-1f0c.lance holds vectors of another encoder: its key is 0000, its name says 1f0c" in line
        assert "Run: curate embed" in line
    shutil.rmtree(copied)
    line = failed(run("select", "-p", ready.folder, "--encoder", "pretrained"))
    assert "unknown vectors 'pretrained'; allowed: drawn. Run: curate embed --encoder NAME" in line


def test_vectors_of_an_older_model_are_told(ready: Project, run: Run) -> None:  # noqa: F811
    shutil.move(ready.work / "vectors" / "drawn-0000.lance", ready.work / "vectors" / "model-0000.lance")
    assert not any("of model" in note for note in measuring.run(ready).notes)
    files.write_json(ready.work / "models" / "candidate.json", {"model": "0000"})
    assert not any("of model" in note for note in measuring.run(ready).notes)
    files.write_json(ready.work / "models" / "production.json", {"model": "abcd"})
    code, _, err = run("select", "-p", ready.folder, "--strategy", "anomaly", "--dry-run")
    assert code == 0, err
    assert "the vectors are those of model 0000, the current one is abcd. Run: curate embed" in " ".join(err.split())


def test_the_plain_name_of_an_encoder_finds_its_network(ready: Project) -> None:  # noqa: F811
    shutil.move(ready.work / "vectors" / "drawn-0000.lance", ready.work / "vectors" / "dense-lite0-0000.lance")
    planted(ready, unlabelled(ready)[0])
    assert measuring.run(ready, "dense").vectors == "dense-lite0"
    assert measuring.run(ready, "dense-lite0").vectors == "dense-lite0"
    assert measuring.run(ready).vectors == "planted"
