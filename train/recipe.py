"""Recipes: how a model is trained, as small TOML files in `train/recipes/`, read into frozen, strict models.

    load("unet-resnet", ["batch=4", "optimiser.lr=1e-3", "loss.0.share=2"])
    load("my/own.toml")

The resolved recipe is stored with the model that it trained.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from curate.errors import CurateError, did_you_mean, unknown
from curate.pretrained import PACKAGE
from train import losses

FOLDER = Path(__file__).parent / "recipes"
LATER_OPTIONS: tuple[tuple[str, Any], ...] = (  # options of a recipe, and what they are where they are off
    ("input.resolution", "resized"),
    ("schedule.wait", 3),
    ("independent", False),
)
Task = Literal["segmentation", "classification"]
TASKS: tuple[str, ...] = get_args(Task)
DEFAULTS = {"segmentation": "unet-resnet", "classification": "mobilenetv2-fast"}
SCALES = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "tf": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
HIGHEST = 100.0  # learning rate: above it numbers overflow before any loss can show it
Trail = tuple[str | int, ...]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(_Strict):
    """The network. `architecture`: one of smp's (Unet, FPN, ...) or a file of `train/architectures/`, with `options`.

    `weights`: `hub` (ImageNet weights, downloaded), `package` (ImageNet weights of an installed package, for the
    encoders `tf_efficientnet_lite0` to `2`), `none` (random), or a local file.
    """

    architecture: str
    encoder: str = ""
    weights: str = "hub"
    attention: Literal["none", "scse", "gate"] = "none"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    options: dict[str, Any] = Field(default_factory=dict)


class Input(_Strict):
    """Input size: segmentation takes crops of it, classification resizes an image to as many pixels.

    `resolution`: with `native`, a classifier, too, learns from crops of that size (`augmentation.defect_crops` of them
    around a defect; each is labelled by what it shows), and looks at whole images without resizing them.
    """

    height: int = Field(default=256, ge=32, le=1 << 14)
    width: int = Field(default=256, ge=32, le=1 << 14)
    channels: Literal[1, 3] = 3
    scale: Literal["imagenet", "tf"] = "imagenet"
    resolution: Literal["resized", "native"] = "resized"

    @field_validator("height", "width")
    @classmethod
    def _divides(cls, value: int) -> int:
        if value % 32:
            raise ValueError("must be a multiple of 32, the stride of the networks")
        return value


class Augmentation(_Strict):
    """Probabilities (0 to 1), degrees and shares of random changes; 0 turns one off.

    `rotate90` turns a square input by 0, 90, 180 or 270 degrees, any other by 0 or 180, so that a batch has one shape.
    `defect_crops`: the share of crops that are taken around a defect.
    """

    flip_horizontal: float = Field(default=0.0, ge=0, le=1)
    flip_vertical: float = Field(default=0.0, ge=0, le=1)
    rotate90: float = Field(default=0.0, ge=0, le=1)
    rotate: float = Field(default=0.0, ge=0, le=180)
    shift: float = Field(default=0.0, ge=0, lt=1)
    zoom: float = Field(default=0.0, ge=0, lt=1)
    brightness: float = Field(default=0.0, ge=0, le=1)
    contrast: float = Field(default=0.0, ge=0, le=1)
    clahe: float = Field(default=0.0, ge=0, le=1)
    blur: float = Field(default=0.0, ge=0, le=1)
    noise: float = Field(default=0.0, ge=0, le=1)
    glare: float = Field(default=0.0, ge=0, le=1)
    low_light: float = Field(default=0.0, ge=0, le=1)
    haze: float = Field(default=0.0, ge=0, le=1)
    defect_crops: float = Field(default=0.5, ge=0, le=1)


class Sampler(_Strict):
    """Which images an epoch shows. `threshold`: the share of images below which `repeat-factor` repeats a class."""

    name: Literal["natural", "weighted", "repeat-factor"] = "natural"
    threshold: float = Field(default=0.1, gt=0, le=1)


class Loss(_Strict):
    """One term of the loss, with weight `share`; `options` are those of its function in `train/losses.py`."""

    name: str
    share: float = Field(default=1.0, gt=0)
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> Loss:
        try:
            losses.check(self.name, self.options)
        except CurateError as error:
            raise ValueError(str(error)) from None
        return self


class Optimiser(_Strict):
    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(default=3e-4, gt=0, le=HIGHEST)
    weight_decay: float = Field(default=1e-4, ge=0, le=HIGHEST)
    momentum: float = Field(default=0.9, ge=0, lt=1)


class Schedule(_Strict):
    """Learning rate: it rises from zero for `warmup` epochs; `step` multiplies it by `gamma` every `every` epochs,
    `plateau` whenever the loss on val (without val, on train) has not fallen for `wait` epochs of a phase."""

    name: Literal["cosine", "step", "plateau", "constant"] = "cosine"
    warmup: float = Field(default=0.0, ge=0)
    gamma: float = Field(default=0.9, gt=0, le=1)
    every: int = Field(default=1, ge=1)
    wait: int = Field(default=3, ge=1)


class Phase(_Strict):
    """A part of the training. `train`: all layers, the head alone, or a number of last layers with weights.

    Layers with weights are convolutions, norms and dense layers, including the head's; Keras counts all layers.
    """

    epochs: int = Field(ge=1)
    train: Literal["all", "head"] | int = "all"
    lr: float | None = Field(default=None, gt=0, le=HIGHEST)

    @field_validator("train", mode="before")
    @classmethod
    def _trains(cls, value: object) -> object:
        if value in ("all", "head") or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
            return value
        raise ValueError("must be all, head, or the number of last layers to train, at least 1")


class Predict(_Strict):
    """From probabilities to defects. Components of fewer than `min_area` pixels are dropped.

    `fit`: after training, threshold and area of each class are fitted on val; `threshold` and `min_area` hold for
    classes of which val has too few images, and for all classes without it. `flips`: probabilities are the mean
    over the image and two mirrored ones, wherever the model predicts: in that fit, too, and exported.
    """

    threshold: float = Field(default=0.5, gt=0, lt=1)
    min_area: int = Field(default=16, ge=1)
    fit: bool = True
    flips: bool = False


class Pseudo(_Strict):
    """Pseudo-labels: unlabelled images of whose every class `model` (a key or an alias) is sure; off without a model.

    It is sure of a class at a probability of at least `threshold`, and of its absence at most 1 - `threshold`;
    `thresholds` overrides that per class. `share`: the largest part of any batch that such images may be.
    """

    model: str = ""
    threshold: float = Field(default=0.95, gt=0.5, lt=1)
    thresholds: dict[str, Annotated[float, Field(gt=0.5, lt=1)]] = Field(default_factory=dict)
    share: float = Field(default=0.12, gt=0, le=0.12)

    def sure(self, name: str) -> float:
        return self.thresholds.get(name, self.threshold)


class Recipe(_Strict):
    """`independent`: a classifier decides each class on its own (a sigmoid and a fitted threshold each), even where no
    image shows two; without it one outcome is chosen there, of which `clean` is one.
    """

    task: Task
    summary: str = ""
    model: Model
    input: Input = Input()
    augmentation: Augmentation = Augmentation()
    sampler: Sampler = Sampler()
    loss: tuple[Loss, ...] = Field(min_length=1)
    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Schedule()
    phases: tuple[Phase, ...] = ()
    predict: Predict = Predict()
    pseudo: Pseudo = Pseudo()
    epochs: int = Field(default=40, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch: int = Field(default=8, ge=1)
    accumulate: int = Field(default=1, ge=1)
    clip: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    patience: int = Field(default=8, ge=1)
    seed: int = 0
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    compile: bool = False
    independent: bool = False
    allow_double_prior: bool = False

    @property
    def native(self) -> bool:
        """Return whether the network sees images in their own resolution: a segmenter always does."""
        return self.task == "segmentation" or self.input.resolution == "native"

    def values_for_key(self, exclude: Any) -> dict[str, Any]:
        """Return the values that a key is made of: without later options that are off, so that earlier keys hold."""
        values = self.model_dump(mode="json", exclude=exclude)
        for option, off in LATER_OPTIONS:
            part, _, name = option.rpartition(".")
            table = values[part] if part else values
            if table[name] == off:
                del table[name]
        return values

    @property
    def parts(self) -> tuple[Phase, ...]:
        """The phases; without any, one phase of `epochs` that trains everything."""
        return self.phases or (Phase(epochs=self.epochs),)

    @model_validator(mode="after")
    def _scale_of_package(self) -> Recipe:
        if self.model.weights == PACKAGE and self.input.scale != "tf":
            raise ValueError(
                f"weights 'package' were trained with input.scale 'tf', not '{self.input.scale}'; add: --set "
                "input.scale=tf"
            )
        return self

    @model_validator(mode="after")
    def _one_prior(self) -> Recipe:
        corrections = prior_corrections(self)
        if len(corrections) > 1 and not self.allow_double_prior:
            raise ValueError(
                f"{' and '.join(corrections)} each correct the class prior, and together overcorrect it; "
                "keep one, or set allow_double_prior (--allow-double-prior)"
            )
        return self


def prior_corrections(recipe: Recipe) -> list[str]:
    """Return the parts of a recipe that raise the weight of rare classes."""
    corrections = [] if recipe.sampler.name == "natural" else [f"sampler '{recipe.sampler.name}'"]
    for term in recipe.loss:
        if term.name in losses.CORRECTING:
            corrections.append(f"loss '{term.name}'")
        elif term.options.get("weights") is not None:
            corrections.append(f"loss '{term.name}' with weights")
    return corrections


def names() -> list[str]:
    """Return the names of the recipes that ship with curate."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        name: of a recipe that ships with curate, or a TOML file (it ends in .toml or holds a slash).
        overrides: `key=value` texts, as `--set` takes them.
    """
    file = Path(name).expanduser() if name.endswith(".toml") or "/" in name else FOLDER / f"{name}.toml"
    if file.parent == FOLDER and not file.is_file():
        raise unknown("recipe", name, names(), "Or give a file: --recipe my/own.toml")
    values = _read(file)
    recipe = validate(values, f"{file.name}: ")
    if not overrides:
        return recipe
    for text in overrides:
        _override(values, text)
    return validate(values, "")  # the file is valid: what is wrong now comes from an override


def validate(values: Mapping[str, Any], where: str = "") -> Recipe:
    """Return the recipe with these values. Raises CurateError, beginning with `where`, for the first problem."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise CurateError(where + " ".join(_error_line(error).split())) from None
    except UnicodeEncodeError:
        raise CurateError(f"{where}a text is not Unicode") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CurateError(f"no recipe at {file}; the recipes of curate: {', '.join(names())}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CurateError(f"{file}: not valid TOML: {error}") from None


def _override(values: Any, text: str) -> None:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise CurateError(f"--set '{text}' is not key=value, for example optimiser.lr=1e-3")
    *path, last = key.split(".")
    for part in path:
        values = values[_list_index(values, part, key)] if isinstance(values, list) else values.setdefault(part, {})
        if not isinstance(values, dict | list):
            raise CurateError(f"--set '{text}': '{part}' is a single value and has no '{last}'")
    values[_list_index(values, last, key) if isinstance(values, list) else last] = _value(value)


def _list_index(values: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(values):
        allowed = ", ".join(map(str, range(len(values)))) or "none"
        raise CurateError(f"--set '{key}': '{part}' is not an index of the list; allowed: {allowed}")
    return int(part)


def _value(text: str) -> Any:
    """Parse JSON where possible, else return the text; numbers like `1e-3` are allowed."""
    try:
        return json.loads(text, parse_constant=lambda name: name)
    except ValueError:
        return text


def _error_line(error: ValidationError) -> str:
    # A misspelt key is reported first: it is often the reason why another one is missing.
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    trail = [part for part in first["loc"] if not re.fullmatch(r"literal\[.*\]|int", str(part))]
    name = ".".join(str(part) for part in trail) or "recipe"
    if first["type"] == "extra_forbidden":
        allowed = _keys(trail[:-1])
        return f"unknown key '{name}'{did_you_mean(str(trail[-1]), allowed)}; allowed: {', '.join(allowed)}"
    value = first.get("input")
    shown = f" (it is {value!r})" if isinstance(value, str | int | float | bool) else ""
    return f"{name}: {first['msg'].removeprefix('Value error, ')}{shown}"


def _keys(trail: Sequence[str | int]) -> list[str]:
    """Return the keys of the table at the end of the trail."""
    model: type[BaseModel] = Recipe
    for part in trail:
        kind = model.model_fields[part].annotation if isinstance(part, str) else None
        inner = next((part_type for part_type in (kind, *get_args(kind)) if isinstance(part_type, type)), None)
        model = inner if inner is not None and issubclass(inner, BaseModel) else model
    return sorted(model.model_fields)
