"""Class folders: each image in the folder of its class, as image classifiers' loaders read them.

    to/crack/a.jpg
    to/crack+hole/b.jpg                  an image that shows both
    to/clean/c.jpg

Pixels and boxes are left out: only the classes that an image shows are kept. Readable as `class_folders` with
`separator = "+"`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from curate.data import Item
from curate.errors import CurateError
from curate.exports._common import RESERVED, class_folder, place_image, unused_name
from curate.formats.class_folders import CLEAN, UNLABELLED, folder_names

COUNTED = "class labels"
SEPARATOR = "+"
LONGEST = 255  # bytes of a folder's name


def write(items: Iterable[Item], folder: Path, classes: Sequence[str]) -> int:
    """Write the items.

    Args:
        items: labelled images.
        folder: the new folder, which is empty.
        classes: the class names, in the order of their numbers.

    Returns:
        The number of classes of all images.
    """
    count, used = 0, set(RESERVED)
    for item in items:
        present = [name for name in classes if name in item.label.present]
        place = _place(folder, present)
        place.mkdir(exist_ok=True)
        place_image(item.path, place / unused_name(item, used))
        count += len(present)
    return count


def _place(folder: Path, present: Sequence[str]) -> Path:
    taken = folder_names(f"{CLEAN},{UNLABELLED}")
    for name in present:
        if name.lower() in taken or SEPARATOR in name:
            reason = f"class '{name}' cannot be the name of a class folder; not allowed: {', '.join(sorted(taken))}"
            raise CurateError(f"{reason} and names with '{SEPARATOR}'. Run: curate classes rename '{name}' NAME")
    place = class_folder(folder, SEPARATOR.join(present) or "clean")
    if len(place.name.encode()) > LONGEST:
        raise CurateError(f"an image shows {len(present)} classes, too many for a folder's name. Use another format")
    return place
