"""The search: what was killed ends as what was not, hopeless trials end early, and test is never looked at."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import pytest

from curate.errors import CurateError
from curate.index.dataset import Index
from curate.project import Project
from tests.curate.cli.test_cli import CURATE, Run, failed, ok, run  # noqa: F401 - a fixture
from tests.train.conftest import data
from tests.train.fit.test_loop import CNN
from train import recipe, store
from train.fit import tune as tuning
from train.fit.run import TrainRequest
from train.fit.tune import Trial, TuneBudget, TuneResult, TuneTask

EPOCHS = 3
TINY = (*CNN[:-1], f"epochs={EPOCHS}", "patience=99", "model.dropout=0")
REQUEST = TrainRequest(recipe="simple-cnn", overrides=TINY, device="cpu")
TUNE = ("tune", "--recipe", "simple-cnn", "--device", "cpu", *(part for text in TINY for part in ("--set", text)))


class Steps:
    """Counts the steps of all trials; Ctrl-C at one of them."""

    def __init__(self, limit: float = math.inf) -> None:
        self.done, self.limit = 0, limit

    def __call__(self, stage: str, now: int, total: int) -> None:
        self.done += now
        if self.done == self.limit:
            raise KeyboardInterrupt


def tune(
    project: Project, trials: int, metric: str = "val_loss", seconds: float = 1e6, steps: Any = None
) -> TuneResult:
    return tuning.run(project, REQUEST, TuneBudget(trials, seconds, metric), steps or Steps())


def leftovers(project: Project) -> list[Path]:
    return [*(project.work / "tune").glob("*/.*.training"), *(project.work / "models").glob("*/manifest.json")]


def test_tune_as_people_and_scripts_meet_it(run: Run, works: Project) -> None:  # noqa: F811
    project = ("--project", str(works.folder))
    first = ok(run(*TUNE, *project, "--trials", 2, "--json"))
    assert [trial["number"] for trial in first["trials"]] == [1, 2]
    assert (first["fresh"], first["left"], first["trials"][0]["set"]) == (2, 0, [])  # the first is the recipe itself
    assert first["trials"][1]["set"]
    assert Path(first["study"]) == works.work / "tune" / first["key"] / "study.sqlite"
    assert leftovers(works) == []
    assert ok(run(*TUNE, *project, "--trials", 2, "--json")) == first | {"fresh": 0}
    code, out, err = run(*TUNE, *project, "--trials", 2)
    assert code == 0, err
    assert "nothing to do" in out
    assert "the recipe as it is" in out
    assert f"next: {shlex.join(first['train'])}" in out
    more = ok(run(*TUNE, *project, "--trials", 3, "--json"))
    assert (more["fresh"], more["trials"][:2], more["key"]) == (1, first["trials"], first["key"])
    other = ok(run(*TUNE, *project, "--trials", 1, "--metric", "f1.hole", "--json"))
    assert other["key"] != first["key"]  # values of another measure do not belong into the same study


@pytest.mark.exhaustive
def test_the_printed_line_trains_what_the_trial_was(run: Run, works: Project) -> None:  # noqa: F811
    project = ("--project", str(works.folder))
    result = ok(run(*TUNE, *project, "--trials", 4, "--json"))
    assert result["best"]["value"] == max(trial["value"] for trial in result["trials"] if trial["state"] == "done")
    line = [str(works.folder) if word == works.name else word for word in result["train"][1:]]
    trained = ok(run(*line, "--json"))
    manifest = store.find(works, trained["model"]).manifest
    assert np.mean(list(manifest["best"]["f1"].values())) == result["best"]["value"]
    applied = ok(run(*TUNE, *project, "--trials", 4, "--apply", "--json"))
    assert (applied["trained"]["model"], applied["trained"]["fresh"]) == (trained["model"], False)
    assert "nothing to do: this recipe is trained" in run(*TUNE, *project, "--trials", 4, "--apply")[1]


@pytest.mark.exhaustive
def test_what_was_interrupted_is_what_was_not(works: Project) -> None:
    """Ctrl-C, time that is up, `kill -9`: the same trials, and of the one they hit only an epoch is done again."""
    count = Steps()
    whole = tune(works, 6, steps=count)
    assert len({trial.params["lr"] for trial in whole.trials}) == len(whole.trials) == 6
    home = whole.folder

    shutil.rmtree(home)
    with pytest.raises(KeyboardInterrupt):  # in the last epoch of the first trial, each of which is one step
        tune(works, 6, steps=Steps(EPOCHS))
    assert list(home.glob(".*.training/last.ckpt"))
    rest = Steps()
    assert tune(works, 6, steps=rest).trials == whole.trials
    assert rest.done == count.done - (EPOCHS - 1)  # its first epochs are not trained twice

    shutil.rmtree(home)
    home.mkdir()
    (home / ".study.sqlite.1.part-journal").touch()  # of a kill while the study was created
    runs, result = 1, tune(works, 2, seconds=1e-9)
    assert not list(home.glob(".study.sqlite*"))
    assert result.left
    while result.left:
        runs, result = runs + 1, tune(works, 2, seconds=1e-9)
        assert runs <= 2 * EPOCHS
    assert result.trials == whole.trials[:2]

    shutil.rmtree(home)
    kill_during_search(works, home, 6)
    again = tune(works, 6)
    assert [approximate(trial) for trial in again.trials] == [approximate(trial) for trial in whole.trials]
    assert leftovers(works) == []
    states = [trial.state.name for trial in open_study(home).get_trials()]
    assert (len(states), states.count("FAIL")) == (7, 1)


def approximate(trial: Trial) -> dict[str, Any]:
    """Threads of another process may add in another order."""
    value = None if trial.value is None else pytest.approx(trial.value, rel=1e-4)
    params = {name: pytest.approx(part, rel=1e-9) if name == "lr" else part for name, part in trial.params.items()}
    return vars(trial) | {"value": value, "params": params}


def kill_during_search(project: Project, home: Path, trials: int) -> None:
    """`kill -9` in the middle of the second trial or a later one."""
    command = [*CURATE, *TUNE, "--project", str(project.folder), "--trials", str(trials), "--metric", "val_loss"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    folders, deadline = set[str](), time.monotonic() + 120
    while len(folders) < 2 and time.monotonic() < deadline:
        assert process.poll() is None
        folders |= {path.parent.name for path in home.glob(".*.training/last.ckpt")}
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert len(folders) == 2


def open_study(home: Path) -> optuna.Study:
    return optuna.load_study(study_name="tune", storage=f"sqlite:///{home / tuning.STUDY}")


@pytest.mark.exhaustive
def test_hopeless_trials_end_early(works: Project) -> None:
    count = Steps()
    result = tune(works, 12, steps=count)
    pruned = [trial for trial in result.trials if trial.state == "pruned"]
    assert any(trial.epochs < EPOCHS for trial in pruned)
    assert all(trial.number > tuning.UNPRUNED for trial in pruned)
    assert all(trial.epochs == EPOCHS for trial in result.trials if trial.state == "done")
    images = len(tuning.prepare(works, REQUEST, TuneBudget()).data.train)
    steps = [trial.epochs * math.ceil(images / trial.params["batch"]) for trial in result.trials]
    assert count.done == sum(steps)  # what the study says was trained is what was trained
    best = result.ranked[0]
    assert best.state == "done"
    assert best.value == min(
        trial.value for trial in result.trials if trial.state == "done" and trial.value is not None
    )


def test_test_is_never_looked_at(works: Project) -> None:
    """Test's labels change and its files become rubbish: the same study, and from scratch the same values."""
    before = tune(works, 2, "f1")
    index = Index(works)
    held = index.dataset.match(index.fo.ViewField("split") == "test")
    assert len(held)
    for sample in held:
        Path(sample.filepath).write_bytes(b"rubbish")
        sample["status"] = "skipped"
        sample.save()
    again = tune(works, 2, "f1")
    assert (again.folder, again.fresh) == (before.folder, 0)
    shutil.rmtree(before.folder)
    assert tune(works, 2, "f1").trials == before.trials
    taught = index.dataset.match(index.fo.ViewField("split") == "train").first()
    taught["status"] = "skipped"
    taught.save()
    assert tuning.prepare(works, REQUEST, TuneBudget()).folder != before.folder


