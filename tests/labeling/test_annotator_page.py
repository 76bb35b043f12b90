"""The annotator's page: the real Label Studio in a real headless Chromium.

Leaves screenshots in out/screenshots/.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curate.data import Defect
from curate.index import predictions, sync
from curate.index.dataset import Index
from curate.index.predictions import Prediction
from curate.masks import shapes
from curate.project import Project
from curate.select import anomaly_table
from curate.tables import Table
from curate.vectors.store import PLACE
from labeling import config, examples, pull, push, results, server
from labeling.client import Studio
from labeling.server import RunningServer
from tests import fakes
from tests.conftest import LIBRARY, LINE, Make
from tests.curate.index.test_browser import FLAGS, SCREENSHOTS, chromium  # noqa: F401
from tests.labeling.helpers import history, labels, ls_project_of, round_of, unlabelled

pytestmark = pytest.mark.browser
EXHAUSTIVE = pytest.mark.exhaustive
WIDE, HIGH = 400, 200
CENTRE, RADIUS = (300, 100), 20  # of the dark blob, in pixels of the image
PATH = [(60, 60), (120, 60), (120, 140)]  # along which the mouse paints
TWELVE = ["crack", "hole", "scale", "patch", "craze", "inclusion", "pit", "scratch", "edge", "fold", "water", "oil"]


@pytest.fixture
def page(chromium: str, studio_server: RunningServer) -> Iterator[Any]:  # noqa: F811
    """A browser in which the first user has logged in through the form."""
    from playwright.sync_api import sync_playwright

    known = server.read_credentials(studio_server.folder)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS.split())
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.set_default_timeout(20_000)
        page.goto(f"{studio_server.url}/user/login/")
        page.fill("input[name=email]", known.email)
        page.fill("input[name=password]", known.password)
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "login" not in url)
        yield page
        browser.close()


# --- a plant whose images are large enough to paint on ----------------------------------------------------------------


def disc(width: int, height: int, centre: tuple[int, int] = CENTRE) -> np.ndarray[Any, np.dtype[np.uint8]]:
    y, x = np.mgrid[:height, :width]
    return ((x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= RADIUS**2).astype(np.uint8)


def blob() -> Defect:
    found = shapes.defect_from_mask("hole", disc(WIDE, HIGH))
    assert found is not None
    return found


def plant(
    make: Make, folder: Path, sizes: Sequence[tuple[int, int]], classes: Sequence[str] = ("crack", "hole")
) -> Project:
    """Labelled images for the instructions, and one production image of each size with a dark blob on it."""
    library, line = folder / "paint" / "library", folder / "paint" / "line"
    for piece in range(8):
        fakes.save_image(library / "images" / f"piece{piece}_0.png", WIDE, HIGH, piece)
        mask = library / "masks" / classes[piece % 2] / f"piece{piece}_0.png"
        fakes.save_mask(mask, [(100, 50, 60, 30 + piece)], (WIDE, HIGH))
    for number, (width, height) in enumerate(sizes):
        picture = fakes.steel(width, height, 900 + number)
        picture[disc(width, height, (width * 3 // 4, height // 2)) > 0] = 40
        file = line / "A" / "cam0" / f"coil{number}_{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
    options = {"severities": ["minor", "major"]}
    project = make([LIBRARY | {"data": library}, LINE | {"data": line}], classes, labelstudio=options)
    sync.run(project)
    return project


def pushed(project: Project, studio: Studio, ids: Sequence[str], slots: Sequence[str] = ()) -> None:
    round_of(project, ids, slots)
    push.run(project, studio, push.PushRequest())


# --- what an annotator does -------------------------------------------------------------------------------------------


def open_queue(page: Any, project: Project, studio: Studio) -> None:
    page.goto(ls_project_of(project, studio).url)
    page.get_by_role("button", name="Label All Tasks").click()
    dismissed = page.get_by_text("Labeling Instructions")
    dismissed.wait_for()
    page.keyboard.press("Escape")
    dismissed.wait_for(state="hidden")
    loaded(page)


def loaded(page: Any) -> None:
    page.wait_for_function("document.querySelector('img[alt=image]')?.naturalWidth > 0")
    page.wait_for_timeout(700)  # the masks are drawn after the image


def title(page: Any) -> str:
    return str(page.locator("h4, h3, h2").filter(has_text="round 001").first.inner_text())


def button(page: Any, text: str) -> Any:
    return page.locator("button", has_text=re.compile(f"^{text}$")).first


def submit(page: Any, following: str | None) -> None:
    """Press the button; `following` is in the header of the task that comes next."""
    button(page, "Submit").click()
    follows(page, following)


def follows(page: Any, following: str | None) -> None:
    if following is None:
        page.get_by_text("No More Tasks Left in Queue").wait_for()
    else:
        page.locator("h4, h3, h2").filter(has_text=following).first.wait_for()
        loaded(page)


def at(page: Any, x: float, y: float) -> tuple[float, float]:
    """Where a pixel of the image is on the screen."""
    box, natural = page.evaluate(
        "(() => { const image = document.querySelector('img[alt=image]'), box = image.getBoundingClientRect();"
        "return [[box.x, box.y, box.width, box.height], [image.naturalWidth, image.naturalHeight]] })()"
    )
    return box[0] + (x + 0.5) * box[2] / natural[0], box[1] + (y + 0.5) * box[3] / natural[1]


def drag(page: Any, path: Sequence[tuple[float, float]]) -> None:
    page.mouse.move(*at(page, *path[0]))
    page.mouse.down()
    for point in path[1:]:
        page.mouse.move(*at(page, *point), steps=25)
    page.mouse.up()
    page.wait_for_timeout(500)


def tinted(page: Any, name: str, color: str, centre: tuple[int, int], reach: int = 8) -> float:
    """Share of the pixels about this place of the image that lean towards the colour; leaves a screenshot."""
    left, top = at(page, centre[0] - reach, centre[1] - reach)
    right, bottom = at(page, centre[0] + reach, centre[1] + reach)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
    clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB"), dtype=int)
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    tint, lean = wanted - wanted.mean(), pixels - pixels.mean(axis=2, keepdims=True)
    strength = np.linalg.norm(lean, axis=2)
    cosine = (lean @ tint) / (np.linalg.norm(tint) * np.maximum(strength, 1))
    return float(((strength > 30) & (cosine > 0.95)).mean())


def chosen(page: Any) -> list[str]:
    names = "[...document.querySelectorAll('.lsf-label_selected')].map(one => one.innerText.split(/\\s+/)[0])"
    return list(page.evaluate(names))


def tool(page: Any) -> list[str]:
    names = "[...document.querySelectorAll('.lsf-tool_active')].map(one => one.getAttribute('aria-label'))"
    return list(page.evaluate(names))


# --- the tests --------------------------------------------------------------------------------------------------------


def test_a_whole_round_by_mouse_and_keys(make: Make, tmp_path: Path, studio: Studio, page: Any) -> None:
    project = plant(make, tmp_path, [(WIDE, HIGH)] * 6)
    kept, changed, audit, painted, unsure, skipped = ids = unlabelled(project)
    said = {id: Prediction(((blob(), 0.8),), by="m1") for id in (kept, changed, audit)}
    predictions.store(Index(project), "m1", said)
    pushed(project, studio, ids, ["rare", "rare", "audit", "rare", "rare", "rare"])
    colors = project.colors

    open_queue(page, project, studio)
    assert title(page) == "round 001, 1 of 6"
    assert page.evaluate("document.querySelector('img[alt=image]').naturalWidth") == WIDE
    assert tinted(page, "annotator-suggestion", colors["hole"], CENTRE) > 0.9
    assert tinted(page, "annotator-suggestion", colors["hole"], (100, 100)) == 0
    submit(page, "2 of 6")

    page.keyboard.press("1")
    drag(page, PATH)
    assert tinted(page, "annotator-painted", colors["crack"], (90, 60), 2) > 0.9
    submit(page, "3 of 6")

    assert title(page) == "round 001, 3 of 6", "an audit pick looks like all others"
    assert tinted(page, "annotator-audit", colors["hole"], CENTRE) == 0
    assert button(page, "Submit").is_disabled(), "an image on which nothing was done is not clean"
    page.keyboard.press("c")
    submit(page, "4 of 6")

    page.keyboard.press("1")
    drag(page, PATH)
    page.keyboard.press("u")  # else the next key would give the stroke another class
    page.locator(".lsf-label_selected").wait_for(state="detached")
    page.keyboard.press("s")
    page.locator(".lsf-label_selected", has_text="hole").wait_for()
    drag(page, [(200, 40), (260, 90)])
    page.locator(".lsf-label_selected").wait_for(state="detached")  # the box is finished
    page.get_by_text("hole", exact=True).last.click()  # in the list of regions
    page.get_by_text("major").click()
    page.screenshot(path=SCREENSHOTS / "annotator-box.png")
    submit(page, "5 of 6")

    page.keyboard.press("n")
    page.get_by_text("blurred").click()
    assert "[" + config.NO_KEY not in page.inner_text("body"), "no key is shown where there is none"
    page.screenshot(path=SCREENSHOTS / "annotator-unsure.png")
    submit(page, "6 of 6")
    button(page, "Skip").click()
    follows(page, None)
    page.screenshot(path=SCREENSHOTS / "annotator-done.png")

    report = pull.run(project, studio)
    assert (report.annotations, report.labelled, report.skipped, report.disputed) == (6, 4, 2, 0)
    shown = labels(project)
    assert shown[kept].defects == (blob(),), "bit for bit"
    assert shown[audit].clean
    assert (shown[unsure].status, shown[unsure].reason) == ("skipped", "blurred")
    assert (shown[skipped].status, shown[skipped].reason) == ("skipped", "skipped")
    assert blob() in shown[changed].defects
    _is_stroke(next(one for one in shown[changed].defects if one.label == "crack"))
    stroke, box = sorted(shown[painted].defects, key=lambda one: one.label)
    _is_stroke(stroke)
    assert (box.label, box.rle, box.severity) == ("hole", None, "major")
    assert box.box == pytest.approx((200.5, 40.5, 60, 50), abs=1)
    origins = {id: history(project, id)[-1].extra["origin"] for id in ids}
    assert origins[kept] == "prediction"
    assert origins[changed] == "changed"
    assert {origins[id] for id in (audit, painted, unsure, skipped)} == {"manual"}
    assert all(history(project, id)[-1].extra["lead_time"] > 0 for id in ids)


@pytest.mark.exhaustive
def test_the_hint_is_seen_locked_and_never_kept(make: Make, tmp_path: Path, studio: Studio, page: Any) -> None:
    """Submitted with nothing but the hint, an image is disputed; what is painted over it is kept, and nothing else."""
    project = plant(make, tmp_path, [(WIDE, HIGH)] * 3)
    left, painted, clean = ids = unlabelled(project)
    score_table(project, dict.fromkeys(ids, (240, 50, 120, 100)))
    pushed(project, studio, ids)
    open_queue(page, project, studio)
    page.screenshot(path=SCREENSHOTS / "annotator-hint.png")
    assert "unusual here" in page.inner_text("body"), "the region's name"
    edge = tinted(page, "annotator-hint", config.HINT_COLOR, (240, 100), reach=2)
    assert edge > 0.15
    assert tinted(page, "annotator-hint", config.HINT_COLOR, (300, 60), reach=6) == 0, "the steel inside is not tinted"
    assert page.locator(".lsf-label", has_text="unusual here").locator("visible=true").count() == 0, "not to label with"
    submit(page, "2 of 3")
    page.keyboard.press("1")
    drag(page, [(260, 80), (320, 80), (320, 120)])
    page.screenshot(path=SCREENSHOTS / "annotator-hint-painted.png")
    submit(page, "3 of 3")
    page.keyboard.press("c")
    submit(page, None)
    pull.run(project, studio)
    shown = labels(project)
    assert (shown[left].status, shown[left].reason, shown[left].defects) == ("disputed", results.UNDECIDED, ())
    assert shown[clean].clean
    (stroke,) = shown[painted].defects
    assert (stroke.label, shown[painted].status, stroke.rle is not None) == ("crack", "labelled", True)
    assert {history(project, id)[-1].extra["origin"] for id in ids} == {"manual"}


def score_table(project: Project, boxes: dict[str, tuple[int, int, int, int]]) -> None:
    """Scores of these images, as `curate anomaly` writes them."""
    table = Table.create(project.work / "scores" / "anomaly-0.lance", anomaly_table.COLUMNS, {"notes": "[]"})
    numbers = {"score": 1.5, "distance": 1.2, "share": 0.999, "tile": 3}
    places = {name: [box[n] for box in boxes.values()] for n, name in enumerate(PLACE)}
    table.append({"id": list(boxes), **{name: [value] * len(boxes) for name, value in numbers.items()}, **places})


def _is_stroke(painted: Defect) -> None:
    """Every pixel on the path is painted, and none that is far from it."""
    import cv2

    assert painted.label == "crack"
    mask = shapes.mask_of(painted, WIDE, HIGH)
    way = np.zeros((HIGH, WIDE), np.uint8)
    cv2.polylines(way, [np.array(PATH, np.int32)], False, 1)
    assert mask[way > 0].all()
    away = cv2.distanceTransform(1 - way, cv2.DIST_L2, 5)
    width = mask[80:120, 90:150].sum(axis=1)  # across the vertical part
    assert 2 <= width.min() == pytest.approx(width.max(), abs=2)
    assert away[mask > 0].max() <= width.max() / 2 + 2


@pytest.mark.exhaustive
def test_every_key_selects_its_class_and_none_is_a_tool_s(
    make: Make, tmp_path: Path, studio: Studio, page: Any
) -> None:
    project = plant(make, tmp_path, [(WIDE, HIGH)], TWELVE)
    pushed(project, studio, unlabelled(project))
    open_queue(page, project, studio)
    shown = page.locator(".lsf-label__hotkey:visible").all_inner_texts()
    assert shown == [*config.DIGITS, *config.LETTERS]
    for keys, wanted in ((config.DIGITS, ["brush-tool"]), (config.LETTERS, [])):
        for name, key in zip(TWELVE, keys, strict=False):
            page.keyboard.press(key)
            page.wait_for_timeout(150)
            assert (chosen(page), tool(page)) == ([name], wanted), key
    for key, wanted in (("b", ["brush-tool"]), ("e", ["eraser"]), ("v", ["move-tool"]), ("h", ["pan"])):
        page.keyboard.press(key)
        page.wait_for_timeout(150)
        assert (chosen(page), tool(page)) == ([], wanted), key
    for key in "wopkmrulzx":
        page.keyboard.press(key)
    assert page.locator("input[type=checkbox]:checked").count() == 0
    page.keyboard.press("c")
    assert page.locator("input[type=checkbox]:checked").count() == 1


@pytest.mark.parametrize(
    "size",
    [
        (1600, 256),
        (256, 1600),
        pytest.param((128, 128), marks=EXHAUSTIVE),
        pytest.param((2048, 1000), marks=EXHAUSTIVE),
    ],
)
@pytest.mark.parametrize("screen", [(1366, 768), pytest.param((1920, 1080), marks=EXHAUSTIVE)])
def test_classes_verdict_and_image_fit_on_the_screen(
    make: Make, tmp_path: Path, studio: Studio, page: Any, size: tuple[int, int], screen: tuple[int, int]
) -> None:
    project = plant(make, tmp_path, [size], TWELVE)
    pushed(project, studio, unlabelled(project))
    page.set_viewport_size({"width": screen[0], "height": screen[1]})
    open_queue(page, project, studio)
    page.screenshot(path=SCREENSHOTS / f"annotator-{size[0]}x{size[1]}-{screen[0]}.png")
    bottom = button(page, "Submit").bounding_box()["y"]
    for place in (".lsf-label:visible >> nth=-1", "text=not sure", "img[alt=image]"):
        box = page.locator(place).first.bounding_box()
        assert box["y"] + box["height"] < bottom, place
        assert box["x"] + box["width"] < screen[0] - 300, place
    left, right = at(page, 0, 0)[0], at(page, size[0] - 1, size[1] - 1)[0]
    assert right - left > 50
    if size[0] == size[1]:
        assert right - left > 0.6 * screen[1], "a square gets most of the window's height, however few its pixels"
    covering = "([x, y]) => document.elementFromPoint(x, y).closest('[class*=toolbar], [class*=slider]') !== null"
    assert not page.evaluate(covering, at(page, size[0] - 1, 1)), "a toolbar lies over the end of the strip"


@pytest.mark.exhaustive
def test_instructions_show_each_class_with_crops(make: Make, tmp_path: Path, studio: Studio, page: Any) -> None:
    project = plant(make, tmp_path, [(WIDE, HIGH)])
    pushed(project, studio, unlabelled(project))
    ls_project = ls_project_of(project, studio)
    html = studio.get(f"/api/projects/{ls_project.id}")["expert_instruction"]
    again = examples.crops(project, examples.on_server(studio, ls_project.id))
    assert all(one.url in html for one in again), "the same crop is stored once"
    stored = studio.get(f"/api/projects/{ls_project.id}/file-uploads", all="true")
    assert len(stored) == html.count("<img") == len(again) >= 4
    page.goto(ls_project.url)
    page.get_by_role("button", name="Label All Tasks").click()
    page.get_by_text("Labeling Instructions").wait_for()
    page.wait_for_timeout(2000)
    page.screenshot(path=SCREENSHOTS / "annotator-instructions.png")
    widths = page.evaluate("[...document.querySelectorAll('td img')].map(one => one.naturalWidth)")
    assert widths == [examples.SIDE] * len(stored)
    swatches = "[...document.querySelectorAll('td[bgcolor]')].map(one => getComputedStyle(one).backgroundColor)"
    assert page.evaluate(swatches) == ["rgb(230, 25, 75)", "rgb(255, 214, 10)"]


@pytest.mark.exhaustive
def test_tabs_show_what_an_annotator_reads(make: Make, tmp_path: Path, studio: Studio, page: Any) -> None:
    project = plant(make, tmp_path, [(WIDE, HIGH)] * 3)
    ids = unlabelled(project)
    pushed(project, studio, ids)
    page.goto(ls_project_of(project, studio).url)
    page.get_by_text("like crack 1").wait_for()
    page.wait_for_function("[...document.images].filter(one => one.naturalWidth >= 100).length >= 3")
    page.screenshot(path=SCREENSHOTS / "annotator-tab.png")
    text = page.inner_text("body")
    assert {"image", "stratum", "reason", "score"} <= set(text.split())
    assert not {"content_id", "suggested_by", "Inner", "key"} & set(text.split())


@pytest.mark.exhaustive
def test_a_class_whose_name_holds_a_dollar_keeps_it(make: Make, tmp_path: Path, studio: Studio, page: Any) -> None:
    project = plant(make, tmp_path, [(WIDE, HIGH)] * 2, ["$title", "clean"])
    ids = unlabelled(project)
    said = shapes.defect_from_mask("$title", disc(WIDE, HIGH))
    assert said is not None
    predictions.store(Index(project), "m1", {ids[1]: Prediction(((said, 0.8),), by="m1")})
    pushed(project, studio, ids)
    open_queue(page, project, studio)
    assert page.locator(".lsf-label").first.inner_text().replace(config.INVISIBLE, "").startswith("$title")
    page.keyboard.press("1")
    drag(page, PATH)
    page.keyboard.press("u")
    page.keyboard.press("s")
    drag(page, [(200, 40), (260, 90)])
    page.screenshot(path=SCREENSHOTS / "annotator-dollar.png")
    submit(page, "2 of 2")
    assert tinted(page, "annotator-dollar-2", project.colors["$title"], CENTRE) > 0.9
    submit(page, None)
    pull.run(project, studio)
    shown = labels(project)
    assert sorted(one.label for one in shown[ids[0]].defects) == ["$title", "clean"]
    assert shown[ids[1]].defects == (said,)
