"""`curate app` in a real headless Chromium, as a curator opens it. Leaves screenshots in out/screenshots/."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from curate.admin import setup
from curate.index import app_views, database, sync, unusual
from curate.index.dataset import Index
from curate.project import Project, load
from tests import fakes, forked
from tests.conftest import Make
from tests.fakes import REPOSITORY

SCREENSHOTS = REPOSITORY / "out" / "screenshots"
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    return found


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, server: str) -> Iterator[tuple[Path, str]]:
    """A demo plant, indexed and served by the real command on the embedded database; (folder, address of its page)."""
    folder = tmp_path_factory.mktemp("browser") / "plant"
    setup.demo(folder, 200, 0, lambda done: None)
    drawn_vectors(folder)
    for step in ("index", "anomaly"):
        done = forked.start(forked.CURATE, step, "-p", folder, env=environment()).completed(timeout=300)
        assert done.returncode == 0, done.stderr
    with launched(folder) as address:
        yield folder, address
    database.stop(folder / "work" / "db")


def environment() -> dict[str, str]:
    """Without the session's database."""
    return {name: value for name, value in os.environ.items() if name != database.URI}


def drawn_vectors(folder: Path) -> None:
    """Drawn vectors of every strip and two tiles; the right tile of the first one is unlike all others."""
    import numpy as np

    from curate.hashing import sha256_of
    from curate.vectors.store import Vectors

    images = sorted(path for path in (folder / "data").rglob("*") if path.suffix in (".jpg", ".png"))
    ids = list(dict.fromkeys(sha256_of(path) for path in images))
    values = np.random.default_rng(0).standard_normal((len(ids), 3, 16)) * 0.2 + 1
    values[0, 2] *= -1
    values /= np.linalg.norm(values, axis=2, keepdims=True)
    boxes = np.array([(0, 0, 512, 128), (0, 0, 256, 128), (320, 32, 64, 64)], np.int32)
    table = Vectors.create(folder / "work" / "vectors" / "drawn-0.lance", "0", 16)
    table.append(ids, [boxes] * len(ids), list(values))


@contextlib.contextmanager
def launched(folder: Path, *more: str, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """The link that `curate app` prints, as long as the command runs; by default on the project's own database."""
    words = ("app", "-p", folder, "--remote", *more, "--port", free_port())
    process = forked.start(forked.CURATE, *words, env=env or environment())
    greeting = process.first_line()
    address = re.search(r"http://\S+", greeting)
    assert address, greeting
    yield address.group()
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert "Could not connect session" not in output


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def page(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS.split())
        yield browser.new_page(viewport={"width": 1500, "height": 950})
        browser.close()


def open_page(page: Any, address: str) -> None:
    for _ in range(3):
        page.goto(address)
        page.wait_for_selector("[data-cy=looker]", timeout=90_000)
        page.wait_for_timeout(3000)
        # On a busy machine the App may come up without its session, and then forgets which view was asked for.
        if "?view=" not in address or not page.get_by_text("Unsaved view").count():
            break
    for button in page.query_selector_all(".MuiPopover-root button"):
        if "ismiss" in (button.inner_text() or ""):
            button.click()
    page.wait_for_timeout(500)
    if "?view=" not in address:  # the App comes back to the view that was last looked at
        page.locator("[data-cy=btn-clear-view-bar]").click()
        page.wait_for_timeout(2000)


def colored_pixels(picture: Path, color: str) -> int:
    """Pixels of the picture that lean towards a class colour: a mask drawn over grey steel."""
    import numpy as np
    from PIL import Image

    pixels = np.asarray(Image.open(picture).convert("RGB"), dtype=int)[:, 300:]
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    tint, lean = wanted - wanted.mean(), pixels - pixels.mean(axis=2, keepdims=True)
    strength = np.linalg.norm(lean, axis=2)
    cosine = (lean @ tint) / (np.linalg.norm(tint) * np.maximum(strength, 1))
    return int(((strength > 40) & (cosine > 0.97)).sum())


@pytest.mark.browser
def test_the_grid_shows_masks_in_their_class_colours(app: tuple[Path, str], page: Any) -> None:
    _, address = app
    open_page(page, address + "?view=class-scratches")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "app-scratches.png")
    assert page.locator("[data-cy=looker]").count() >= 1
    assert colored_pixels(SCREENSHOTS / "app-scratches.png", "#e6194b") > 500
    assert colored_pixels(SCREENSHOTS / "app-scratches.png", "#3cb44b") < 200


