"""`curate select` and `curate duplicates` on a real index: rounds that are written whole, shown, replaced or kept."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.admin import gc
from curate.data import Label
from curate.errors import CurateError
from curate.index import app_edits, rounds, sync
from curate.index.dataset import Index
from curate.labels.log import Entry, LabelLog, now
from curate.project import Project, load
from curate.select import build_pool
from curate.select import run as selecting
from curate.select.rules import SelectionRules
from curate.select.run import SelectRequest
from curate.tables import Table
from curate.vectors.store import Vectors
from tests import fakes, forked
from tests.conftest import LIBRARY, LINE, Make
from tests.curate.cli.test_cli import Run, failed, ok, run  # noqa: F401 - a fixture

DIM = 16


def embedded(project: Project, seed: int = 0, spoilt: int = 0, only: int | None = None) -> None:
    """Drawn vectors for every image (two windows each) in place of computed ones: fast, and as good for this."""
    ids = sorted(Index(project).ids())[:only]
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((len(ids), 3, DIM)).astype(np.float32)
    values /= np.linalg.norm(values, axis=2, keepdims=True)
    values[:spoilt] = np.nan
    boxes = np.array([(0, 0, 32, 24), (0, 0, 16, 24), (16, 0, 16, 24)], np.int32)
    table = Vectors.create(project.work / "vectors" / f"drawn-{seed:04d}.lance", f"{seed:04d}", DIM)
    table.append(ids, [boxes] * len(ids), list(values))


@pytest.fixture
def ready(make: Make, library: Path, tmp_path: Path) -> Project:
    """A labelled library of 16 images and 60 production images of two cameras, indexed and embedded."""
    for number in range(60):
        stem = tmp_path / "line" / "A" / f"cam{number % 2}" / f"coil{number // 3}_{number}.png"
        fakes.save_image(stem, 32, 24, seed=900 + number)
    line = LINE | {"data": tmp_path / "line", "stratum": "{camera}"}
    project = make([LIBRARY | {"data": library}, line])
    sync.run(project)
    embedded(project)
    return project


def label(project: Project, id: str, *classes: str, extra: dict[str, Any] | None = None) -> None:
    log = LabelLog(project.work / "labels", project.class_names)
    log.append(Entry(id, Label("labelled", classes=classes), "label-studio", "ann", now(), None, extra or {}))
    log.flush()
    app_edits.show(Index(project), log, [id], project.class_names)
    log.close()


def test_a_round_is_written_and_shown(ready: Project) -> None:
    chosen = selecting.run(ready, SelectRequest("20", seed=3))
    written = rounds.find(ready.work, None)
    assert written.number == 1
    assert [row["rank"] for row in written.picks()] == list(range(1, 21))
    assert written.manifest["slots"] == {"rare": 7, "uncertain": 4, "explore": 6, "audit": 3}
    index = Index(ready)
    shown = {id: (number, slot, tags) for id, number, slot, tags in index.rows("round", "slot", "tags") if number}
    assert set(shown) == {row["id"] for row in chosen.picks}
    assert all("round 001" in tags for _, _, tags in shown.values())
    assert {id for id, (_, slot, _) in shown.items() if slot == "audit"} == {
        id for id, (_, _, tags) in shown.items() if "audit" in tags
    }
    assert sorted(index.tally("round").items()) == [("1", 20)]


def test_the_same_again_changes_nothing(ready: Project) -> None:
    selecting.run(ready, SelectRequest("20"))
    before = (ready.work / "rounds/001/round.json").read_bytes()
    again = selecting.run(ready, SelectRequest("20"))
    assert not again.fresh
    assert (ready.work / "rounds/001/round.json").read_bytes() == before


def test_a_round_that_nobody_touched_is_replaced(ready: Project) -> None:
    selecting.run(ready, SelectRequest("20"))
    selecting.run(ready, SelectRequest("7", strategy="kcenter"))
    assert [round_.number for round_ in rounds.every(ready.work)] == [1]
    index = Index(ready)
    assert index.tally("round") == {"1": 7}
    assert index.tally("slot") == {"kcenter": 7}
    assert not index.dataset.match_tags("audit").count("id")


def test_a_pushed_round_is_never_replaced(ready: Project) -> None:
    chosen = selecting.run(ready, SelectRequest("20"))
    rounds.mark(rounds.find(ready.work, 1), pushed="2026-11-21T00:00:00Z")
    Index(ready).set({"status": {row["id"]: "queued" for row in chosen.picks}})
    second = selecting.run(ready, SelectRequest("20"))
    assert [round_.number for round_ in rounds.every(ready.work)] == [1, 2]
    assert not {row["id"] for row in chosen.picks} & {row["id"] for row in second.picks}
    with pytest.raises(CurateError, match="never replaced"):
        rounds.write(ready.work, {"round": 1}, [])


def test_a_round_that_was_labelled_in_the_app_is_kept_and_gc_leaves_it(ready: Project) -> None:
    chosen = selecting.run(ready, SelectRequest("10"))
    sample = Index(ready).dataset.match({"content_id": chosen.picks[0]["id"]}).first()
    sample["status"] = "labelled"
    sample.save()
    second = selecting.run(ready, SelectRequest("10"))
    assert second.manifest["round"] == 2
    assert chosen.picks[0]["id"] not in {row["id"] for row in second.picks}
    history = list(LabelLog(ready.work / "labels", ready.class_names).history(chosen.picks[0]["id"]))
    assert history[-1].origin == "app"  # what was drawn in the App went to the log before the choice
    selecting.run(ready, SelectRequest("9"))
    assert [path.path.name for path in gc.find(ready)] == []


def test_what_may_not_be_picked_is_not(ready: Project) -> None:
    index = Index(ready)
    ids = sorted(id for id, status in index.rows("status") if status == "unlabelled")
    index.set({"status": {ids[0]: "skipped", ids[1]: "queued", ids[2]: "disputed"}})
    index.set({"split": {ids[3]: "test"}, "missing": {ids[4]: True}})
    chosen = selecting.run(ready, SelectRequest("500"), dry=True)
    assert chosen.manifest["picked"] == 55
    assert not {row["id"] for row in chosen.picks} & set(ids[:5])
    assert any("budget of 500 is more than can be picked: 55" in note for note in chosen.notes)
    for id, why in zip(ids[:5], ("skipped", "queue", "disputed", "leak", "missing"), strict=True):
        assert why in selecting.explain(ready, SelectRequest(), id)["barred"]


def test_where_all_is_labelled_it_points_to_what_else_can_be_done(make: Make, library: Path) -> None:
    project = make([LIBRARY | {"data": library}])
    sync.run(project)
    embedded(project)
    with pytest.raises(selecting.NothingToPick) as error:
        selecting.run(project, SelectRequest("5"))
    assert "all 16 images are labelled" in str(error.value)
    assert "curate train" in str(error.value)
    assert "curate simulate" in str(error.value)


def test_where_nothing_is_left_it_counts_why(ready: Project) -> None:
    index = Index(ready)
    ids = sorted(id for id, status in index.rows("status") if status == "unlabelled")
    index.set({"status": dict.fromkeys(ids[2:], "queued") | {ids[0]: "skipped"}, "split": {ids[1]: "test"}})
    with pytest.raises(selecting.NothingToPick) as error:
        selecting.run(ready, SelectRequest("5"), dry=True)
    assert "of 76 images 58 in the annotators' queue, 16 labelled, 1 skipped, 1 held out for test" in str(error.value)
    assert str(error.value).endswith("curate pull")


def test_without_vectors_it_says_so_before_it_asks_the_database(indexed: Project, monkeypatch: Any) -> None:
    monkeypatch.setattr(selecting, "Index", lambda project: pytest.fail("the database was asked"))
    with pytest.raises(CurateError, match=r"no vectors yet .* Run: curate embed"):
        selecting.run(indexed, SelectRequest("5"))


def test_without_an_index_the_index_is_what_is_missing(plant: Project) -> None:
    with pytest.raises(CurateError, match=r"no index yet\. Run: curate index"):
        selecting.run(plant, SelectRequest("5"))


def test_without_classes_a_note_says_so(make: Make, line: Path) -> None:
    project = make([LINE | {"data": line}], classes=())
    sync.run(project)
    embedded(project)
    notes = selecting.run(project, SelectRequest("5"), dry=True).notes
    assert any("curate classes add NAME" in note for note in notes)


def test_explaining_takes_the_probe_s_predictions_from_the_round(
    ready: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fitting the probe again, and loading what fits it, takes seconds; with other labels it is fitted anew."""
    chosen = selecting.run(ready, SelectRequest("10"))
    first, other = chosen.picks[0]["id"], chosen.picks[1]["id"]
    fresh = selecting.linear_probe.predict
    quick = selecting.explain(ready, SelectRequest(), first)
    monkeypatch.setattr(selecting, "_recall_probe", lambda project, built: None)
    assert selecting.explain(ready, SelectRequest(), first) == quick
    assert quick["likely_by"] == "probe"
    monkeypatch.undo()
    fitted: list[int] = []

    def counted(weights: Any, vectors: Any) -> Any:
        fitted.append(len(vectors))
        return fresh(weights, vectors)

    monkeypatch.setattr(selecting.linear_probe, "predict", counted)
    assert selecting.explain(ready, SelectRequest(), first) == quick
    assert not fitted
    label(ready, other, "crack")
    Index(ready).set({"split": {other: "train"}})
    assert selecting.explain(ready, SelectRequest(), first)["likely_by"] == "probe"
    assert fitted


