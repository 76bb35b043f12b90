"""How long an annotator waits for a suggestion: `python -m tests.bench.bench_backend [--recipe unet-resnet]`.

A model of the recipe (random weights: its time does not depend on them) answers `/predict` for strips of 256x1600 over
HTTP, one at a time, as Label Studio asks when somebody opens a task. The goal is two seconds on a CPU.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import statistics
import sys
import tempfile
import urllib.request
from pathlib import Path

import cv2
import numpy as np

from curate.admin import setup
from curate.index import database, sync
from curate.index.dataset import Index
from curate.project import Project
from labeling import backend
from tests import fakes
from tests.bench._measure import once, print_table

HEIGHT, WIDTH, STRIPS, GOAL = 256, 1600, 8, 2.0
QUICK = ("model.weights=none", "epochs=1", "input.height=64", "input.width=64", "batch=4")


def plant(home: Path) -> Project:
    """Labelled strips, each with a dark spot."""
    for number in range(STRIPS):
        pixels, mask = fakes.steel(WIDTH, HEIGHT, number).copy(), np.zeros((HEIGHT, WIDTH), np.uint8)
        cv2.circle(mask, (100 + 150 * number, 128), 30, 255, -1)
        pixels[mask > 0] //= 2
        for folder, image in (("images", pixels), ("masks/crack", mask)):
            (home / "strips" / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(home / "strips" / folder / f"{number}.png"), image)
    source = {"name": "strips", "format": "mask_folder", "data": home / "strips", "fully_labelled": True}
    project = setup.write(home / "projects" / "plant", [source], ["crack"])
    sync.run(project)
    return project


def ask(url: str, password: str, id: str) -> int:
    """How many results the backend has for an image."""
    token = base64.b64encode(f"{backend.USER}:{password}".encode()).decode()
    body = json.dumps({"tasks": [{"data": {"content_id": id}}]}).encode()
    request = urllib.request.Request(f"{url}/predict", body, {"Authorization": f"Basic {token}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return len(json.load(answer)["results"][0]["result"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="unet-resnet")
    parser.add_argument("--questions", type=int, default=40)
    wanted = parser.parse_args()
    from train.fit import run as training

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ[database.URI] = database.start(home / "db")
        try:
            project = plant(home)
            training.run(project, training.TrainRequest("segmentation", wanted.recipe, QUICK, "cpu"))
            ids = sorted(Index(project).ids())
            with backend.served(backend.opened(project), "127.0.0.1", 0) as (url, password):
                ask(url, password, ids[0])
                spent = [once(lambda n=n: ask(url, password, ids[n % STRIPS]))[0] for n in range(wanted.questions)]
        finally:
            database.stop(home / "db")
    median, slowest = statistics.median(spent), max(spent)
    verdict = "met" if slowest < GOAL else "NOT MET"
    row = [f"{wanted.recipe}, {WIDTH}x{HEIGHT}", f"{median:.2f} s", f"{slowest:.2f} s", f"{GOAL:g} s", verdict]
    print_table(["a suggestion", "median", "slowest", "goal", ""], [row])
    return slowest >= GOAL


if __name__ == "__main__":
    sys.exit(main())
