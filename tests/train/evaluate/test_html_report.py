"""The report: whole, self-contained, safe with any name, and readable in a real browser, also on a phone."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from curate.data import Item, Label
from curate.masks.shapes import defect_from_mask
from tests.curate.index.test_browser import FLAGS, SCREENSHOTS
from tests.train.evaluate.test_metrics import NAMES, drawn, with_pixels, with_regions
from train.evaluate import html_report
from train.evaluate import run as evaluating
from train.evaluate.html_report import MistakePicture
from train.evaluate.metrics import EvaluatedImages
from train.evaluate.run import Evaluation
from train.store import StoredModel

HOSTILE = "<script>alert(1)</script>"
COLORS = {"crack": "#e6194b", "hole": "#3cb44b", "scale": "#4363d8"}


def model(epochs: int = 6) -> StoredModel:
    rows = [{"epoch": n, "train_loss": 1 / (n + 1), "val_loss": 1.2 / (n + 1)} for n in range(epochs)]
    recipe = {"model": {"architecture": "Unet", "encoder": "resnet18"}}
    manifest = {
        "key": "b" * 24,
        "recipe": recipe,
        "data": {"train": 70},
        "history": rows,
        "best": rows[-1] if rows else {},
    }
    return StoredModel(Path("model"), manifest)


def evaluation(
    evaluated: EvaluatedImages, notes: tuple[str, ...] = (), targets: dict[str, float] | None = None
) -> Evaluation:
    lines = [("line A", "a line with a longer name")[number % 2] for number in range(len(evaluated.ids))]
    values = json.loads(json.dumps(evaluating.summarise(evaluated, evaluated, targets or {}, lines)))
    manifest = {"project": "plant", "split": "test", "task": "segmentation", "notes": list(notes), "draws": 1000}
    return Evaluation(Path("work"), manifest | {"model": "b" * 24, "made": "2026-01-01T00:00:00Z"}, values)


def shots(count: int = 5, aspect: float = 1.0) -> list[MistakePicture]:
    image = html_report._data_uri(np.full((60, round(60 * aspect), 3), 128, np.uint8))
    return [MistakePicture(image, aspect, "missed crack; confidence 93%", f"{number}.png") for number in range(count)]


def everything(evaluated: EvaluatedImages | None = None, target: str = "crack") -> str:
    about = evaluation(evaluated or with_regions(with_pixels(drawn(60))), ("a word of caution",), {target: 0.9})
    return html_report.page(about.metrics, about.manifest, model(), shots(), COLORS)


class _Whole(HTMLParser):
    """Checks that every element is closed by its own name, and collects what would be fetched."""

    VOID = frozenset({"meta", "img", "br", "path", "rect", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def parsed(page: str) -> _Whole:
    parser = _Whole()
    parser.feed(page)
    assert parser.open == []
    return parser


@pytest.mark.parametrize("single", [False, True])
def test_the_page_is_whole_and_fetches_nothing(single: bool) -> None:
    evaluated = drawn(60, single=single)
    page = everything(evaluated if single else None)
    whole = parsed(page)
    assert whole.sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in whole.sources)
    assert "http" not in page.replace("data:", "")
    assert "script" not in whole.seen
    for title in (
        "Images, by class",
        "Lines, cameras, plants",
        "Images: recall against false alarms",
        "Operating points",
        "Confusion matrix",
        "Training",
        "Worst mistakes",
    ):
        assert title in page
    assert ("Pixels and boxes, by class" in page) is not single


def test_the_numbers_are_those_of_the_evaluation() -> None:
    evaluated = with_regions(with_pixels(drawn(60)))
    metrics = evaluation(evaluated).metrics
    page = everything(evaluated)
    for name in html_report.TITLES:
        if name in metrics["overall"]:
            estimate = metrics["overall"][name]
            assert f"<b>{estimate['value']:.3f}</b>" in page, name
            assert f"{estimate['low']:.3f} to {estimate['high']:.3f}" in page, name
    counts = re.findall(r'<td style="background[^>]*>(\d+)</td>', page)
    assert [int(count) for count in counts] == np.ravel(metrics["confusion"]["counts"]).tolist()


def test_any_name_is_only_a_name() -> None:
    evaluated = with_regions(with_pixels(drawn(60)))
    renamed = EvaluatedImages(**{**vars(evaluated), "classes": (HOSTILE, *NAMES[1:])})
    about = evaluation(renamed, (HOSTILE,), {HOSTILE: 0.9})
    about.manifest["project"] = HOSTILE
    pictures = [MistakePicture(shots(1)[0].image, 1.0, HOSTILE, HOSTILE)]
    page = html_report.page(about.metrics, about.manifest, model(), pictures, {HOSTILE: '"><b>'})
    assert "<script" not in page
    assert '"><b>' not in page
    parsed(page)


def test_what_cannot_be_measured_is_reported() -> None:
    evaluated = with_regions(with_pixels(drawn(60)))
    empty = evaluated.present & [False, True, True]
    page = everything_of(EvaluatedImages(**{**vars(evaluated), "present": empty}), [])
    assert "nothing to measure" in page
    assert "nan" not in page.lower().replace("nance", "")
    few = with_regions(with_pixels(drawn(6)))
    assert "too few to say" in everything_of(few, [])


def everything_of(evaluated: EvaluatedImages, of: list[MistakePicture]) -> str:
    about = evaluation(evaluated)
    page = html_report.page(about.metrics, about.manifest, model(0 if not of else 3), of, COLORS)
    parsed(page)
    return page


def test_a_picture_shows_both_outlines(tmp_path: Path) -> None:
    pixels = np.full((64, 128), 90, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    masks = np.zeros((2, 64, 128), np.uint8)
    masks[0, 10:30, 20:60], masks[1, 35:55, 70:110] = 1, 1
    truth, predicted = (defect_from_mask("crack", mask) for mask in masks)
    assert truth is not None
    assert predicted is not None
    item = Item("0" * 64, tmp_path / "a.png", 128, 64, Label("labelled", (truth,)), "test")
    row = {"eval_missed": ["crack"], "eval_false_alarm": [], "eval_dice": 0.0, "eval_confidence": 0.9}
    shot = html_report._picture(pixels, item, [predicted], row)
    assert shot.title == "missed crack; Dice 0.00; confidence 90%"
    coded = np.frombuffer(base64.b64decode(shot.image.split(",")[1]), np.uint8)
    image = cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1].astype(int)
    assert image.shape == (128, 256, 3)
    green, pink = image[..., 1] - image[..., 0] > 40, image[..., 0] - image[..., 1] > 40
    for where, mask in ((green, masks[0]), (pink, masks[1])):
        large = cv2.resize(mask, (256, 128), interpolation=cv2.INTER_NEAREST)
        edge = cv2.dilate(large, np.ones((7, 7))) - cv2.erode(large, np.ones((7, 7)))
        assert where.sum() > 100
        assert (edge[where] > 0).all()


LONG = ("inclusion of mould powder, upper side", "inclusion of mould powder, lower side", "rolled-in_scale_" * 3)


def test_no_name_is_cut() -> None:
    evaluated = with_regions(with_pixels(drawn(60)))
    page = everything(EvaluatedImages(**{**vars(evaluated), "classes": LONG}), LONG[0])
    for name in LONG[:2]:
        assert page.count(f">{name}</text>") == 1  # beside its bars
    assert "…" not in page


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser_nothing_sticks_out(tmp_path: Path, width: int) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    file, evaluated = tmp_path / "report.html", with_regions(with_pixels(drawn(60)))
    file.write_text(everything(EvaluatedImages(**{**vars(evaluated), "classes": LONG}), LONG[0]), encoding="utf-8")
    asked: list[str] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=FLAGS.split())
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(file.as_uri())
        measured: dict[str, Any] = tab.evaluate(
            """() => ({
                width: document.documentElement.scrollWidth,
                broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).length,
                flat: [...document.querySelectorAll('svg, figure, .card')]
                    .filter(e => e.getBoundingClientRect().height < 20).length,
            })"""
        )
        cut = tab.evaluate(
            "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
        )
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        tab.screenshot(path=SCREENSHOTS / f"report-{width}.png", full_page=True)
        browser.close()
    assert measured == {"width": width, "broken": 0, "flat": 0}
    assert width < 1000 or not cut
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