def test_explain_a_pick_and_an_image_that_was_left(ready: Project) -> None:
    chosen = selecting.run(ready, SelectRequest("10"))
    explained = selecting.explain(ready, SelectRequest(), chosen.picks[0]["id"][:16])
    assert explained["picked"]["round"] == 1
    assert explained["picked"]["reason"] == chosen.picks[0]["reason"]
    left = next(id for id in Index(ready).ids() if id not in {row["id"] for row in chosen.picks})
    assert selecting.explain(ready, SelectRequest(), left)["picked"] is None
    with pytest.raises(CurateError, match="fits 0 images"):
        selecting.explain(ready, SelectRequest(), "zzz")


def test_a_budget_of_time_follows_what_people_take(ready: Project) -> None:
    first = selecting.run(ready, SelectRequest("10m"), dry=True)
    assert first.manifest["picked"] == 20  # 30 s an image before anybody was timed
    ids = sorted(id for id, status in Index(ready).rows("status") if status == "unlabelled")
    for id in ids[:12]:
        label(ready, id, extra={"lead_time": 120.0})
    second = selecting.run(ready, SelectRequest("10m"), dry=True)
    assert 3 <= second.manifest["picked"] <= 10
    assert second.manifest["seconds"] <= 600


def test_exemplars_by_view_tag_and_id(ready: Project) -> None:
    index = Index(ready)
    crack = next(id for id, path in index.rows("filepath") if "piece0_0" in path)
    index.tag("look here", [crack])
    index.dataset.save_view("cracks", index.dataset.match({"content_id": crack}))
    by = {given: selecting.run(ready, SelectRequest("6", strategy="rare", exemplars=given), dry=True) for given in
          ("cracks", "look here", crack[:14])}  # fmt: skip
    assert len({tuple(row["id"] for row in result.picks) for result in by.values()}) == 1
    assert by["cracks"].manifest["exemplars"][0].startswith(crack)
    assert "to crack exemplar " + crack[:8] in by["cracks"].picks[0]["reason"]


