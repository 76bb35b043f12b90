"""The current model's encoder as an embedding: `curate embed --encoder model`."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

from curate.devices import device_of
from curate.embed import _network
from curate.embed._network import NetworkEncoder
from curate.project import Project
from train import store
from train.recipe import SCALES

SIZE = 224  # pixels of a window's side as a segmenter's encoder sees it


def handle(project: Project, device: str = "auto") -> NetworkEncoder | None:
    """The model's encoder; None where nothing is trained yet."""
    from train.predict.predictor import recipe_of

    if store.current(project) is None:
        return None
    model = store.find(project)
    made = recipe_of(model)
    size = SIZE if made.task == "segmentation" else 32 * round(math.sqrt(made.input.height * made.input.width) / 32)
    mean, std = SCALES[made.input.scale]
    make = partial(encoder, str(model.weights.parent))
    dim = _network.dim_of(make(), size)
    return NetworkEncoder("model", model.key, dim, "auto", 0.25, size, mean, std, make, device_of(device))


def encoder(folder: str) -> Any:
    """The network without what comes after its encoder; picklable by the name of its folder."""
    from train.architectures._parts import Features
    from train.predict.predictor import recipe_of, trained_network

    model = store.opened(Path(folder))
    return Features(trained_network(model).encoder, recipe_of(model).input.channels)
