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

SIZE = 224  # pixels of a window's side for the encoder of a network that sees images in their own resolution


def current_encoder(project: Project, device: str = "auto") -> NetworkEncoder | None:
    """Return the current model's encoder; None where nothing is trained yet."""
    from train.predict.predictor import recipe_of

    if store.current(project) is None:
        return None
    model = store.find(project)
    model_recipe = recipe_of(model)
    size = (
        SIZE
        if model_recipe.native
        else 32 * round(math.sqrt(model_recipe.input.height * model_recipe.input.width) / 32)
    )
    mean, std = SCALES[model_recipe.input.scale]
    make = partial(encoder, str(model.weights.parent))
    dim = _network.dim_of(make(), size)
    return NetworkEncoder("model", model.key, dim, "auto", 0.25, size, mean, std, make, device_of(device))


def encoder(folder: str) -> Any:
    """Return the encoder of the network in this folder (an argument that pickles)."""
    from train.architectures._parts import Features
    from train.predict.predictor import recipe_of, trained_network

    model = store.open_model(Path(folder))
    return Features(trained_network(model).encoder, recipe_of(model).input.channels)