def test_exemplars_that_do_not_exist_name_what_does(ready: Project) -> None:
    Index(ready).tag("cracked", [Index(ready).ids()[0]])
    with pytest.raises(CurateError, match=r"no saved view, no tag and no image.*did you mean 'cracked'"):
        selecting.run(ready, SelectRequest("5", exemplars="cracks"))


def test_no_vectors_yet_names_the_command(indexed: Project) -> None:
    with pytest.raises(CurateError, match="curate embed"):
        selecting.run(indexed, SelectRequest("5"))


def test_images_without_vectors_are_counted_and_named_by_command(ready: Project) -> None:
    embedded(ready, seed=7, only=50)
    chosen = selecting.run(ready, SelectRequest("60"), dry=True)
    assert any("have no drawn vectors yet" in note and "curate embed" in note for note in chosen.notes)


def test_vectors_that_are_no_numbers_are_named_and_left_out(ready: Project) -> None:
    embedded(ready, seed=8, spoilt=2)
    spoilt = sorted(Index(ready).ids())[:2]
    chosen = selecting.run(ready, SelectRequest("60"), dry=True)
    assert any(spoilt[0][:12] in note for note in chosen.notes)
    assert not {row["id"] for row in chosen.picks} & set(spoilt)


def test_scores_of_a_model_are_used(ready: Project) -> None:
    ids = sorted(Index(ready).ids())
    classes = ["hole", "crack"]  # in the model's own order
    table = Table.create(
        ready.work / "scores" / "model-01.lance", {"probability": "float16[2]"}, {"classes": json.dumps(classes)}
    )
    likely = np.full((len(ids), 2), 0.02, np.float16)
    index = Index(ready)
    status = dict(index.rows("status"))
    wanted = [row for row, id in enumerate(ids) if status[id] == "unlabelled"][:5]
    likely[wanted, 1] = 0.5
    table.append({"id": ids, "probability": likely})
    chosen = selecting.run(ready, SelectRequest("5", strategy="margin", rules=SelectionRules(spread=False)))
    assert {row["id"] for row in chosen.picks} == {ids[row] for row in wanted}
    assert all("model gives crack 0.50" in row["reason"] for row in chosen.picks)
    assert all(row["predicted"] == ["crack"] for row in chosen.picks)
    stored, kept, names = rounds.find(ready.work, 1).predicted()
    assert (names, len(stored), kept.shape) == (["crack", "hole"], len(ids), (len(ids), 2))