@pytest.mark.browser
def test_saved_views_filter_to_a_class_and_to_conflicts(app: tuple[Path, str], page: Any) -> None:
    _, address = app
    open_page(page, address)
    page.screenshot(path=SCREENSHOTS / "app-all.png")
    assert "200 samples" in page.inner_text("body")
    groups = page.evaluate("[...document.querySelectorAll('input')].map(field => field.value.toLowerCase())")
    assert {"labels", "state", "scores", "provenance"} <= set(groups), groups
    open_page(page, address + "?view=conflicts")
    assert re.search(r"\b1 sample\b", page.inner_text("body"))
    open_page(page, address + "?view=class-edge_crack")
    assert not re.search(r"\b200 samples\b", page.inner_text("body"))


@pytest.mark.exhaustive
@pytest.mark.browser
def test_the_most_unusual_images_come_with_the_window_that_is(app: tuple[Path, str], page: Any) -> None:
    _, address = app
    open_page(page, address + "?view=most-unusual")
    page.screenshot(path=SCREENSHOTS / "app-unusual.png")
    assert colored_pixels(SCREENSHOTS / "app-unusual.png", unusual.COLOR) > 300
    page.locator("[data-cy=looker]").first.click()
    page.wait_for_selector("[data-cy=modal]")
    page.wait_for_timeout(2000)
    page.screenshot(path=SCREENSHOTS / "app-unusual-one.png")
    text = page.inner_text("[data-cy=modal]")
    assert re.search(r"\b99\.\d+\s+anomaly", text), text


@pytest.mark.exhaustive
@pytest.mark.browser
def test_a_curator_filters_in_the_sidebar(app: tuple[Path, str], page: Any) -> None:
    _, address = app
    open_page(page, address)
    page.locator("[data-cy=sidebar-field-arrow-enabled-defects]").first.click()
    search = page.locator("[data-cy='selector-sidebar-search-defects.detections.label']")
    search.fill("patches")
    page.wait_for_timeout(1500)
    search.press("Enter")
    page.wait_for_timeout(3000)
    page.screenshot(path=SCREENSHOTS / "app-filtered.png")
    shown = re.search(r"\b(\d+) samples", page.inner_text("body"))
    assert shown, page.inner_text("body")[-300:]
    assert 0 < int(shown.group(1)) < 30


# --- what the App's server sends, asked without a browser -----------------------------------------------------------


def test_the_app_sends_the_images_of_the_dataset_and_no_other_file(app: tuple[Path, str]) -> None:
    import requests

    folder, address = app
    origin = address.partition("/datasets")[0]
    images = sorted(path for path in (folder / "data" / "plant").rglob("*.*") if path.suffix in (".jpg", ".png"))

    def status(path: object, **headers: str) -> int:
        return requests.get(f"{origin}/media", params={"filepath": str(path)}, headers=headers, timeout=60).status_code

    assert status(images[0]) == 200
    for path in ("/etc/passwd", folder / "project.toml", SCREENSHOTS, f"{images[0].parent}/../{images[0].name}"):
        assert status(path) == 403
    assert status(images[0], Host="evil.example") == 421
    assert status(images[0], Origin="http://evil.example") == 403
    assert requests.get(address, headers={"Host": "evil.example"}, timeout=60).status_code == 421
    listing = {"operator_uri": "@voxel51/operators/list_files", "params": {"path": "/etc"}}
    answer = requests.post(f"{origin}/operators/execute", json=listing, timeout=60)
    assert "passwd" not in answer.text
    assert "lists no folders" in answer.text


def test_beyond_the_loopback_address_the_link_has_a_token(app: tuple[Path, str]) -> None:
    import requests

    folder, _ = app
    with launched(folder, "--address", "0.0.0.0", "--view", "clean") as link:
        origin, _, token = link.partition("?token=")
        assert len(token) >= 32
        assert requests.get(origin, timeout=60).status_code == 401
        with requests.Session() as browser:
            page = browser.get(link, timeout=60)
            assert (page.status_code, "token" in page.url) == (200, False)
            assert browser.get(origin, timeout=60).status_code == 200


# --- what the App shows, checked without a browser ------------------------------------------------------------------


def test_saved_views_hold_what_their_names_say(indexed: Project) -> None:
    app_views.arrange(indexed)
    dataset = Index(indexed).dataset
    sizes = {name: dataset.load_saved_view(name).count("id") for name in dataset.list_saved_views()}
    wanted = {
        "class crack": 8,
        "class hole": 4,
        "clean": 4,
        "unlabelled": 10,
        "conflicts": 0,
        "disputed": 0,
        "edited in app": 0,
        "annotators disagree": 0,
        "queued": 0,
        "skipped": 0,
        "missing": 0,
    }
    wanted |= {"source public": 16, "source production": 10, "stratum A/cam0": 5, "stratum A/cam1": 5}
    assert sizes == wanted


