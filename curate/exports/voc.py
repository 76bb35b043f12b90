"""Pascal VOC: one XML file with boxes for each image.

    to/Annotations/a.xml                 without objects: the image is clean
    to/images/a.jpg
    to/ImageSets/Main/train.txt          stems; images without a split are in no list
    to/image_classes.csv                 only if there are image-level classes

VOC holds boxes only: each 8-connected part of a mask becomes an object of its own. Pixels count from 0 and the last
one is excluded (xmax = xmin + width), which is the default of the format `voc`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree as Xml

from curate.data import Item
from curate.exports._common import boxes_of, placed, write_lists


def write(items: Iterable[Item], folder: Path, classes: Sequence[str]) -> int:
    """Write the items.

    Args:
        items: labelled images.
        folder: the new folder, which is empty.
        classes: the class names, in the order of their numbers.

    Returns:
        The number of objects.
    """
    regions = 0
    stems: dict[str, list[str]] = defaultdict(list)
    (folder / "Annotations").mkdir()
    for item, name in placed(items, folder):
        tree, stem = _annotation(item, name), Path(name).stem
        Xml.indent(tree)
        Xml.ElementTree(tree).write(folder / "Annotations" / f"{stem}.xml", encoding="utf-8")
        regions += len(tree.findall("object"))
        if item.split:
            stems[item.split].append(stem)
    write_lists(folder / "ImageSets" / "Main", stems)
    return regions


def _annotation(item: Item, name: str) -> Xml.Element:
    tree = Xml.Element("annotation")
    _add(tree, folder="images", filename=name)
    _add(Xml.SubElement(tree, "size"), width=str(item.width), height=str(item.height))
    for defect in item.label.defects:
        for x, y, w, h in boxes_of(defect):
            entry = Xml.SubElement(tree, "object")
            _add(entry, name=defect.label, pose="Unspecified", truncated="0", difficult="0")
            sides = {"xmin": x, "ymin": y, "xmax": x + w, "ymax": y + h}
            _add(Xml.SubElement(entry, "bndbox"), **{side: _number(value) for side, value in sides.items()})
    return tree


def _add(parent: Xml.Element, **texts: str) -> None:
    for tag, text in texts.items():
        Xml.SubElement(parent, tag).text = text


def _number(value: float) -> str:
    """At most three decimals, and none for a whole number."""
    return f"{value:.3f}".rstrip("0").rstrip(".")
