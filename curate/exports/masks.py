"""PNG masks: one black-and-white image for each image and class.

    to/masks/crack/a.png                 255 where the defect is, else 0
    to/images/a.jpg
    to/image_classes.csv                 only if there are classes without pixels

All defects of a class in an image are united. A clean image has no mask. Plain boxes have no pixels: they are listed in
image_classes.csv as classes of their image. Readable as `mask_folder` with `class_from = "folder"`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from curate.data import Item
from curate.exports._common import boxed_classes, class_folder, class_masks, note_classes, placed
from curate.masks.shapes import Mask

COUNTED = "masks"


def write(items: Iterable[Item], folder: Path, classes: Sequence[str]) -> int:
    """Write the items.

    Args:
        items: labelled images.
        folder: the new folder, which is empty.
        classes: the class names, in the order of their numbers.

    Returns:
        The number of masks.
    """
    regions = 0
    (folder / "masks").mkdir()
    for label in classes:
        class_folder(folder / "masks", label).mkdir()
    for item, name in placed(items, folder):
        note_classes(folder, name, boxed_classes(item))
        for label, mask in class_masks(item).items():
            _save(mask, class_folder(folder / "masks", label) / f"{Path(name).stem}.png")
            regions += 1
    return regions


def _save(mask: Mask, path: Path) -> None:
    from PIL import Image

    Image.fromarray(mask * 255).save(path)