def test_views_of_users_are_left_alone_and_ours_follow_the_classes(indexed: Project) -> None:
    from curate.index import classes

    app_views.arrange(indexed)
    dataset = Index(indexed).dataset
    dataset.save_view("my view", dataset.limit(3))
    classes.rename(indexed, "crack", "fissure")
    names = Index(indexed).dataset.list_saved_views()
    assert "my view" in names
    assert "class fissure" in names
    assert "class crack" not in names


ALIKE = ["Rolled in", "rolled-in", "rolled_in", "裂纹", "划痕", "???", "$price", "my view"]


@pytest.fixture
def alike(make: Make, tmp_path: Path) -> Project:
    """One image of every class; FiftyOne's addresses of their names are the same, or empty."""
    for number, name in enumerate(ALIKE):
        fakes.save_image(tmp_path / "data" / name / f"{number}.png", 8, 8, seed=number)
    project = make([{"name": "s", "format": "class_folders", "data": tmp_path / "data"}], ALIKE)
    sync.run(project)
    return project


def views(project: Project) -> dict[str, list[str]]:
    """Saved view -> the classes of the images in it."""
    dataset = Index(project).dataset
    return {
        name: sorted(dataset.load_saved_view(name).distinct("classes.classifications.label"))
        for name in dataset.list_saved_views()
    }


def test_classes_whose_names_are_alike_have_views_of_their_own(alike: Project) -> None:
    for _ in range(2):
        app_views.arrange(alike)
        found = {name: shown for name, shown in views(alike).items() if name.startswith("class ")}
        assert sorted(found.values()) == sorted([name] for name in ALIKE)
        assert found["class Rolled in"] == ["Rolled in"]
        assert found["class rolled-in 2"] == ["rolled-in"]
        assert found["class 划痕 2"] == ["划痕"]


def test_views_of_vanished_classes_go_and_those_of_users_stay(alike: Project) -> None:
    from curate.index import classes

    dataset = Index(alike).dataset
    dataset.save_view("class 裂纹", dataset.limit(3))
    dataset.save_view("Class my view", dataset.limit(2))
    app_views.arrange(alike)
    assert len(views(alike)["class 裂纹"]) == 3
    assert views(alike)["class 裂纹 2"] == ["裂纹"]
    classes.merge(alike, ["裂纹", "rolled-in"], "???")
    found = views(load(alike.folder))
    assert (len(found["class 裂纹"]), len(found["Class my view"])) == (3, 2)
    assert found["class my view 2"] == ["my view"]
    assert sorted(label for name in ("class 划痕 2", "class ??? 3") for label in found[name]) == ["???", "划痕"]
    assert not [name for name in found if name.startswith(("class 裂纹 ", "class rolled-in"))]


def test_colours_are_those_of_the_config(indexed: Project) -> None:
    app_views.arrange(indexed)
    fields = Index(indexed).dataset.app_config.color_scheme.fields
    values = next(field for field in fields if field["path"] == "defects")["valueColors"]
    assert {value["value"]: value["color"] for value in values} == indexed.colors


def test_what_a_model_predicts_has_colours_of_its_own(indexed: Project) -> None:
    app_views.arrange(indexed)
    fields = Index(indexed).dataset.app_config.color_scheme.fields
    by_path = {field["path"]: {value["color"] for value in field["valueColors"]} for field in fields}
    assert not by_path["predictions"] & by_path["defects"]
    assert len(by_path["predictions"]) == len(by_path["defects"]) == len(indexed.colors)
    assert app_views.paler_color("#e6194b") == "#f28ca5"


def test_new_numbers_are_listed_under_scores(indexed: Project) -> None:
    index = Index(indexed)
    index.dataset.add_sample_field("uncertainty", index.fo.FloatField)
    app_views.arrange(indexed)
    groups = {group.name: group.paths for group in Index(indexed).dataset.app_config.sidebar_groups}
    assert groups["scores"] == ["uncertainty"]


def test_a_port_in_use_names_the_remedy(indexed: Project) -> None:
    from curate.errors import CurateError

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(CurateError, match="Choose another with --port"):
            app_views.launch(indexed, taken.getsockname()[1], "127.0.0.1", True, None, print)


def test_an_unknown_view_names_the_known_ones(indexed: Project) -> None:
    from curate.errors import CurateError

    app_views.arrange(indexed)
    with pytest.raises(CurateError, match=r"unknown view 'clan' .did you mean 'clean'"):
        app_views.launch(indexed, free_port(), "127.0.0.1", True, "clan", print)


@pytest.mark.exhaustive
def test_an_empty_plant_has_views_too(make: Make, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    project = make([{"name": "n", "format": "images", "kind": "production", "data": tmp_path / "nothing"}])
    report = sync.run(project)
    app_views.arrange(project)
    assert report.added == 0
