"""A model on images that are in no index: the same answers as `curate predict`, and one line for everything else."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from curate.errors import CurateError, LabelProblem
from curate.index.dataset import Index
from curate.masks import shapes
from curate.masks.decode import pixels_of
from curate.project import Project
from tests.curate.cli.test_cli import Run, failed, run  # noqa: F401
from tests.fakes import REPOSITORY
from tests.train.conftest import drawn
from tests.train.export.test_run import LAX, SEGMENTER, trained
from train.evaluate import decide
from train.export import run as exporting
from train.export import runner
from train.predict.predictor import load_predictor

pytestmark = pytest.mark.filterwarnings("ignore")
RUN = [sys.executable, "-m", "curate", "run"]


@pytest.fixture
def exported(works: Project, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A segmenter with fitted decisions, as files."""
    monkeypatch.setattr(decide, "FEWEST", 1)
    model = trained(works, *SEGMENTER)
    decide.run(works, model.key, {}, "cpu")
    return exporting.run(works, LAX).folder


def curate(*words: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [*RUN, *map(str, words)]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=300, cwd=REPOSITORY, check=False
    )


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def same_answers(works: Project, exported: Path) -> None:
    """Both engines against what `curate predict` computes."""
    predictor = load_predictor(works, exported.name, "cpu")
    assert predictor.decisions, "val shows a class"
    stored, file = runner.load(exported.name, works, device="cpu"), runner.load(str(exported))
    assert (stored.engine, file.engine) == ("torch", "model.onnx")
    assert file.predictor.decisions == {name: predictor.decision(name) for name in predictor.classes}
    index = Index(works)
    paths = [Path(item.path) for item in index.items(sorted(id for id, _ in index.rows("filepath")))][:12]
    some = 0
    for (path, answer), (_, other) in zip(runner.apply(stored, paths), runner.apply(file, paths), strict=True):
        assert not isinstance(answer, LabelProblem)
        assert not isinstance(other, LabelProblem)
        expected = predictor.predict_image(pixels_of(path.read_bytes(), 10**8))
        assert answer.prediction.defects == expected.defects
        np.testing.assert_array_equal(answer.prediction.probability, expected.probability)
        np.testing.assert_allclose(other.prediction.probability, expected.probability, atol=1e-3)
        assert [defect for defect, _ in other.prediction.defects] == [defect for defect, _ in expected.defects]
        some += len(expected.defects)
        for entry, (defect, confidence) in zip(answer.to_json()["defects"], expected.defects, strict=True):
            assert entry["label"] == defect.label
            assert entry["confidence"] == pytest.approx(confidence, abs=1e-4)
            assert entry["area"] == shapes.mask_of(defect, 64, 64).sum()
    assert some, "nothing was found: nothing was compared"


def people_and_scripts(exported: Path, tmp_path: Path) -> None:
    """A folder, names from stdin, what is no image, and pictures."""
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    for number, name in enumerate(("a.png", "deeper/b.png")):
        Image.fromarray(drawn(number)[0]).save(folder / name)
    (folder / "notes.txt").write_text("no image, and not named as one")
    done = curate(exported, folder, "--overlays", tmp_path / "drawn")
    assert done.returncode == 0, done.stderr
    found = lines(done.stdout)
    assert [entry["file"] for entry in found] == [str(folder / "a.png"), str(folder / "deeper/b.png")]
    assert all(entry["ms"] > 0 and (entry["width"], entry["height"]) == (64, 64) for entry in found)
    assert "2 images" in done.stderr
    assert "p50" in done.stderr
    pictures = sorted((tmp_path / "drawn").rglob("*.png"))
    assert len(pictures) == 2
    with Image.open(pictures[0]) as picture:
        assert picture.size == (64, 64)

    (folder / "broken.png").write_bytes(b"no image")
    os.mkfifo(folder / "pipe.png")
    names = "\n".join(str(folder / name) for name in ("a.png", "broken.png", "pipe.png", "gone.png"))
    done = curate(exported, "-", "--int8", stdin=names)
    assert done.returncode == 1
    good, *bad = lines(done.stdout)
    assert "defects" in good
    assert [Path(entry["file"]).name for entry in bad if entry["error"]] == ["broken.png", "pipe.png", "gone.png"]
    assert "1 images" in done.stderr
    assert "Traceback" not in done.stderr


