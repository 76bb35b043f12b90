"""Segmenters and classifiers as learners: trained anew each round, by the training loop of `curate train`."""

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
    """A learner factory for an oracle dataset whose rows are these items. There is no val: all epochs are trained."""

    items: tuple[Item, ...]
    recipe: Recipe
    max_pixels: int
    device: str = "cpu"

    def __call__(self, oracle: OracleDataset) -> Learner:
        rows_to_predict = np.flatnonzero(~oracle.spare)
        return lambda rows: self._learn(oracle, rows, rows_to_predict)

    def _learn(self, oracle: OracleDataset, rows: Rows, rows_to_predict: Rows) -> LearnerOutput | None:
        data = self._training_data(oracle, rows)
        if not data.classes or len(data.outputs) + (not data.single) < 2:
            return None
        resolved = self.recipe.model_copy(update={"input": resolved_input(self.recipe, data.train)})
        return self._predict(oracle, self._train(data, resolved), data, resolved, rows_to_predict)

    def _training_data(self, oracle: OracleDataset, rows: Rows) -> TrainingData:
        items = [replace(self.items[row], split="train") for row in rows.tolist()]
        if self.recipe.task == "segmentation":
            items = [item for item in items if not item.label.present - {defect.label for defect in item.label.defects}]
        shown = [item.label.present.intersection(oracle.classes) for item in items]
        classes = tuple(name for name in oracle.classes if any(name in names for names in shown))
        single = self.recipe.task == "classification" and oracle.single
        return TrainingData(self.recipe.task, classes, tuple(items), (), single, not all(shown)).as_wanted(self.recipe)

    def _train(self, data: TrainingData, resolved: Recipe) -> Any:
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

    def _predict(
        self, oracle: OracleDataset, model: Any, data: TrainingData, resolved: Recipe, rows_to_predict: Rows
    ) -> LearnerOutput:
        """Predict the pool's and test's rows; spare rows stay 0."""
        from train.data.pixels import read
        from train.predict.predictor import Predictor

        predictor = Predictor("simulation", data.classes, resolved, data.single, model, self.device)
        likely = np.zeros(oracle.present.shape, np.float32)
        shows, unsure = np.zeros(oracle.present.shape, bool), np.zeros(len(oracle), np.float32)
        columns = [oracle.number(name) for name in data.classes]
        for row in rows_to_predict.tolist():
            item = self.items[row]
            seen = predictor.predict_image(read(item.id, item.path, self.max_pixels))
            likely[row, columns], unsure[row] = seen.probability, seen.uncertainty
            named = {defect.label for defect, _ in seen.defects} | {name for name, _ in seen.classes}
            shows[row] = [name in named for name in oracle.classes]
        return LearnerOutput(likely, shows, unsure)