def test_what_is_wrong_is_one_line(run: Run, works: Project) -> None:  # noqa: F811
    project = ("--project", str(works.folder))
    pins = [part for key in ("optimiser.lr=1e-3", "batch=8", "schedule.name=step") for part in ("--set", key)]
    diverges = [part for key in ("name=sgd", "lr=100", "weight_decay=100") for part in ("--set", f"optimiser.{key}")]
    diverges += ["--set", "batch=2"]
    for arguments, message in (
        (["--time", "soon"], "time 'soon' is not valid; allowed: 4h, 90m"),
        (["--time", "20"], "time '20' is not valid"),
        (["--metric", "loss"], "unknown metric 'loss'"),
        (["--metric", "f1.scratch"], "allowed: f1, f1.crack, f1.hole, val_loss"),
        (["--device", "tpu"], "allowed: auto, cpu, cuda"),
        (pins, "leave one of them out of --set"),
        (["--set", "optimiser.lr=1e30"], "optimiser.lr: Input should be less than or equal to 100 (it is 1e+30)"),
        (["--trials", "2", *diverges], "none of 2 trials could be trained; the first: the loss"),
    ):
        assert message in failed(run(*TUNE, *project, *arguments)), arguments
    assert leftovers(works) == []
    result = ok(run(*TUNE, *project, "--trials", "1", "--json"))
    Path(result["study"]).write_bytes(b"no database" * 100)
    assert "study.sqlite cannot be used" in failed(run(*TUNE, *project))


