"""Mask images in a folder of their own: one binary mask a class, or one mask whose grey values are classes.

    root/images/a.png
    root/masks/crack/a.png               class_from = "folder": one binary mask a class (default)
    root/masks/a.png                     class_from = "prefix": the class is the file name up to `separator`
    root/masks/a.png                     class_from = "values": the grey value is the class

A mask belongs to the image of the same stem (also stem_mask, stem_label, stem_gt); sub-folders are mirrored, or
ignored where an image's stem is unique. An empty mask means that its class is absent; an image without any mask is
clean only if the data set is `fully_labelled`. Use lossless masks: a JPG mask has blurred edges.

Options: `class_from`, see above. `images`, `masks`: the two folders, below root. `separator`: for "prefix"
(`In_12.png` -> In). `values`: for "values", such as {"crack": 1, "hole": 2}; a mask with any other value is refused,
but for 0 and those `ignored`, such as [255]. `threshold`: the lowest grey value of a defect in a binary mask (128 fits
0/255 masks, use 1 for 0/1 masks); a mask whose values are all below it, but not all 0, is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from curate.data import MaskFile, Record, Region, Reject
from curate.errors import CurateError, LabelProblem
from curate.formats._common import folder_below, join, label_name, listing, short, stem, without_label
from curate.paths import IMAGE_SUFFIXES

ENDINGS = ("", "_mask", "_label", "_gt")
UNREADABLE = frozenset({".gif", ".jp2", ".mat", ".npy", ".npz", ".pgm", ".ppm", ".svg"})
"""Formats of masks that are not read: if these were skipped, their images would count as clean."""
Regions = Callable[[str, str], tuple[Region, ...]]
"""Returns the regions of an image's path and its mask's path (relative to root)."""


def read(
    root: Path,
    labels: Path | None,
    fully_labelled: bool,
    *,
    class_from: Literal["folder", "prefix", "values"] = "folder",
    images: str = "images",
    masks: str = "masks",
    separator: str = "_",
    values: dict[str, int] | None = None,
    ignored: list[int] | None = None,
    threshold: int = 128,
) -> Iterator[Record | Reject]:
    """Read the data set.

    Args:
        root: the folder of the images.
        labels: the folder of the masks, inside `root`; in place of `masks`.
        fully_labelled: every defect is labelled, so that an image without a label is clean.
        class_from: where the class of a mask is: in its folder's name, in the file name's prefix, or in its values.
        images, masks: the two folders, below `root`.
        separator: the text after the class in a file name, for "prefix".
        values: the grey value of each class, for "values".
        ignored: further grey values that may occur, for "values".
        threshold: the lowest grey value of a defect in a binary mask.

    Returns:
        A `Record` for each image, and a `Reject` for each label or image that cannot be used.
    """
    image_folder = folder_below(root, images, "images")
    mask_folder = labels if labels is not None else folder_below(root, masks, "masks")
    below = _inside(root, image_folder, mask_folder)
    regions = _rule(class_from, below, separator, values, ignored or [], threshold)
    folder = label_name(root, image_folder)
    names = [join(folder, name) for name in listing(image_folder)]
    names = [name for name in names if not name.startswith(f"{below}/")]
    by_image = _masks_by_image(names, folder, mask_folder, class_from == "folder")
    lost: dict[str, list[str]] = {}  # masks without an image, by stem: it may be in any folder
    for path in sorted(by_image.keys() - set(names)):
        lost.setdefault(PurePosixPath(path).name, []).extend(by_image[path])
    for path in sorted({*names, *by_image}):
        if path in by_image:
            yield _entry(path, [join(below, mask) for mask in by_image[path]], regions)
        else:
            yield without_label(path, fully_labelled, lost.get(PurePosixPath(path).stem, ()))


def is_mask(path: str, masks: str = "masks", **_options: Any) -> bool:
    return path.startswith(f"{masks.rstrip('/')}/")


def _entry(path: str, masks: list[str], regions: Regions) -> Record | Reject:
    try:
        for mask in masks:
            if PurePosixPath(mask).suffix.lower() in UNREADABLE:
                raise LabelProblem(f"mask {short(mask)} is in no format that is read here. Convert it to PNG")
        all_regions = tuple(region for mask in masks for region in regions(path, mask))
        repeated = [label for label, count in Counter(region.label for region in all_regions).items() if count > 1]
        if repeated:
            raise LabelProblem(f"several masks for class '{repeated[0]}': {', '.join(masks)}")
    except LabelProblem as problem:
        return Reject(path, str(problem), masks[0])
    return Record(path, all_regions, labelled=True, label_file=masks[0])


def _inside(root: Path, image_folder: Path, mask_folder: Path) -> str:
    """The mask folder relative to root, as text."""
    below = label_name(root, mask_folder)
    if not mask_folder.is_dir() or Path(below).is_absolute():
        raise CurateError(f"mask folder '{mask_folder}' is not a folder inside '{root}'. Move it there or set `masks`")
    if mask_folder.resolve() == image_folder.resolve():
        raise CurateError(f"images and masks are both '{image_folder}'. Set `images` and `masks` to two folders")
    return below


def _masks_by_image(images: list[str], folder: str, masks: Path, by_class: bool) -> dict[str, list[str]]:
    """The masks of each image; masks that fit no image are listed under the name that it would have."""
    keys: dict[str, list[str]] = {}
    for mask in listing(masks, IMAGE_SUFFIXES | UNREADABLE):
        inside = mask.partition("/")[2] if by_class and "/" in mask else mask
        keys.setdefault(_without_ending(inside), []).append(mask)
    stems = Counter(PurePosixPath(image).stem for image in images)
    by_image: dict[str, list[str]] = {}
    used: set[str] = set()
    for image in images:
        mirrored, flat = stem(image.removeprefix(f"{folder}/")), PurePosixPath(image).stem
        key = flat if mirrored not in keys and stems[flat] == 1 else mirrored
        # An image may itself be called `a_mask`.
        key = key if key in keys else _without_ending(f"{key}.png")
        if key in keys:
            by_image[image] = keys[key]
            used.add(key)
    return by_image | {join(folder, key): by_image for key, by_image in keys.items() if key not in used}


def _without_ending(mask: str) -> str:
    name = stem(mask)
    return next((name[: -len(end)] for end in ENDINGS if end and name.lower().endswith(end)), name)


def _rule(
    class_from: str, below: str, separator: str, values: dict[str, int] | None, ignored: list[int], threshold: int
) -> Regions:
    if not 1 <= threshold <= 255:
        raise CurateError(f"option `threshold` is {threshold}; allowed: 1 to 255")
    if (class_from == "values") != bool(values):
        raise CurateError(
            f"class_from is '{class_from}' and `values` is {values}; \"values\" needs it, others refuse it"
        )
    if values:
        return _by_value(values, ignored)
    if class_from == "folder":
        return lambda _image, mask: (Region(_class_folder(mask, below), MaskFile(mask, threshold)),)
    if not separator:
        raise CurateError("option `separator` is ''; allowed: one or more characters, such as '_'")
    return lambda image, mask: (Region(_prefix(image, separator), MaskFile(mask, threshold)),)


def _by_value(values: dict[str, int], ignored: list[int]) -> Regions:
    wrong = {name: value for name, value in values.items() if not 1 <= value <= 255}
    if wrong or len(set(values.values())) < len(values):
        raise CurateError(f"option `values` is {values}; allowed: different grey values from 1 to 255")
    known = tuple(sorted({*values.values(), *ignored}))
    return lambda _, mask: tuple(Region(name, MaskFile(mask, value, value, known)) for name, value in values.items())


def _class_folder(mask: str, below: str) -> str:
    name, slash, _ = mask.removeprefix(f"{below}/").partition("/")
    if not slash:
        raise LabelProblem(f"mask '{mask}' lies in no class folder; allowed: {below}/<class>/<image>.png")
    return name


def _prefix(image: str, separator: str) -> str:
    name, match, _ = PurePosixPath(image).stem.partition(separator)
    if not name or not match:
        raise LabelProblem(f"file name {short(PurePosixPath(image).name)} has no class before '{separator}'")
    return name
