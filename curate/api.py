"""The Python door: `curate.open`, `curate.create` and `curate.pick`, for notebooks and scripts.

Every method does what the command of its name does, by the same operation (`curate/ops`): with the writer lock, edits
of the App captured first, and the App's views in order afterwards. Tables come back as DataFrames, images as FiftyOne
views, and what a user can mend is a `CurateError`. See docs/api.md for examples and for what stays stable.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate import packages
from curate.admin import setup
from curate.admin.layout import Layout
from curate.errors import CurateError, LabelProblem
from curate.project import Project, find, load
from curate.select.arrays import pick

if TYPE_CHECKING:
    import fiftyone
    import pandas

    from curate.index.sync import IndexReport
    from curate.ops._lock import Progress
    from curate.select.run import SelectResult
    from curate.vectors.run import EmbedReport
    from labeling.pull import PullReport
    from labeling.push import PushReport
    from train.fit.run import TrainResult
    from train.predict.run import PredictReport
    from train.store import StoredModel

__all__ = ["ModelEvaluation", "OpenProject", "SelectedRound", "SimulatedStrategies", "create", "open", "pick"]

SHOWN = 24  # pictures of a round in a notebook; `picks` has all
SIDE = 150  # pixels of a picture's longer side
STYLE = "border:1px solid #ddd;border-radius:4px;padding:6px;width:160px;font-size:11px;line-height:1.3"


def open(project: str | Path | None = None, *, quiet: bool = False) -> OpenProject:
    """Open a project.

    Args:
        project: its name or folder. Without one, as on the command line: `CURATE_PROJECT`, else the project that the
            current folder is in, else the only one below `projects/`.
        quiet: show no progress.

    Returns:
        The project.

    Raises:
        CurateError: there is no such project, or its project.toml is not valid.
    """
    packages.check()
    folder = find(None if project is None else str(project))
    load(folder)
    return OpenProject(folder, quiet)


def create(
    name: str | Path,
    *,
    format: str,
    data: str | Path,
    labels: str | Path | None = None,
    fully_labelled: bool = False,
    kind: str | None = None,
    options: Mapping[str, Any] | None = None,
    template: str | None = None,
    stratum: str | None = None,
    group: str | None = None,
    quiet: bool = False,
) -> OpenProject:
    """Make a project as `curate init` does; one that is there already with these settings is opened.

    Args:
        name: its name (a folder below `projects/`), or the path of its folder.
        format: how images and labels lie there; `curate formats` lists them.
        data: the folder with the images.
        labels: the label file or folder, where it is not at the format's usual place.
        fully_labelled: an image without any label is clean, not unlabelled.
        kind: `public` or `production`; by default by the format.
        options: the format's options.
        template, stratum, group: how paths are built, what quotas are set on, and the pattern of the physical piece;
            guessed for plain images, and '' for none.
        quiet: show no progress.

    Returns:
        The project; `index()` reads its images.

    Raises:
        CurateError: an unknown format, a folder that does not exist, or a project of that name with other settings.
    """
    packages.check()
    given = _settings(options or {})
    place, layout = Path(labels) if labels else None, Layout(template, stratum, group)
    made = setup.init(str(name), format, Path(data), place, fully_labelled, kind, given, layout)
    return OpenProject(made.folder, quiet)


class OpenProject:
    """A project, with the operations of the command line as methods. Made by `curate.open` and `curate.create`.

    Its project.toml is read anew by every operation. One Python process works with one project's database, unless
    `FIFTYONE_DATABASE_URI` names a server for all.
    """

    def __init__(self, folder: Path, quiet: bool = False) -> None:
        self.folder = folder
        self.quiet = quiet

    @property
    def config(self) -> Project:
        """The project's folder and its config, as it is now."""
        return load(self.folder)

    @property
    def name(self) -> str:
        """The project's name."""
        return self.folder.name

    @property
    def dataset(self) -> fiftyone.Dataset:
        """The FiftyOne dataset that is the project's index."""
        from curate.index.dataset import Index

        return Index(self.config).dataset

    def status(self) -> dict[str, Any]:
        """Return the numbers of images and the commands to run next, as `curate status --json` prints them."""
        from curate.admin import status

        return status.summarise(self.config)

    def add_class(self, name: str, color: str | None = None, description: str = "") -> None:
        """Add a class that annotators mark.

        Args:
            name: its name.
            color: as `#rrggbb`; by default the next of the palette.
            description: how it looks, for those who label.
        """
        from curate.index import classes

        classes.add(self.config, name, color, description)

    def index(self, *, reread: bool = False, rebuild: bool = False) -> IndexReport:
        """Bring the index up to date with the images and label files.

        Args:
            reread: read every file again, not only changed ones.
            rebuild: write every label again from the label log.

        Returns:
            Counts of images that were added, updated, quarantined and so on.
        """
        from curate.ops import index

        with self._progress() as step:
            return index.run(self.config, step, reread=reread, rebuild=rebuild)[0]

    def embed(
        self, encoder: str | None = None, *, options: Mapping[str, Any] | None = None, device: str = "auto"
    ) -> EmbedReport:
        """Compute the vectors that are missing.

        Args:
            encoder: its name; by default that of the newest vectors, else `dense`.
            options: the encoder's options.
            device: `auto`, `cpu` or `cuda`.

        Returns:
            Counts of images, and the table.
        """
        from curate.ops import embed

        with self._progress() as step:
            return embed.run(self.config, encoder, _settings(options or {}), device, progress=step)

    def select(
        self,
        budget: int | str | None = None,
        strategy: str | None = None,
        *,
        classes: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
        exemplars: str | Iterable[str] | None = None,
        per_stratum: int | str | None = None,
        near: float | None = None,
        plain: bool = False,
        encoder: str | None = None,
        seed: int = 0,
        dry_run: bool = False,
    ) -> SelectedRound:
        """Choose the images that are worth labelling next, and write them as a round.

        Args:
            budget: images, or people's time such as `"4h"`; by default the project's.
            strategy: its name; by default the project's.
            classes: only look for these classes; by default for the scarcest.
            options: the strategy's options.
            exemplars: what rare defects look like: a saved view, a tag, or content ids.
            per_stratum: the most picks from one stratum: a number, `"equal"` or `"proportional"`.
            near: the cosine from which images are near-duplicates; 0: never; by default by the data.
            plain: no rules on top of the strategy.
            encoder: whose vectors to use; by default the newest.
            seed: the same seed gives the same picks.
            dry_run: choose, but write nothing.

        Returns:
            The round with its picks.
        """
        from curate.ops import select
        from curate.select import run as selecting

        project = self.config
        shown = exemplars if exemplars is None or isinstance(exemplars, str) else ",".join(exemplars)
        request = selecting.request_of(
            project,
            budget,
            strategy,
            options=options or {},
            classes=(classes,) if isinstance(classes, str) else classes,
            exemplars=shown,
            per_stratum=per_stratum,
            near=near,
            plain=plain,
            encoder=encoder,
            seed=seed,
        )
        with self._progress() as step:
            return SelectedRound(self, select.run(project, request, step, dry=dry_run))

    def explain(self, image: str) -> dict[str, Any]:
        """Say why an image was picked, or was not.

        Args:
            image: its content id, or the first characters of it.

        Returns:
            The picked row or None, why it cannot be picked now, and how it compares with labelled images.
        """
        from curate.select import run as selecting

        project = self.config
        return selecting.explain(project, selecting.request_of(project), image)

    def push(self, round: SelectedRound | int | None = None, *, suggest: bool = True) -> PushReport:
        """Send a round to Label Studio, one task an image; safe to repeat.

        Args:
            round: what `select` returned, or a round's number; by default the newest.
            suggest: show annotators what the model predicts (never for audits).

        Returns:
            Counts of tasks, and the address to label at.
        """
        from curate.ops import push
        from labeling import client
        from labeling.push import PushRequest

        if isinstance(round, SelectedRound) and not round.written:
            raise CurateError("this round was chosen with dry_run=True and is not written; select it without dry_run")
        number = round.number if isinstance(round, SelectedRound) else round
        project = self.config
        with self._progress() as step:
            return push.run(project, client.connect(project), PushRequest(number, suggest=suggest), step)

    def pull(self, *, full: bool = False) -> PullReport:
        """Fetch what annotators did.

        Args:
            full: look at every task again, not only at what changed since the last pull.

        Returns:
            Counts of annotations and images.
        """
        from curate.ops import pull
        from labeling import client

        project = self.config
        with self._progress() as step:
            return pull.run(project, client.connect(project), full, step)

    def train(
        self,
        recipe: str | Path | None = None,
        *,
        task: str | None = None,
        settings: Mapping[str, Any] | None = None,
        target_recall: Mapping[str, float] | None = None,
        device: str = "auto",
    ) -> TrainResult:
        """Train a model on the labelled images; killed, it goes on where it was.

        Args:
            recipe: a recipe's name or TOML file; by default the task's.
            task: `segmentation` or `classification`; by default what the labels allow.
            settings: keys of the recipe, such as `{"optimiser.lr": 1e-3}`.
            target_recall: the recall that a class's decision should reach on val, by class.
            device: `auto`, `cpu` or `cuda`.

        Returns:
            The model (`.model.key`), whether it is new, and notes. `evaluate` and `predict` take it.
        """
        from curate.ops import train
        from train.fit.run import TrainRequest

        named = None if recipe is None else str(recipe)
        request = TrainRequest(task, named, tuple(_settings(settings or {})), device)
        with self._progress() as step:
            return train.run(self.config, request, step, targets=target_recall)

    def predict(
        self,
        model: TrainResult | StoredModel | str | None = None,
        *,
        view: str | None = None,
        everything: bool = False,
        device: str = "auto",
    ) -> PredictReport:
        """Run a model on the images that it has not seen yet: scores for `select`, regions for people and the App.

        Args:
            model: what `train` returned, a key, `candidate` or `production`; by default production, else candidate.
            view: only the images of this saved view.
            everything: labelled images, too.
            device: `auto`, `cpu` or `cuda`.

        Returns:
            Counts of images, and the table of scores.
        """
        from curate.ops import predict

        with self._progress() as step:
            return predict.run(self.config, _key(model), view, step, everything=everything, device=device)

    def evaluate(
        self,
        model: TrainResult | StoredModel | str | None = None,
        *,
        split: str = "test",
        target_recall: Mapping[str, float] | None = None,
        allow_leak: bool = False,
        device: str = "auto",
    ) -> ModelEvaluation:
        """Measure how good a model is on labelled images that it has not learnt from, with intervals.

        Args:
            model: what `train` returned, a key, `candidate` or `production`; by default production, else candidate.
            split: `test` or `val`.
            target_recall: the recall to reach, by class, fitted on val.
            allow_leak: go on although the model has learnt from some of the images.
            device: `auto`, `cpu` or `cuda`.

        Returns:
            The metrics by class and over all, and the report's file.
        """
        from curate.ops import evaluate
        from train.evaluate.run import EvaluateRequest

        request = EvaluateRequest(_key(model), split, dict(target_recall or {}), allow_leak, device)
        with self._progress() as step:
            done = evaluate.run(self.config, request, step)
        return ModelEvaluation(done.model, done.folder, done.manifest, done.metrics)

    def simulate(
        self,
        strategies: Sequence[str] = ("portfolio", "random"),
        *,
        rare: str | None = None,
        start: str = "none",
        rounds: int = 5,
        budget: str = "2%",
        seeds: int = 6,
        encoder: str | None = None,
    ) -> SimulatedStrategies:
        """Replay labelling with the labels hidden: would a strategy have beaten random on these data?

        Args:
            strategies: which to play; `random` is always played beside them.
            rare: the class whose pieces are counted first.
            start: what is known at first: `none`, `exemplars` (of `rare`), `hidden`, or so many images a class.
            rounds: how often to select and reveal.
            budget: of a round: images, or a share of the pool such as `"2%"`.
            seeds: plays of each strategy.
            encoder: whose vectors to use; by default the newest.

        Returns:
            The shares found by strategy, and a verdict in words.
        """
        from train.simulate.one_run import RunSettings
        from train.simulate.run import SimulateRequest
        from train.simulate.run import run as simulated

        setting = RunSettings(start=start, rare=rare, rounds=rounds, budget=str(budget))
        names = (strategies,) if isinstance(strategies, str) else tuple(strategies)
        with self._progress() as step:
            done = simulated(self.config, SimulateRequest(names, setting, seeds, encoder=encoder), step)
        return SimulatedStrategies(done.folder, done.result)

    @contextmanager
    def _progress(self) -> Iterator[Progress]:
        if self.quiet:
            from curate.ops._lock import no_progress

            yield no_progress
            return
        from curate.cli import _common

        with _common.bars() as step:
            yield step

    def __repr__(self) -> str:
        return f"<curate project '{self.name}' at {self.folder}>"

    def _repr_html_(self) -> str:
        head = f"<b>{html.escape(self.name)}</b> <code>{html.escape(str(self.folder))}</code>"
        try:
            about = self.status()
        except CurateError as error:
            return f"<div>{head}<br>{html.escape(str(error))}</div>"
        lines = [("images", f"{about['samples']:,}")]
        for noun in ("status", "split", "source", "class"):
            counts = ", ".join(f"{name} {count:,}" for name, count in about[f"by_{noun}"].items())
            lines.append((noun, counts or "none"))
        lines += [("next", f"{step['command']} ({step['why']})") for step in about["next"]]
        return f"<div>{head}{_html_rows(lines)}</div>"


