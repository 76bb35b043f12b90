"""Recipes, data sets and epochs of the trainings, fixed before any result was seen (see PROTOCOL.md)."""

from __future__ import annotations

from dataclasses import dataclass

NEU, TILE = "neu", "tile"
DATA = (NEU, TILE)
IMAGENET, NONE = "imagenet", "none"


def square(pixels: int) -> tuple[str, ...]:
    return f"input.height={pixels}", f"input.width={pixels}"


# What a single CPU core can do in an hour or so; `--full` leaves it out, and each recipe runs as it ships.
BUDGET: dict[str, tuple[str, ...]] = {
    "mobilenetv2-two-phase": (*square(96), "phases.0.epochs=4", "phases.1.epochs=8"),
    "mobilenetv2-fast": (*square(96), "epochs=4"),
    "simple-cnn": (*square(64), "epochs=14"),
    "shuffledefectnet": (*square(96), "epochs=14"),
    "cnn-4conv-6dense-fixed": (*square(64), "epochs=14"),
    "unet-resnet": (*square(128), "epochs=6", "steps=80"),
}
SEGMENTER = "unet-resnet"


@dataclass(frozen=True)
class Plan:
    """A recipe on a data set, from ImageNet's weights or from random ones."""

    data: str
    recipe: str
    start: str = NONE
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.data}-{self.recipe}-{self.start}-seed{self.seed}"

    def overrides(self, weights: str, full: bool) -> tuple[str, ...]:
        """`weights`: the file with ImageNet's, whose input is x / 127.5 - 1; random ones get the same input."""
        found = [f"model.weights={weights if self.start == IMAGENET else 'none'}", f"seed={self.seed}"]
        found += ["input.scale=tf"] if "mobilenet" in self.recipe or self.recipe == SEGMENTER else []
        found += ["model.encoder=mobilenet_v2"] if self.recipe == SEGMENTER else []
        return (*found, *(() if full else BUDGET[self.recipe]))


CLASSIFIERS = (
    ("mobilenetv2-two-phase", IMAGENET),
    ("mobilenetv2-two-phase", NONE),
    ("simple-cnn", NONE),
    ("shuffledefectnet", NONE),
    ("cnn-4conv-6dense-fixed", NONE),
    ("mobilenetv2-fast", IMAGENET),
    ("mobilenetv2-fast", NONE),
)
SEGMENTERS = ((SEGMENTER, IMAGENET),)
LOOKED_INTO = Plan(TILE, "mobilenetv2-two-phase", IMAGENET)  # robustness, exposures and heat are measured on this one


def plans(data: str, recipes: list[str], seeds: list[int]) -> list[Plan]:
    """In the order in which they are trained: the cheapest answers first."""
    known = (*CLASSIFIERS, *(SEGMENTERS if data == TILE else ()))
    wanted = [(recipe, start) for recipe, start in known if not recipes or recipe in recipes]
    return [Plan(data, recipe, start, seed) for seed in seeds for recipe, start in wanted]