def test_without_val_there_is_nothing_to_compare_by(tmp_path: Path) -> None:
    for training_data, budget, message in (
        (data(tmp_path, 8, 0, "classification"), TuneBudget(), "no labelled image in val"),
        (data(tmp_path, 11, 1, "classification"), TuneBudget(), "no image of val shows a defect"),
    ):
        with pytest.raises(CurateError, match=message):
            tuning._check(budget, training_data)
    tuning._check(TuneBudget(metric="val_loss"), data(tmp_path, 11, 1, "classification"))


# --- what is searched -----------------------------------------------------------------------------------------------


def task_of(folder: Path, name: str, overrides: Sequence[str] = (), metric: str = "f1") -> TuneTask:
    base, training_data = recipe.load(name, overrides), data(folder, 8, 4)
    space, notes = tuning._space(base, training_data, overrides, metric)
    return TuneTask(
        cast(Any, None),
        TrainRequest(recipe=name, overrides=overrides),
        TuneBudget(),
        base,
        training_data,
        space,
        folder,
        (*notes,),
    )


@pytest.mark.parametrize("name", recipe.names())
def test_every_proposal_is_a_recipe_that_says_what_was_proposed(tmp_path: Path, name: str) -> None:
    task = task_of(tmp_path, name)
    assert tuning.overrides_of(task, task.recipe_values) == []
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(30):
        params = study.ask(dict(task.space)).params
        proposed = task.recipe_with(tuning.overrides_of(task, params))
        assert proposed.optimiser.lr == pytest.approx(params["lr"], rel=6e-3)
        assert (proposed.batch, proposed.schedule.name) == (params["batch"], params["schedule"])
        for phase, base_phase in zip(proposed.phases, task.base.phases, strict=False):
            assert (phase.lr is None) == (base_phase.lr is None)
            if phase.lr and base_phase.lr:
                assert phase.lr / base_phase.lr == pytest.approx(params["lr"] / task.base.optimiser.lr, rel=1e-2)
        if len(task.base.phases) > 1:
            assert proposed.phases == (
                task.base.phases[0].model_copy(update={"epochs": params["freezing"], "lr": proposed.phases[0].lr}),
                task.base.phases[1].model_copy(update={"lr": proposed.phases[1].lr}),
            )
        elif task.base.phases:
            assert [part.train for part in proposed.phases] == [params["freezing"]]
        else:  # the epochs are the recipe's, whatever is frozen in the first of them
            assert sum(part.epochs for part in proposed.parts) == task.base.epochs
            assert sum(part.epochs for part in proposed.parts if part.train == "head") == params.get("freezing", 0)
        rest = {"optimiser", "batch", "schedule", "phases"}
        assert proposed.model_dump(exclude=rest) == task.base.model_dump(exclude=rest)


@pytest.mark.parametrize(
    ("name", "overrides", "searched"),
    [
        ("simple-cnn", [], {"lr", "batch", "schedule"}),  # random features are not worth keeping
        ("mobilenetv2-fast", [], {"lr", "batch", "freezing", "schedule"}),
        ("mobilenetv2-fast", ["batch=4", "schedule.name=step"], {"lr", "freezing"}),
        ("mobilenetv2-fast", ["model.weights=none"], {"lr", "batch", "schedule"}),
        ("mobilenetv2-two-phase", ["phases.0.epochs=3", "phases.1.lr=1e-5"], {"lr", "batch", "schedule"}),
    ],
)
def test_what_is_set_is_not_searched(tmp_path: Path, name: str, overrides: list[str], searched: set[str]) -> None:
    task = task_of(tmp_path, name, overrides)
    assert set(task.space) == searched
    texts = tuning.overrides_of(
        task, {key: distribution.high for key, distribution in task.space.items() if key == "lr"}
    )
    assert not {text.partition("=")[0] for text in texts} & {text.partition("=")[0] for text in overrides}


def test_a_loss_over_the_batch_cannot_judge_batches(tmp_path: Path) -> None:
    task = task_of(tmp_path, "unet-resnet", metric="val_loss")
    assert "batch" not in task.space
    assert "dice" in task.notes[0]
    assert "batch" in task_of(tmp_path, "unet-resnet").space
    assert "batch" in task_of(tmp_path, "simple-cnn", metric="val_loss").space


def test_line_is_shell_safe_json(tmp_path: Path) -> None:
    """`phases` is a list: what people copy must survive their shell."""
    task = task_of(tmp_path, "mobilenetv2-fast")
    text = tuning.overrides_of(task, task.recipe_values | {"freezing": 4})
    assert json.loads(text[0].partition("=")[2]) == [{"epochs": 4, "train": "head"}, {"epochs": 36}]
    echoed = subprocess.run(["sh", "-c", f"printf %s {shlex.quote(text[0])}"], capture_output=True, check=True)
    assert echoed.stdout.decode() == text[0]