@dataclass(frozen=True)
class SelectedRound:
    """A selection: `picks` as a table, `view` in FiftyOne; in a notebook its first pictures, each with its reason."""

    project: OpenProject = field(repr=False)
    result: SelectResult = field(repr=False)

    @property
    def number(self) -> int:
        """The round's number."""
        return int(self.result.manifest["round"])

    @property
    def written(self) -> bool:
        """True unless it was a dry run."""
        return self.result.written is not None

    @property
    def notes(self) -> list[str]:
        """Notes about the choice that a person should read."""
        return self.result.notes

    @property
    def ids(self) -> list[str]:
        """The content ids, the first to label first."""
        return [row["id"] for row in self.result.picks]

    @property
    def picks(self) -> pandas.DataFrame:
        """A row an image, the first to label first: id, path, slot, score, reason, group, stratum, seconds and more."""
        import pandas

        return pandas.DataFrame(self.result.picks)

    @property
    def view(self) -> fiftyone.DatasetView:
        """The images as a FiftyOne view, in the order of the picks; it shows the labels as they are now."""
        return self.project.dataset.select_by("content_id", self.ids, ordered=True)

    def __len__(self) -> int:
        return len(self.result.picks)

    def __repr__(self) -> str:
        slots = ", ".join(f"{name} {count}" for name, count in self.result.manifest["slots"].items())
        written = "" if self.written else ", not written"
        return f"<round {self.number:03d} of '{self.project.name}': {len(self)} images ({slots}){written}>"

    def _repr_html_(self) -> str:
        limit = self.project.config.config.limits.max_pixels
        figures = "".join(_figure(row, limit) for row in self.result.picks[:SHOWN])
        more = f"<p>and {len(self) - SHOWN:,} more: see <code>.picks</code></p>" if len(self) > SHOWN else ""
        notes = "".join(f"<p><i>{html.escape(note)}</i></p>" for note in self.notes)
        grid = f'<div style="display:flex;flex-wrap:wrap;gap:6px">{figures}</div>'
        return f"<div><b>{html.escape(repr(self)[1:-1])}</b>{notes}{grid}{more}</div>"