def test_rounds_come_back_after_the_database_was_lost(ready: Project) -> None:
    chosen = selecting.run(ready, SelectRequest("20"))
    audits = {row["id"] for row in chosen.picks if row["slot"] == "audit"}
    index = Index(ready)
    index.fo.delete_dataset(index.dataset.name)
    sync.run(ready)
    index = Index(ready)
    assert {id for id, number in index.rows("round") if number} == {row["id"] for row in chosen.picks}
    assert set(index.dataset.match_tags("audit").values("content_id")) == audits


def test_audit_picks_fill_val_and_test_and_others_go_to_train(ready: Project) -> None:
    chosen = selecting.run(ready, SelectRequest("30", options={"audit": 1.0}))
    for row in chosen.picks:
        label(ready, row["id"])
    sync.run(ready)
    split = dict(Index(ready).rows("split"))
    audits = {row["group"] for row in chosen.picks if row["slot"] == "audit" and not row["extra"]}
    for row in chosen.picks:
        assert (split[row["id"]] in ("val", "test")) == (row["group"] in audits)


def test_audit_picks_beyond_their_share_are_tagged_as_such_and_teach(ready: Project) -> None:
    chosen = selecting.run(ready, SelectRequest("44", strategy="audit"))
    stored = rounds.find(ready.work, 1).picks()
    extra = {row["id"] for row in stored if row["extra"]}
    assert 0 < len(extra) < len(stored) / 2
    assert {row["urn"] for row in stored} >= {"cam0: the others", "cam0: its most suspicious tenth"}
    tags = dict(Index(ready).rows("tags"))
    assert all(("audit" in tags[row["id"]]) != ("audit extra" in tags[row["id"]]) for row in stored)
    assert {id for id in tags if "audit extra" in tags[id]} == extra
    for row in chosen.picks:
        label(ready, row["id"])
    sync.run(ready)
    split = dict(Index(ready).rows("split"))
    held_out = {row["group"] for row in stored if not row["extra"]}
    assert all((split[row["id"]] in ("val", "test")) == (row["group"] in held_out) for row in stored)


