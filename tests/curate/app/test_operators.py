"""The plug-in for the App, asked as FiftyOne asks it: what registers, what forms offer, and what operators do.

The last test walks through it in a browser, and leaves screenshots in out/screenshots/.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from curate.admin import doctor, setup
from curate.app import commands, operators, panel
from curate.app.markdown import plain
from curate.data import make_defect
from curate.errors import CurateError
from curate.index import app_plugins, app_views, evaluation_runs, predictions, rounds, sync
from curate.index.dataset import Index
from curate.index.predictions import Prediction
from curate.ops import desk, edit_round, jobs, label, select, similar
from curate.project import ENV_PROJECT, Project, load
from curate.select import run as selecting
from curate.vectors.store import Vectors
from tests import fakes
from tests.conftest import LIBRARY, LINE
from tests.curate.index.test_browser import SCREENSHOTS, chromium, free_port, launched, open_page, page

__all__ = ["chromium", "page"]  # fixtures


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, server: str) -> Iterator[Project]:
    """Sixteen labelled images and thirty that nobody has labelled, with drawn vectors: one for the whole file."""
    root = tmp_path_factory.mktemp("desk")
    for piece in range(8):
        for view in range(2):
            stem = f"piece{piece}_{view}"
            fakes.save_image(root / "library" / "images" / f"{stem}.png", 32, 24, seed=10 * piece + view)
            if piece < 6:
                name = "crack" if piece < 4 else "hole"
                fakes.save_mask(root / "library" / "masks" / name / f"{stem}.png", [(piece, 2, 9, 5 + view)], (32, 24))
    for number in range(30):
        path = root / "line" / "A" / f"cam{number % 2}" / f"coil{number // 2}_{number}.png"
        fakes.save_image(path, 32, 24, seed=900 + number)
    sources = [LIBRARY | {"data": root / "library"}, LINE | {"data": root / "line"}]
    made = setup.write(root / "projects" / "desk", sources, ("crack", "hole"))
    sync.run(made)
    index = Index(made)
    ids = index.ids()
    values = np.random.default_rng(0).standard_normal((len(ids), 3, 16))
    values /= np.linalg.norm(values, axis=2, keepdims=True)
    boxes = np.array([(0, 0, 32, 24), (0, 0, 16, 24), (16, 0, 16, 24)], np.int32)
    Vectors.create(made.work / "vectors" / "drawn-0.lance", "0", 16).append(ids, [boxes] * len(ids), list(values))
    app_views.arrange(made)
    yield made
    index.fo.delete_dataset(made.dataset_name)


@pytest.fixture
def desk_of(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Project:
    """The project, its plug-in known to FiftyOne as under `curate app`."""
    monkeypatch.setenv(ENV_PROJECT, str(project.folder))
    fo = Index(project).fo
    monkeypatch.setattr(fo.config, "plugins_dir", str(app_plugins.linked(tmp_path / "plugins", None)))
    return project


def call(project: Project, name: str, params: Mapping[str, Any] | None = None, **more: Any) -> Any:
    """What `foo.execute_operator` returns for the operator; what it refuses is raised."""
    import fiftyone.operators as foo

    context = {"dataset": Index(project).dataset, "params": dict(params or {})} | more
    return foo.execute_operator(operators.uri(name), context)


def samples(project: Project, ids: list[str]) -> list[str]:
    return list(Index(project).dataset.select_by("content_id", ids, ordered=True).values("id"))


def unlabelled(project: Project) -> list[str]:
    return sorted(id for id, status in Index(project).rows("status") if status == "unlabelled")


def status_of(project: Project, id: str) -> tuple[str, frozenset[str]]:
    member = Index(project).members()[id]
    return member.status, member.classes


# --- registering ------------------------------------------------------------------------------------------------------


def test_every_plug_in_loads_and_ours_registers_whole(desk_of: Project) -> None:
    from fiftyone.plugins.context import build_plugin_contexts

    contexts = {context.name: context for context in build_plugin_contexts()}
    assert {name: context.errors for name, context in contexts.items() if context.errors} == {}
    registered = {instance.name for instance in contexts[app_plugins.NAME].instances}
    assert registered == {*operators.names(), panel.NAME}
    assert len(contexts) > 1, "FiftyOne's own are there, too"


def test_a_broken_plug_in_is_named(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fiftyone as fo

    theirs = tmp_path / "theirs"
    for name, code in (("good", "def register(p): pass"), ("bad", "import nothing_of_this_name")):
        fakes.save_text(theirs / name / "fiftyone.yml", f'name: "@them/{name}"\n')
        fakes.save_text(theirs / name / "__init__.py", code)
    fakes.save_text(theirs / "worse" / "fiftyone.yml", "name: [\n")
    monkeypatch.setattr(fo.config, "plugins_dir", str(theirs))
    failed = app_plugins.faults()
    assert failed["@them/bad"] == "ModuleNotFoundError: No module named 'nothing_of_this_name'"
    assert failed[str(theirs / "worse")] == app_plugins.UNREADABLE
    assert len(failed) == 2
    (check,) = (check for check in doctor.run(None) if check.what == "App plug-ins")
    assert check.state == "absent"
    assert "@them/bad: ModuleNotFoundError" in check.found
    monkeypatch.setattr(app_plugins, "OURS", theirs / "bad")
    assert app_plugins.faults()


def test_the_links_hide_no_plug_in_of_the_user(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    fakes.save_text(theirs / "own" / "fiftyone.yml", "name: own\n")
    for _ in range(2):
        folder = app_plugins.linked(tmp_path / "links", theirs)
        assert {path.name: path.resolve() for path in folder.iterdir()} == {"curate": app_plugins.OURS, "user": theirs}
    app_plugins.linked(tmp_path / "links", tmp_path / "gone")
    assert os.listdir(tmp_path / "links") == ["curate"]


# --- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", operators.BACKGROUND, ids=lambda spec: spec.name)
def test_forms_have_the_command_s_options_with_default_and_help(
    spec: operators.BackgroundCommand, desk_of: Project
) -> None:
    known = commands.options(spec.command)
    assert commands.summary(spec.command)
    for name in spec.fields:
        assert known[name].help, name
    inputs = form_of(desk_of, spec.name)
    if spec.missing(desk_of):
        assert inputs["refusal"].invalid
        return
    for name in spec.fields:
        assert inputs[name].default == known[name].default or known[name].many


def form_of(project: Project, name: str, **more: Any) -> dict[str, Any]:
    """The inputs of an operator's form; none where it asks for nothing."""
    from fiftyone.operators import OperatorRegistry, executor

    operator = OperatorRegistry().get_operator(operators.uri(name))
    request = {"dataset_name": project.dataset_name, "params": {}} | more
    ctx = executor.ExecutionContext(request, operator_uri=operators.uri(name))
    asked = operator.resolve_input(ctx)
    return dict(asked.type.properties) if asked else {}