@dataclass(frozen=True)
class ModelEvaluation:
    """A model's metrics on a split; in a notebook the table by class.

    `model`: its key; `folder`: where the evaluation lies; `manifest`, `metrics`: as `curate evaluate --json` has them.
    """

    model: str
    folder: Path
    manifest: dict[str, Any] = field(repr=False)
    metrics: dict[str, Any] = field(repr=False)

    @property
    def table(self) -> pandas.DataFrame:
        """A row a class: images, groups, and each metric with the bounds of its 95 % interval (NaN: not measurable)."""
        support = self.metrics["support"]
        return _metrics_frame(
            {
                name: {key: support[name][key] for key in ("images", "groups")} | _bounded(values)
                for name, values in self.metrics["classes"].items()
            }
        ).rename_axis("class")

    @property
    def overall(self) -> pandas.DataFrame:
        """A row a metric over all classes: value, low and high."""
        keys = ("value", "low", "high")
        rows = {name: {key: metric[key] for key in keys} for name, metric in self.metrics["overall"].items()}
        return _metrics_frame(rows).rename_axis("metric")

    @property
    def report(self) -> Path:
        """The HTML report, with curves and mistakes as pictures."""
        return self.folder / "report.html"

    def _repr_html_(self) -> str:
        split, images = self.manifest["split"], self.metrics["images"]
        head = f"model {self.model} on {images:,} images of {self.metrics['groups']:,} groups in {split}"
        notes = "".join(f"<p><i>{html.escape(note)}</i></p>" for note in self.manifest["notes"])
        tables = "".join(frame.to_html(float_format="%.3f", na_rep="-") for frame in (self.table, self.overall))
        return f"<div><b>{html.escape(head)}</b>{notes}{tables}<p>report: {html.escape(str(self.report))}</p></div>"