def test_rounds_of_earlier_versions_know_no_urns(ready: Project) -> None:
    import pyarrow.parquet

    parquet: Any = pyarrow.parquet
    selecting.run(ready, SelectRequest("44", strategy="audit"))
    file = ready.work / "rounds/001/picks.parquet"
    table = parquet.read_table(file)
    parquet.write_table(table.drop_columns(["urn", "extra"]), file)
    picks = rounds.find(ready.work, 1).picks()
    assert len(picks) == 44
    assert {(row["urn"], row["extra"]) for row in picks} == {(None, None)}
    parquet.write_table(table.drop_columns(["urn", "slot"]), file)
    with pytest.raises(CurateError, match="is damaged or missing"):
        rounds.find(ready.work, 1).picks()


def test_strata_quotas_hold_in_the_round(ready: Project) -> None:
    chosen = selecting.run(ready, SelectRequest("20", rules=SelectionRules(per_stratum="equal")), dry=True)
    assert set(chosen.manifest["by_stratum"].values()) == {10}


# --- the command ------------------------------------------------------------------------------------------------------


def test_json_is_the_contract(ready: Project, run: Run) -> None:  # noqa: F811
    value = ok(run("select", "--project", ready.folder, "--budget", 6, "--json"))
    assert {"round", "strategy", "seed", "picks"} <= value.keys()
    assert (value["round"], value["strategy"], value["seed"], len(value["picks"])) == (1, "portfolio", 0, 6)
    assert all(pick.keys() == {"id", "path", "slot", "score", "reason"} for pick in value["picks"])
    assert all(Path(pick["path"]).is_file() for pick in value["picks"])


def test_dry_run_writes_nothing(ready: Project, run: Run) -> None:  # noqa: F811
    ok(run("select", "--project", ready.folder, "--budget", 6, "--json", "--dry-run"))
    assert not (ready.work / "rounds").exists()
    assert Index(ready).dataset.get_field("round") is None


def test_the_view_of_a_round_is_saved(ready: Project, run: Run) -> None:  # noqa: F811
    picks = ok(run("select", "--project", ready.folder, "--budget", 6, "--json"))["picks"]
    view = Index(ready).dataset.load_saved_view("round 001")
    assert view.values("content_id") == [pick["id"] for pick in picks]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--budget", "0"), "budget '0' is not usable; allowed"),
        (("--budget", "-4"), "budget '-4' is not usable"),
        (("--budget", "soon"), "budget 'soon' is not usable"),
        (("--strategy", "portfolo"), "did you mean 'portfolio'"),
        (("--set", "rare"), "--set 'rare' is not key=value; options of portfolio"),
        (("--set", "rar=1"), "did you mean 'rare'"),
        (("--set", "rare=much"), "option 'rare' of strategy portfolio is 'much'; allowed: float"),
        (("--classes", "crak"), "did you mean 'crack'"),
        (("--per-stratum", "most"), "--per-stratum 'most'; allowed"),
        (("--encoder", "drwn"), "did you mean 'drawn'"),
        (("--explain", "zz"), "'zz' fits 0 images"),
    ],
)
def test_errors_name_value_allowed_and_remedy(ready: Project, run: Run, given: Any, message: str) -> None:  # noqa: F811
    assert message in failed(run("select", "--project", ready.folder, *given))


def test_defaults_come_from_the_project_s_config(ready: Project, run: Run) -> None:  # noqa: F811
    text = ready.file.read_text() + '\n[select]\nstrategy = "audit"\nbudget = 9\nper_stratum = "equal"\n'
    ready.file.write_text(text)
    value = ok(run("select", "--project", ready.folder, "--json"))
    assert (value["strategy"], len(value["picks"])) == ("audit", 9)
    assert load(ready.folder).config.select.per_stratum == "equal"


def test_summary_for_people(ready: Project, run: Run) -> None:  # noqa: F811
    code, out, err = run("select", "--project", ready.folder, "--budget", 10)
    assert code == 0
    for part in ("round 001", "rare", "audit", "stratum", "near-duplicates avoided", "curate app --view 'round 001'"):
        assert part in out
    assert "slots with few labels: rare 3" in err