def test_words_of_a_form_are_those_of_the_command_line() -> None:
    given = {"budget": "20", "strategy": "random", "option": ["a=1", "b=x y"], "seed": 0, "classes": "", "near": 0.9}
    wanted = ["--budget=20", "--strategy=random", "--set=a=1", "--set=b=x y", "--near=0.9"]
    assert commands.words(("select",), given) == wanted
    assert commands.words(("push",), {"suggest": False, "withdraw": True}) == ["--no-suggest", "--withdraw"]
    assert commands.words(("models", "promote"), {"model": "--force", "force": False}) == ["--", "--force"]
    for wrong in (
        {"budget": {"$ne": 1}},
        {"seed": "x"},
        {"seed": True},
        {"budget": "1\0"},
        {"plain": "yes"},
        {"no": 1},
    ):
        with pytest.raises(CurateError):
            commands.words(("select",), wrong)


def test_without_label_studio_push_is_refused_with_the_remedy(
    desk_of: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABEL_STUDIO_URL", raising=False)
    monkeypatch.setattr(desk.importlib.util, "find_spec", lambda name: None)
    assert "pip install" in form_of(desk_of, "push")["refusal"].error_message
    with pytest.raises(Exception, match="pip install 'steel-curate"):
        call(desk_of, "push")


def test_another_dataset_is_refused(desk_of: Project) -> None:
    import fiftyone as fo

    other = fo.Dataset()
    with pytest.raises(CurateError, match=f"is not the index of project '{desk_of.name}'"):
        desk.project_of(other.name)
    other.delete()


def test_an_export_stays_in_the_project(desk_of: Project) -> None:
    for name in ("/tmp/x", "../x", "", None, "a/b", ".hidden"):
        with pytest.raises(CurateError, match="not plain"):
            operators._export_folder(desk_of, name)
    assert operators._export_folder(desk_of, "for paul 2").parent == desk_of.work / "exported"


# --- labels -----------------------------------------------------------------------------------------------------------


def test_labels_of_a_selection_go_to_the_log(desk_of: Project) -> None:
    first, second, third = unlabelled(desk_of)[:3]
    with pytest.raises(Exception, match="select images"):
        call(desk_of, "set_clean")
    call(desk_of, "set_class", {"class": "hole"}, selected=samples(desk_of, [first]))
    call(desk_of, "set_clean", selected=samples(desk_of, [second]))
    call(desk_of, "skip", {"reason": "blurred"}, selected=samples(desk_of, [third]))
    assert status_of(desk_of, first) == ("labelled", {"hole"})
    assert status_of(desk_of, second) == ("labelled", frozenset())
    assert status_of(desk_of, third) == ("skipped", frozenset())
    from curate.labels.log import LabelLog

    log = LabelLog(desk_of.work / "labels", desk_of.class_names)
    assert [log.histories([id])[id][-1].origin for id in (first, second, third)] == ["app"] * 3
    assert log.state(third).label.reason == "blurred"
    assert Index(desk_of).edited() == []
    assert label.set_clean(desk_of, [second]) == 0
    with pytest.raises(CurateError, match="unknown class 'crak'"):
        label.set_class(desk_of, [first], "crak")


def test_selected_regions_are_relabelled_and_others_stay(desk_of: Project) -> None:
    index = Index(desk_of)
    id = next(id for id, member in index.members().items() if member.classes == {"crack"})
    before = next(iter(index.items([id]))).label
    (region,) = index.dataset.select_by("content_id", [id]).values("defects.detections.id", unwind=True)
    entry = {"label_id": region, "sample_id": samples(desk_of, [id])[0], "field": "defects"}
    call(desk_of, "set_class", {"class": "hole"}, selected_labels=[entry])
    after = next(iter(Index(desk_of).items([id]))).label
    assert [(d.label, d.box, d.rle) for d in after.defects] == [("hole", d.box, d.rle) for d in before.defects]
    label.set_class(desk_of, [id], "crack", [str(r) for r in _region_ids(desk_of, id)])
    assert next(iter(Index(desk_of).items([id]))).label.digest == before.digest


def _region_ids(project: Project, id: str, field: str = "defects") -> list[str]:
    return list(Index(project).dataset.select_by("content_id", [id]).values(f"{field}.detections.id", unwind=True))


def test_suggestions_are_confirmed_and_rejected(desk_of: Project) -> None:
    first, second = unlabelled(desk_of)[:2]
    regions = tuple((make_defect(name, (1 + 9 * place, 2, 6, 5)), 0.9) for place, name in enumerate(("crack", "hole")))
    predictions.store(Index(desk_of), "m", {first: Prediction(regions), second: Prediction(regions)})
    assert Index(desk_of).edited() == [], "predictions are no edits"
    chosen = _region_ids(desk_of, first, "predictions")[1]
    entry = {"label_id": chosen, "sample_id": samples(desk_of, [first])[0], "field": "predictions"}
    call(desk_of, "confirm", selected_labels=[entry])
    assert status_of(desk_of, first) == ("labelled", {"hole"})
    kept = _region_ids(desk_of, second, "predictions")
    entry = {"label_id": kept[0], "sample_id": samples(desk_of, [second])[0], "field": "predictions"}
    call(desk_of, "reject", selected_labels=[entry])
    assert _region_ids(desk_of, second, "predictions") == kept[1:]
    call(desk_of, "reject", selected=samples(desk_of, [second]))
    assert _region_ids(desk_of, second, "predictions") == []
    assert status_of(desk_of, second)[0] == "unlabelled"
    assert label.confirm(desk_of, [second]) == 0


# --- rounds -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def round_one(desk_of: Project) -> rounds.Round:
    request = selecting.request_of(desk_of, "8")
    written = select.run(desk_of, request).written
    assert written is not None
    return written


def test_picks_are_explained(desk_of: Project, round_one: rounds.Round) -> None:
    pick = round_one.picks()[0]
    told = call(desk_of, "explain", selected=samples(desk_of, [pick["id"]])).result["told"]
    assert f"number 1, slot {pick['slot']}: {pick['reason']}" in told
    assert plain(pick["path"]) in told


def test_a_round_is_edited_by_hand_until_it_is_pushed(desk_of: Project, round_one: rounds.Round) -> None:
    picks = round_one.picks()
    dropped = next(row["id"] for row in picks if row["slot"] != "audit")
    audited = next(row["id"] for row in picks if row["slot"] == "audit")
    pinned = next(id for id in unlabelled(desk_of) if id not in {row["id"] for row in picks})
    call(desk_of, "drop", selected=samples(desk_of, [dropped]))
    call(desk_of, "pin", selected=samples(desk_of, [pinned]))
    edited = rounds.find(desk_of.work, None)
    assert edited.picks()[0]["id"] == pinned
    assert dropped not in {row["id"] for row in edited.picks()}
    assert [row["rank"] for row in edited.picks()] == list(range(1, len(picks) + 1))
    assert edited.manifest["slots"]["pinned"] == 1
    assert edited.predicted()[2] == round_one.predicted()[2]
    shown = dict(Index(desk_of).rows("slot"))
    assert (shown[pinned], shown[dropped]) == ("pinned", None)
    with pytest.raises(CurateError, match="audit would be biased"):
        edit_round.drop(desk_of, None, [audited])
    with pytest.raises(CurateError, match="not in the round"):
        edit_round.drop(desk_of, None, [dropped])
    labelled = next(id for id, status in Index(desk_of).rows("status") if status == "labelled")
    with pytest.raises(CurateError, match="cannot be pinned"):
        edit_round.pin(desk_of, None, [labelled])
    rounds.mark(edited, pushed="2026-01-01T00:00:00Z")
    with pytest.raises(CurateError, match="push --withdraw"):
        edit_round.pin(desk_of, None, [dropped])
    rounds.mark(edited, pushed=None)


# --- more like this ---------------------------------------------------------------------------------------------------


def test_more_like_this_ranks_images_and_windows(desk_of: Project) -> None:
    ids = Index(desk_of).ids()
    table = Vectors(similar.tables.Table(desk_of.work / "vectors" / "drawn-0.lance"))
    whole = table.whole(ids)
    found = similar.run(desk_of, [ids[0]], count=5)
    order = np.argsort(-(whole @ whole[0]), kind="stable")[:5]
    assert [image.id for image in found] == [ids[row] for row in order]
    window = table.windows(ids[3]).vectors[2].astype(np.float32)  # the right half
    found = similar.run(desk_of, [ids[3]], (20, 4, 6, 6), 4)
    best = {id: float((table.windows(id).vectors.astype(np.float32) @ window).max()) for id in ids}
    assert [image.id for image in found] == [ids[3], *sorted(best, key=lambda id: -best[id])[1:4]]
    result = call(desk_of, "more_like_this", {"count": 7}, selected=samples(desk_of, [ids[0]]))
    assert result.result["told"].startswith("7 images like this one")
    assert "set_view" in str([request.operator_uri for request in result.executor._requests])


def test_regions_of_another_field_widen_nothing(desk_of: Project) -> None:
    """Confirm with a label selected, or Set class with a suggestion selected, would else mean the whole image."""
    id = next(id for id, member in Index(desk_of).members().items() if member.classes == {"crack"})
    entry = {"label_id": _region_ids(desk_of, id)[0], "sample_id": samples(desk_of, [id])[0], "field": "defects"}
    with pytest.raises(Exception, match="none of the selected regions is of predictions"):
        call(desk_of, "confirm", selected_labels=[entry])
    with pytest.raises(Exception, match="none of the selected regions is of defects"):
        call(desk_of, "set_class", {"class": "hole"}, selected_labels=[entry | {"field": "predictions"}])
    assert status_of(desk_of, id) == ("labelled", {"crack"})


def test_an_open_image_beside_a_forgotten_selection_is_asked_about(desk_of: Project) -> None:
    chosen, opened = samples(desk_of, unlabelled(desk_of)[:2])
    with pytest.raises(Exception, match="the open image is not among the 1 selected"):
        call(desk_of, "set_clean", selected=[chosen], current_sample=opened)


def test_a_suggestion_is_no_truth_where_models_are_measured(desk_of: Project, round_one: rounds.Round) -> None:
    audit = next(row["id"] for row in round_one.picks() if row["slot"] == "audit")
    predictions.store(Index(desk_of), "m", {audit: Prediction(((make_defect("crack", (1, 2, 6, 5)), 0.9),))})
    with pytest.raises(CurateError, match="audit picks or of val and test"):
        label.confirm(desk_of, [audit])


def test_an_evaluation_of_plain_boxes_is_stored(desk_of: Project) -> None:
    id = next(id for id, member in Index(desk_of).members().items() if member.classes == {"crack"})
    predictions.store(Index(desk_of), "m", {id: Prediction(((make_defect("crack", (0, 2, 9, 6)), 0.9),))})
    image = evaluation_runs.EvaluatedImage(("crack",), ("crack",), 0.9)
    assert evaluation_runs.store(Index(desk_of), "m", "test", "a folder", {id: image}, regions=True)
    assert Index(desk_of).edited() == []


# --- commands in the background ---------------------------------------------------------------------------------------


def test_two_commands_at_once_get_the_line_of_the_writer_lock(desk_of: Project) -> None:
    from curate.files import writer_lock

    with writer_lock(desk_of.work, "curate train"):
        call(desk_of, "select", {"budget": "6", "strategy": "random"})
        failed = jobs.wait(desk_of, jobs.listed(desk_of)[0].name, 120)
    assert failed.state == "failed"
    assert failed.told.startswith("error: 'curate train'")
    assert "is writing to this project" in failed.told


def test_a_command_in_the_background_can_be_cancelled(desk_of: Project) -> None:
    job = (
        jobs.start(desk_of, ("watch",))
        if desk.no_studio(desk_of) is None
        else jobs.start(desk_of, ("app",), ["--remote", f"--port={free_port()}"])
    )
    assert jobs.find(desk_of, job.name).state == "running"
    ours = psutil.Process().children(recursive=True)
    assert job.pid not in {os.getpgid(child.pid) for child in ours}, "the App ends its own descendants, not this one"
    call(desk_of, "cancel")
    ended = jobs.wait(desk_of, job.name, 120)
    assert ended.state == "cancelled"
    with pytest.raises(CurateError, match="is not running"):
        jobs.cancel(desk_of, job.name)


def test_a_damaged_job_hides_no_other(desk_of: Project) -> None:
    known = jobs.listed(desk_of)
    (desk_of.work / "jobs" / "20200101T000000.000-train").mkdir(parents=True)
    (desk_of.work / "jobs" / "20200101T000000.000-train" / "job.json").touch()
    assert jobs.listed(desk_of) == known


def test_a_killed_command_is_told(desk_of: Project) -> None:
    import signal

    job = jobs.start(desk_of, ("status",))
    os.killpg(job.pid, signal.SIGKILL)
    assert jobs.wait(desk_of, job.name, 30).state == "failed"
    assert "it was killed" in jobs.find(desk_of, job.name).told


# --- the panel's numbers ----------------------------------------------------------------------------------------------


def test_the_overview_counts_as_the_index_does(desk_of: Project, round_one: rounds.Round) -> None:
    shown = desk.overview(load(desk_of.folder))
    members = Index(desk_of).members()
    by_name = {entry["name"]: entry for entry in shown["classes"]}
    for name in ("crack", "hole"):
        known = [m for m in members.values() if m.status == "labelled" and name in m.classes]
        assert by_name[name]["images"] == len(known)
        assert by_name[name]["groups"] == len({m.group for m in known})
        assert shown["discovery"]["groups"][name][-1] == by_name[name]["groups"]
    (first, *_) = shown["rounds"]
    assert sum(first["slots"].values()) == sum(first["results"].values())
    assert shown["next"]
    assert shown["models"]["verdict"] == ["There is no model yet."]
    assert "audit" in shown["audit"]["note"]


def test_a_project_that_begins_has_an_overview(indexed: Project) -> None:
    shown = desk.overview(indexed)
    assert (shown["rounds"], shown["audit"]["classes"]) == ([], [])
    assert "curate select" in shown["audit"]["note"]


def test_picks_are_listed_by_slot_and_result(desk_of: Project, round_one: rounds.Round) -> None:
    picks = round_one.picks()
    audit = [row["id"] for row in picks if row["slot"] == "audit"]
    assert desk.picks_of(desk_of, round_one.name, "audit") == audit
    assert desk.picks_of(desk_of, round_one.name, "waiting") == [row["id"] for row in picks]
    before = desk.overview(desk_of)
    assert desk.overview(desk_of) is before, "nothing has changed: nothing is counted"
    label.set_clean(desk_of, audit[:1])
    assert desk.overview(desk_of)["by_status"]["labelled"] == before["by_status"]["labelled"] + 1
    assert desk.picks_of(desk_of, round_one.name, "clean") == audit[:1]
    with pytest.raises(CurateError, match="unknown round"):
        desk.picks_of(desk_of, "round 999", "audit")


@pytest.mark.parametrize(
    ("line", "name", "params"),
    [
        ("curate select --budget 500 --project x", "select", {"budget": "500"}),
        ("curate models promote --project x", "models_promote", {}),
        ("curate evaluate --model candidate --project x", "evaluate", {"model": "candidate"}),
        ("curate labelstudio up --project x", "labelstudio_up", {}),
        ("curate classes add NAME --project x", None, {}),
    ],
)
def test_next_steps_have_a_button(line: str, name: str | None, params: dict[str, str]) -> None:
    operator, given = panel.operator_for(line)
    assert (operator.name if operator else None, given) == (name, params)


def test_the_plug_in_s_file_lists_what_registers() -> None:
    import yaml

    listed = yaml.safe_load((app_plugins.OURS / "fiftyone.yml").read_text())
    assert listed["name"] == app_plugins.NAME
    assert set(listed["operators"]) == set(operators.names())
    assert inspect.getdoc(operators)


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_a_curator_picks_exemplars_selects_and_reads_the_reasons(project: Project, page: Any) -> None:
    view = Index(project).dataset.load_saved_view("class crack")
    splits, ids = view.values(["split", "content_id"])
    places = [place for place, split in enumerate(splits) if split == "train"][:2]
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with launched(project.folder, env=os.environ) as address:
        open_page(page, f"{address}?view=class-crack")
        page.locator("[data-cy=new-panel-btn]").first.click()
        page.get_by_text("Rare defects", exact=True).first.click()
        page.get_by_text(f"{len(Index(project).ids())} images:").wait_for(timeout=60_000)
        for place in places:
            page.locator("[data-cy=looker]").nth(place).click(position={"x": 20, "y": 20})
        page.keyboard.press("`")
        page.keyboard.type("select the next")
        page.get_by_text("Rare defects: Select the next round").first.click()
        page.get_by_text("Exemplars: the 2 selected images").wait_for()
        page.screenshot(path=SCREENSHOTS / "desk-select.png")
        form = page.locator(".MuiDialog-root").last
        form.get_by_text("Budget", exact=True).locator("xpath=following::input[1]").fill("5")
        known = {job.name for job in jobs.listed(project)}
        form.get_by_role("button", name="Run").click()
        page.get_by_text("curate select runs in the background").wait_for(timeout=60_000)
        page.screenshot(path=SCREENSHOTS / "desk-running.png")
        (new,) = (job for job in jobs.listed(project) if job.name not in known)
        done = jobs.wait(project, new.name, 120)
        assert (done.state, done.command) == ("done", "select"), done
        assert done.told.startswith("round 00")
        assert {stage.name for stage in done.stages} >= {"reading vectors"}
        chosen = rounds.find(project.work, None)
        assert {exemplar.partition(":")[0] for exemplar in chosen.manifest["exemplars"]} == {ids[p] for p in places}
        reason = next(row["reason"] for row in chosen.picks() if row["slot"] == "rare")
        page.get_by_text(reason).first.wait_for(timeout=60_000)
        page.screenshot(path=SCREENSHOTS / "desk-rounds.png")
        assert len(chosen.picks()) == 5
        page.locator(".plotly .points .point path").last.click(force=True)  # all of them wait
        page.get_by_text("5 samples").wait_for(timeout=60_000)
        page.get_by_role("tab", name="Classes").click()
        page.get_by_text("Groups known after each round").wait_for()
        page.screenshot(path=SCREENSHOTS / "desk-classes.png")