@dataclass(frozen=True)
class SimulatedStrategies:
    """A simulation: the shares that each strategy found; in a notebook the table and the verdict."""

    folder: Path
    result: dict[str, Any] = field(repr=False)

    @property
    def table(self) -> pandas.DataFrame:
        """A row a strategy: the runs, the shares of pieces and images found, and the learner's macro F1."""
        import pandas

        names = ("plays", "group_recall", "gap_closed", "image_recall", "macro_f1", "seconds")
        rows = [row for section in self.result["sections"] for row in section["rows"]]
        columns = {name: [row.get(name) for row in rows] for name in names}
        return pandas.DataFrame(columns, index=[row["strategy"] for row in rows]).rename_axis("strategy")

    @property
    def verdict(self) -> list[str]:
        """Verdict in words: do the strategies beat random?"""
        return list(self.result["verdict"])

    @property
    def report(self) -> Path:
        """The HTML report with the curves."""
        return self.folder / "report.html"

    def _repr_html_(self) -> str:
        words = "".join(f"<p>{html.escape(line)}</p>" for line in self.verdict)
        return f"<div>{self.table.to_html(float_format='%.3f', na_rep='-')}{words}</div>"


def _settings(options: Mapping[str, Any]) -> list[str]:
    """Return options as `key=value` texts, which the operations check as those of the command line."""
    return [f"{key}={json.dumps(value)}" for key, value in options.items()]