@pytest.mark.parametrize("after", [0.1, 0.3, 0.8])
def test_a_kill_leaves_no_half_round(ready: Project, after: float) -> None:
    process = forked.start(forked.CURATE, "select", "--project", ready.folder, "--budget", "20")
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = rounds.every(ready.work)
    assert all(len(round_.picks()) == 20 for round_ in written)
    assert len(selecting.run(ready, SelectRequest("20")).picks) == 20
    assert Index(ready).tally("round") == {"1": 20}


# --- what must not leak, and what must not be lost --------------------------------------------------------------------


def test_labels_straight_from_the_app_get_their_splits_before_anything_is_learnt(ready: Project) -> None:
    chosen = selecting.run(ready, SelectRequest("30", options={"audit": 1.0}))
    dataset = Index(ready).dataset
    for row in chosen.picks:
        sample = dataset.match({"content_id": row["id"]}).first()
        sample["status"] = "labelled"
        sample.save()
    second = selecting.run(ready, SelectRequest("20", options={"audit": 0.0}))
    split = dict(Index(ready).rows("split"))
    audited = {row["group"] for row in chosen.picks if row["slot"] == "audit"}
    assert {split[row["id"]] for row in chosen.picks if row["group"] in audited} <= {"val", "test"}
    assert not {row["group"] for row in second.picks} & audited


def test_a_group_waits_for_its_audit_pick(ready: Project) -> None:
    """The audit's siblings are labelled first: the group may not go to train meanwhile."""
    chosen = selecting.run(ready, SelectRequest("60", options={"audit": 1.0}))
    audits = [row for row in chosen.picks if row["slot"] == "audit" and not row["extra"]]
    groups = {row["group"] for row in audits}
    others = [row for row in chosen.picks if row not in audits and row["group"] in groups]
    assert others
    for row in others:
        label(ready, row["id"])
    sync.run(ready)
    for row in audits:
        label(ready, row["id"])
    sync.run(ready)
    split = dict(Index(ready).rows("split"))
    assert {split[row["id"]] for row in audits} <= {"val", "test"}


def test_what_changed_since_makes_a_new_choice(ready: Project) -> None:
    chosen = selecting.run(ready, SelectRequest("20"))
    gone = chosen.picks[0]["id"]
    Path(chosen.picks[0]["path"]).unlink()
    sync.run(ready)
    again = selecting.run(ready, SelectRequest("20"))
    assert again.fresh
    assert gone not in {row["id"] for row in again.picks}


def test_an_audit_pick_stays_one_whatever_a_later_round_does(ready: Project) -> None:
    chosen = selecting.run(ready, SelectRequest("60", options={"audit": 1.0}))
    audits = {row["id"] for row in chosen.picks if row["slot"] == "audit" and not row["extra"]}
    rounds.mark(rounds.find(ready.work, 1), touched="2026-11-21T00:00:00Z")
    second = selecting.run(ready, SelectRequest("60", options={"audit": 0.0}))
    assert {row["id"] for row in second.picks} >= audits
    dataset = Index(ready).dataset
    assert set(dataset.match_tags("audit").values("content_id")) == audits
    assert len(dataset.match_tags("round 001")) == len(dataset.match_tags("round 002")) == 60


def test_what_waits_in_a_pushed_round_is_not_offered_again(ready: Project) -> None:
    chosen = selecting.run(ready, SelectRequest("20"))
    rounds.mark(rounds.find(ready.work, 1), pushed="2026-11-21T00:00:00Z")
    second = selecting.run(ready, SelectRequest("40"))
    assert not {row["id"] for row in chosen.picks} & {row["id"] for row in second.picks}
    assert selecting.explain(ready, SelectRequest(), chosen.picks[0]["id"])["barred"] == "it waits in round 001"


def test_a_class_named_id_keeps_its_predictions_apart(make: Make, library: Path, tmp_path: Path) -> None:
    for number in range(12):
        fakes.save_image(tmp_path / "line" / "A" / "cam0" / f"coil{number}_{number}.png", 32, 24, seed=900 + number)
    source = LIBRARY | {"data": library, "classes": {"crack": "id"}}
    project = make([source, LINE | {"data": tmp_path / "line"}], classes=("id", "hole"))
    sync.run(project)
    embedded(project)
    selecting.run(project, SelectRequest("5"))
    ids, values, names = rounds.find(project.work, 1).predicted()
    assert names == ["id", "hole"]
    assert set(ids) == set(Index(project).ids())
    assert values.shape == (len(ids), 2)