def neither_torch_nor_fiftyone(exported: Path, tmp_path: Path) -> None:
    Image.fromarray(drawn(1)[0]).save(tmp_path / "a.png")
    code = """
import sys
from curate.cli import app
try:
    app(["run", *sys.argv[1:]])
except SystemExit as end:
    assert not end.code, end.code
print([name for name in ("torch", "fiftyone", "lance", "sklearn", "pandas") if name in sys.modules])
"""
    command = [sys.executable, "-c", code, str(exported), str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def a_closed_pipe(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(20):
        Image.fromarray(drawn(number)[0]).save(tmp_path / "many" / f"{number:02d}.png")
    command = [*RUN, str(exported), str(tmp_path / "many")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        told = process.stderr.read()
    assert b"Traceback" not in told
    assert b"Exception" not in told


@contextlib.contextmanager
def serving(exported: Path, **variables: str) -> Iterator[str]:
    command = [*RUN, str(exported), "--serve", "--port", "0"]
    environment = os.environ | variables
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment) as process:
        assert process.stderr is not None
        yield process.stderr.readline().partition(" at ")[2].partition(": ")[0]
        process.send_signal(signal.SIGINT)
        process.wait(30)


def over_http(exported: Path) -> None:
    """It answers this machine alone, and with a token only those who know it."""
    content = io.BytesIO()
    Image.fromarray(drawn(3)[0]).save(content, "PNG")
    image = content.getvalue()
    expected = runner.load(str(exported)).answer(image).to_json()
    with serving(exported) as url:
        assert url.startswith("http://127.0.0.1:")
        answer = httpx.post(url, content=image, timeout=60)
        assert answer.status_code == 200
        assert answer.json()["defects"] == expected["defects"]
        assert httpx.get(url).json()["engine"] == "model.onnx"
        assert httpx.post(url, content=b"no image").status_code == 422
        elsewhere = {"Host": "evil.example:80"}
        assert httpx.get(url, headers=elsewhere).status_code == 403
        assert httpx.post(url, content=image, headers=elsewhere).status_code == 403
    with serving(exported, CURATE_RUN_TOKEN="secret") as url:
        assert httpx.post(url, content=image).status_code == 403
        assert httpx.post(url, content=image, headers={"Curate-Token": "secret"}).status_code == 200


def damaged_exports(exported: Path) -> None:
    file = exported / "export.json"
    about = file.read_text()
    one_area = {name: value for name, value in json.loads(about).items() if name != "min_areas"} | {"min_area": 7}
    file.write_text(json.dumps(one_area))  # of an older curate
    assert {decision.min_area for decision in runner.load(str(exported)).predictor.decisions.values()} == {7}
    for text, words in (
        ("{", "export.json is damaged"),
        ('{"classes": 3}', "is missing or of the wrong kind"),
        (json.dumps(json.loads(about) | {"thresholds": {}}), "thresholds or areas"),
        (json.dumps(json.loads(about) | {"recipe": {"task": "segmentation"}}), "export.json"),
    ):
        file.write_text(text)
        with pytest.raises(CurateError, match=words) as caught:
            runner.load(str(exported))
        assert "\n" not in str(caught.value)
    file.write_text(about)
    (exported / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(CurateError, match="cannot be loaded"):
        runner.load(str(exported))
    (exported / "model.onnx").unlink()
    with pytest.raises(CurateError, match="export again"):
        runner.load(str(exported))
    file.unlink()
    with pytest.raises(CurateError, match="give the folder that curate export-model wrote"):
        runner.load(str(exported))


def test_a_model_is_applied_as_predict_does_it(works: Project, exported: Path, tmp_path: Path) -> None:
    """One test, because training and export take longer than all of it."""
    same_answers(works, exported)
    people_and_scripts(exported, tmp_path)
    neither_torch_nor_fiftyone(exported, tmp_path)
    a_closed_pipe(exported, tmp_path)
    over_http(exported)
    damaged_exports(exported)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("{here}/nothing.onnx", "{here}"), "nothing at"),
        (("{here}", "{here}"), "give the folder that curate export-model wrote"),
        (("{here}",), "or --serve"),
    ],
)
def test_user_errors_are_one_line(run: Run, tmp_path: Path, words: tuple[str, ...], told: str) -> None:  # noqa: F811
    assert told in failed(run("run", *(word.format(here=tmp_path) for word in words)))
