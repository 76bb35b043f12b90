"""Label Studio JSON: tasks with annotations, a label config, images beside them.

    to/tasks.json                        import it in Label Studio
    to/label_config.xml                  paste it under Settings > Labeling Interface first
    to/images/a.jpg

Masks are brush strokes, bit-exact; plain boxes are rectangles; a clean image says so. Images are addressed as local
files: serve `to` as the document root (LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, with ..._SERVING_ENABLED true) and add
`to/images` as a local storage. A task also says its `content_id`, `split` and `group`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from curate.data import Item
from curate.exports._common import placed
from curate.project import ClassConfig, LabelStudioConfig, Project, ProjectConfig, SourceConfig
from labeling import config, results


def write(items: Iterable[Item], folder: Path, classes: Sequence[str]) -> int:
    """Counts the regions."""
    regions, degrees = 0, set[str]()
    with (folder / "tasks.json").open("w", encoding="utf-8") as out:
        for number, (item, name) in enumerate(placed(items, folder)):
            out.write("[\n" if number == 0 else ",\n")
            json.dump(_task(item, f"images/{quote(name)}"), out)
            regions += len(item.label.defects)
            degrees |= {defect.severity for defect in item.label.defects if defect.severity}
        out.write("\n]\n")
    (folder / "label_config.xml").write_text(_config(folder, classes, sorted(degrees)), encoding="utf-8")
    return regions


def _task(item: Item, path: str) -> dict[str, Any]:
    data: dict[str, Any] = {"image": f"/data/local-files/?d={path}", "content_id": item.id, "title": item.path.name}
    data |= {"split": item.split, "group": item.group, "stratum": item.stratum}
    return {"data": data, "annotations": [{"result": results.of_label(item.label, (item.width, item.height))}]}


def _config(folder: Path, classes: Sequence[str], degrees: Sequence[str]) -> str:
    """The config of a project with these classes; the same tags as in the tasks."""
    source = SourceConfig(format="images", data=folder)
    looks = tuple(ClassConfig(name=name) for name in classes)
    about = ProjectConfig(sources=(source,), classes=looks, labelstudio=LabelStudioConfig(severities=tuple(degrees)))
    return config.build(Project(folder, about))