def test_exemplars_of_val_and_test_teach_nothing(ready: Project) -> None:
    index = Index(ready)
    rows = [(id, split) for id, split, path in index.rows("split", "filepath") if "piece" in path]
    held = [id for id, split in rows if split in ("val", "test")]
    with pytest.raises(CurateError, match="all exemplars belong to val or test"):
        selecting.run(ready, SelectRequest("5", strategy="rare", exemplars=",".join(held)), dry=True)


def test_clean_images_are_no_exemplars(ready: Project) -> None:
    index = Index(ready)
    clean = [i for i, s, sp, p in index.rows("status", "split", "filepath") if "piece6" in p or "piece7" in p]
    index.set({"split": dict.fromkeys(clean, "train")})
    with pytest.raises(CurateError, match="none of these images shows crack"):
        selecting.run(
            ready, SelectRequest("5", strategy="rare", exemplars=",".join(clean), classes=("crack",)), dry=True
        )


def test_exemplars_by_a_view_of_patches(ready: Project) -> None:
    index = Index(ready)
    cracked = index.dataset.match({"defects.detections.label": "crack", "split": "train"})
    index.dataset.save_view("patches", cracked.to_patches("defects"))
    chosen = selecting.run(ready, SelectRequest("5", strategy="rare", exemplars="patches"), dry=True)
    assert len(chosen.picks) == 5


@pytest.mark.parametrize("name", ["picks.parquet", "predicted.parquet"])
@pytest.mark.parametrize("command", ["select", "audit", "stop-check"])
def test_a_damaged_round_is_one_line(ready: Project, run: Run, name: str, command: str) -> None:  # noqa: F811
    selecting.run(ready, SelectRequest("20"))
    file = ready.work / "rounds" / "001" / name
    file.write_bytes(file.read_bytes()[:100])
    if name == "picks.parquet" or command != "select":
        assert f"{name} is damaged or missing" in failed(run(command, "--project", ready.folder))


def test_copies_are_offered_when_the_better_one_is_gone(ready: Project) -> None:
    index = Index(ready)
    first, second = sorted(id for id, status in index.rows("status") if status == "unlabelled")[:2]
    index.declare(near_of=index.fo.StringField)
    index.set({"near_of": {second: first}})
    assert "nearly equals" in selecting.explain(ready, SelectRequest(), second)["barred"]
    index.set({"missing": {first: True}})
    assert selecting.explain(ready, SelectRequest(), second)["barred"] is None


def test_a_retired_class_is_not_sought(ready: Project) -> None:
    text = ready.file.read_text().replace('name = "crack"', 'name = "crack"\nretired = true')
    ready.file.write_text(text)
    chosen = selecting.run(load(ready.folder), SelectRequest("20"), dry=True)
    assert not any("crack" in row["reason"] for row in chosen.picks)
    built = build_pool.build(Index(load(ready.folder)), None, None, ())
    cracks = [row for row, id in enumerate(built.pool.ids) if built.images[id].present == {"crack"}]
    assert cracks
    assert not built.pool.trainable[cracks].any(), "nobody may learn that they are clean"


@pytest.mark.parametrize("given", ["audit=-1", "audit=NaN", "audit=1e308"])
def test_shares_are_checked(ready: Project, run: Run, given: str) -> None:  # noqa: F811
    assert "strategy portfolio" in failed(run("select", "--project", ready.folder, "--set", given))


def test_a_table_that_was_just_begun_is_not_the_newest(ready: Project) -> None:
    Vectors.create(ready.work / "vectors" / "drawn-9999.lance", "9999", DIM)
    assert len(selecting.run(ready, SelectRequest("5"), dry=True).picks) == 5
    assert "drawn-0000.lance" not in {item.path.name for item in gc.find(ready)}


