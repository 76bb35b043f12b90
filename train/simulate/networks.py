"""Segmenters and classifiers as learners: trained anew each round, by the same loop as `curate train`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from curate.data import Item
from curate.select.pool import Rows
from train.data.dataset import LoadPlan, TrainingData, resolved_input
from train.recipe import Recipe
from train.simulate.learners import Learner, LearnerOutput
from train.simulate.oracle_dataset import OracleDataset


@dataclass(frozen=True)
class NetworkLearner:
    """A teacher (see `play`) for a world whose rows are these items. All epochs count: there is no val."""

    items: tuple[Item, ...]
    recipe: Recipe
    max_pixels: int
    device: str = "cpu"

    def __call__(self, world: OracleDataset) -> Learner:
        asked = np.flatnonzero(~world.spare)
        return lambda rows: self._learnt(world, rows, asked)

    def _learnt(self, world: OracleDataset, rows: Rows, asked: Rows) -> LearnerOutput | None:
        data = self._data(world, rows)
        if not data.classes or len(data.outputs) + (not data.single) < 2:
            return None
        resolved = self.recipe.model_copy(update={"input": resolved_input(self.recipe, data.train)})
        return self._spoken(world, self._trained(data, resolved), data, resolved, asked)

    def _data(self, world: OracleDataset, rows: Rows) -> TrainingData:
        items = [replace(self.items[row], split="train") for row in rows.tolist()]
        if self.recipe.task == "segmentation":
            items = [one for one in items if not one.label.present - {defect.label for defect in one.label.defects}]
        shown = [one.label.present.intersection(world.classes) for one in items]
        classes = tuple(name for name in world.classes if any(name in one for one in shown))
        single = self.recipe.task == "classification" and world.single
        return TrainingData(self.recipe.task, classes, tuple(items), (), single, not all(shown))

    def _trained(self, data: TrainingData, resolved: Recipe) -> Any:
        from train import checkpoint
        from train.fit import loop
        from train.fit import run as training

        model, start = training.network_of(resolved, data)
        plan = LoadPlan(
            data.task,
            data.classes,
            data.single,
            data.clean,
            resolved.input,
            resolved.augmentation,
            resolved.seed,
            self.max_pixels,
        )
        workers = training.workers_of(self.device)
        with tempfile.TemporaryDirectory() as folder:
            loop.fit(model, loop.FitSettings(resolved, data, plan, start.frozen, Path(folder), self.device, workers))
            checkpoint.load_into(model, Path(folder) / loop.BEST)
        return model.eval()

    def _spoken(
        self, world: OracleDataset, model: Any, data: TrainingData, resolved: Recipe, asked: Rows
    ) -> LearnerOutput:
        """Of what may be asked for and of test; rows that subsampling removed stay unknown."""
        from train.data.pixels import read
        from train.predict.predictor import Predictor

        predictor = Predictor("simulation", data.classes, resolved, data.single, model, self.device)
        likely = np.zeros(world.present.shape, np.float32)
        shows, unsure = np.zeros(world.present.shape, bool), np.zeros(len(world), np.float32)
        columns = [world.number(name) for name in data.classes]
        for row in asked.tolist():
            item = self.items[row]
            seen = predictor.predict_image(read(item.id, item.path, self.max_pixels))
            likely[row, columns], unsure[row] = seen.probability, seen.uncertainty
            named = {defect.label for defect, _ in seen.defects} | {name for name, _ in seen.classes}
            shows[row] = [name in named for name in world.classes]
        return LearnerOutput(likely, shows, unsure)