def _key(model: TrainResult | StoredModel | str | None) -> str | None:
    if model is None or isinstance(model, str):
        return model
    from train.store import StoredModel

    return model.key if isinstance(model, StoredModel) else model.model.key


def _bounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return each metric of a class with its interval's bounds as columns of their own."""
    columns: dict[str, Any] = {}
    for name, metric in values.items():
        if isinstance(metric, Mapping) and "value" in metric:
            columns |= {name: metric["value"], f"{name}_low": metric["low"], f"{name}_high": metric["high"]}
    return columns


def _metrics_frame(rows: Mapping[str, Mapping[str, Any]]) -> Any:
    import pandas

    return pandas.DataFrame.from_dict(dict(rows), orient="index")


def _html_rows(lines: Iterable[tuple[str, str]]) -> str:
    rows = (f"<tr><td>{html.escape(name)}</td><td>{html.escape(text)}</td></tr>" for name, text in lines)
    return f'<table style="text-align:left">{"".join(rows)}</table>'


def _figure(row: Mapping[str, Any], limit: int) -> str:
    """Return a pick as a picture with its rank, slot and reason."""
    about = f"{row['rank']}. {row['slot']}"
    text = f"<b>{html.escape(about)}</b><br>{html.escape(row['reason'])}"
    path = html.escape(str(row["path"]))
    return f'<div style="{STYLE}" title="{path}">{_thumbnail(Path(row["path"]), limit)}{text}</div>'


def _thumbnail(path: Path, limit: int) -> str:
    from PIL import Image

    from curate import files
    from curate.masks import decode

    try:
        picture = Image.fromarray(decode.pixels_of(files.read_bytes(path), limit))
    except (OSError, LabelProblem) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return f"<i>no picture: {html.escape(str(reason))}</i><br>"
    picture.thumbnail((SIDE, SIDE))
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=80)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"><br>'