# --- duplicates -------------------------------------------------------------------------------------------------------


def _resaved(pixels: Any, seed: int) -> Any:
    noise = np.random.default_rng(seed).normal(0, 1.5, pixels.shape)
    return np.clip(pixels + 3 + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def copied(make: Make, library: Path, tmp_path: Path) -> Project:
    """Production images, two of which are library images saved again, slightly brighter and noisier."""
    import cv2

    for number in range(12):
        fakes.save_image(tmp_path / "line" / "A" / "cam0" / f"coil{number}_{number}.png", 64, 48, seed=70 + number)
    for number, stem in enumerate(("piece0_0", "piece6_1")):
        pixels = cv2.imread(str(library / "images" / f"{stem}.png"), 0)
        cv2.imwrite(str(tmp_path / "line" / "A" / "cam0" / f"coil9{number}_0.png"), _resaved(pixels, number))
    project = make([LIBRARY | {"data": library}, LINE | {"data": tmp_path / "line"}])
    sync.run(project)
    from curate.vectors import run as embedding

    embedding.run(project, "texture", workers=0)
    return project


def test_duplicates_are_found_across_sources_and_the_labelled_one_is_kept(copied: Project, run: Run) -> None:  # noqa: F811
    report = ok(run("duplicates", "--project", copied.folder, "--near", 0.95, "--json"))
    assert (report["clusters"], report["duplicates"], report["across_sources"]) == (2, 2, 2)
    index = Index(copied)
    rows = {id: (of, path) for id, of, path in index.rows("near_of", "filepath")}
    marked = {Path(path).name for of, path in rows.values() if of}
    assert marked == {"coil90_0.png", "coil91_0.png"}
    assert all("library" in rows[of][1] for of, _ in rows.values() if of)
    assert index.dataset.load_saved_view("near-duplicates").count("id") == 4
    picks = ok(run("select", "--project", copied.folder, "--budget", 50, "--json"))["picks"]
    assert not {pick["id"] for pick in picks} & {id for id, (of, _) in rows.items() if of}


def test_joined_clusters_share_a_group_and_a_split(copied: Project, run: Run) -> None:  # noqa: F811
    report = ok(run("duplicates", "--project", copied.folder, "--near", 0.95, "--join", "--json"))
    assert report["joined"] == 2
    for _ in range(2):
        rows = {id: (of, group, split) for id, of, group, split in Index(copied).rows("near_of", "group", "split")}
        for of, group, split in rows.values():
            if of:
                assert (group, split) == rows[of][1:]
        sync.run(copied)


def test_joining_again_completes_what_a_killed_run_left(copied: Project, run: Run) -> None:  # noqa: F811
    """Groups are written before splits: a kill in between leaves the other views of a joined piece in their old one."""
    ok(run("duplicates", "--project", copied.folder, "--near", 0.95, "--join", "--json"))
    index = Index(copied)
    wanted = dict(index.rows("split"))
    group = next(group for _, group, of in index.rows("group", "near_of") if of)
    left = {id: "val" if wanted[id] == "train" else "train" for id, of in index.rows("group") if of == group}
    index.set({"split": left})
    ok(run("duplicates", "--project", copied.folder, "--near", 0.95, "--join", "--json"))
    assert dict(Index(copied).rows("split")) == wanted


def test_duplicates_that_are_none_any_more_are_forgotten(copied: Project, run: Run) -> None:  # noqa: F811
    ok(run("duplicates", "--project", copied.folder, "--near", 0.95, "--json"))
    report = ok(run("duplicates", "--project", copied.folder, "--near", 1, "--json"))
    assert report["clusters"] == 0
    assert [of for _, of in Index(copied).rows("near_of") if of] == []


def test_look_alikes_whose_pictures_differ_are_not_duplicates(copied: Project, run: Run) -> None:  # noqa: F811
    """At cosine -1 vectors propose every pair there is; small pictures still confirm only the true ones."""
    report = ok(run("duplicates", "--project", copied.folder, "--near", 0, "--json"))
    assert (report["clusters"], report["duplicates"]) == (2, 2)
