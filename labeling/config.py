"""Label config from the project's classes, and instructions with example crops: what annotators see."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from curate.errors import CurateError
from curate.project import Project
from labeling.results import BOX, BRUSH, CLEAN, HINT, HINT_TEXT, IMAGE, PRESENT, SEVERITY, UNSURE, VERDICT, WHY

OLD_COLOR = "#9aa0a6"
HINT_COLOR = "#00b8d4"
DIGITS = "1234567890"
SEEN = "Seen, but not to be outlined"
NO_KEY = "–"  # what has no key is given one by Label Studio, even one of its own tools: this is on no keyboard
NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
INVISIBLE = "\u200b"
KEYLESS = "curate-row curate-keyless"  # a row of choices without keys: Label Studio would show each key as [–]
# No `>`: it gets to the browser as `&gt;`.
STYLE = """
.curate-keyless .lsf-hint { display: none; }
.curate-beside { display: flex; gap: 16px; align-items: flex-start; }
.curate-beside .curate-controls { flex: 0 0 280px; }
.curate-beside .curate-image { flex: 1 1 0; min-width: 0; margin-top: 24px; }
.curate-beside .curate-row { flex-wrap: wrap; gap: 2px 10px; }
.curate-row { display: flex; align-items: center; gap: 10px; min-height: 40px; margin-bottom: 4px; }
.curate-hidden { display: none; }
.curate-row h4, .curate-row .lsf-labels, .curate-row .lsf-choices { margin: 0 !important; }
"""
LETTERS = "asdfgqtyij"  # of the second row of classes; none that Label Studio gives to any of its tools


class ExampleCrop(NamedTuple):
    """A crop that shows a class, at an address on the server."""

    name: str
    url: str


def build(project: Project, old: Sequence[str] = (), beside: bool = False) -> str:
    """The label config as XML.

    Args:
        old: names that annotations on the server still bear; they come last, in grey.
        beside: the controls stand beside the image, not above it, so that an image that is no strip gets the height.
    """
    _check([*project.active_classes, *old])
    page = Element("View", className="curate-beside" if beside else "curate-above")
    keyed = min(len(project.active_classes), len(DIGITS))
    SubElement(page, "Style").text = (
        STYLE + f".lsf-label:nth-child(n+{keyed + 1}) .lsf-label__hotkey {{ display: none; }}\n"
    )
    view = SubElement(page, "View", className="curate-controls")
    SubElement(view, "Header", value="$title", size="5")
    view.append(_row("Paint", _labels(project, "BrushLabels", BRUSH, DIGITS, old)))
    view.append(_row("Box", _labels(project, "RectangleLabels", BOX, LETTERS, old)))
    view.append(_row("Image", _verdict(), _header(SEEN), _present(project, old)))
    view.append(_why(project.config.labelstudio.skip_reasons))
    if project.config.labelstudio.severities:
        view.append(_row("Severity", _severity(project.config.labelstudio.severities), kind=KEYLESS))
    view.append(_hint())
    SubElement(page, "View", className="curate-image").append(_image(220 if beside else 400))
    indent(page)
    return tostring(page, encoding="unicode")


def _check(names: Sequence[str]) -> None:
    """Refuse class names with control characters, which XML cannot hold."""
    for name in names:
        if odd := NOT_XML.search(name):
            message = f"class {name!r} holds the character {odd[0]!r}, which Label Studio cannot show"
            raise CurateError(f"{message}. Give it another name: curate classes rename")


def version(text: str) -> str:
    """Short hash of the config."""
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def lacking(text: str, project: Project) -> list[str]:
    """List what a config that was changed by hand lacks but must still hold, for a person to read."""
    from defusedxml.ElementTree import fromstring

    try:
        tags = {tag.get("name"): tag for tag in fromstring(text).iter() if tag.get("name")}
    except Exception as error:  # defusedxml refuses in many ways
        return [f"a config that can be read ({error})"]
    missing = [f"the tag '{name}'" for name in (IMAGE, BRUSH, BOX, VERDICT, PRESENT) if name not in tags]
    for name in (BRUSH, BOX, PRESENT):
        held = (
            {child.get("alias") or child.get("value") for child in tags[name].iter()}
            if name in tags
            else set(project.active_classes)
        )
        missing += [f"the class '{label}' in the tag '{name}'" for label in project.active_classes if label not in held]
    return missing


def _image(above: int) -> Element:
    """`above`: pixels of the window's height that are needed for other things."""
    # Steel is judged by its pixels: no smoothing, and no rotation, which would turn the masks.
    switches = {"zoom": "true", "zoomControl": "true", "brightnessControl": "true", "contrastControl": "true"}
    switches |= {"rotateControl": "false", "smoothing": "false", "maxHeight": f"max(240px, calc(100vh - {above}px))"}
    switches |= {"maxWidth": "calc(100% - 80px)"}  # the brush's slider lies over the rest
    return Element("Image", {"name": IMAGE, "value": "$image", **switches})


def _labels(project: Project, kind: str, name: str, keys: str, old: Sequence[str]) -> Element:
    element = Element(kind, name=name, toName=IMAGE)
    for number, label in enumerate(project.active_classes):
        key = keys[number] if number < len(keys) else NO_KEY
        SubElement(element, "Label", _named(label), background=project.colors[label], hotkey=key)
    for label in old:
        SubElement(element, "Label", _named(label), background=OLD_COLOR, hotkey=NO_KEY)
    return element


def _named(name: str) -> dict[str, str]:
    """Label Studio takes a word after a dollar for a field of the task, unless something stands between them."""
    return {"value": name.replace("$", "$" + INVISIBLE), "alias": name} if "$" in name else {"value": name}


def _options(name: str, values: Sequence[str], **more: str) -> Element:
    element = Element("Choices", {"name": name, "toName": IMAGE, **more})
    for value in values:
        SubElement(element, "Choice", _named(value), hotkey=NO_KEY)
    return element


def _row(title: str, *elements: Element, kind: str = "curate-row") -> Element:
    """A title with its choices beside it, so that all of them stay on the screen above the image."""
    view = Element("View", className=kind)
    view.extend([_header(title), *elements])
    return view


def _header(text: str) -> Element:
    return Element("Header", value=text, size="6")


def _severity(degrees: Sequence[str]) -> Element:
    return _options(SEVERITY, degrees, perRegion="true", choice="single", showInline="true")


def _verdict() -> Element:
    element = _options(VERDICT, (CLEAN, UNSURE), choice="single", showInline="true")
    for choice, key in zip(element, ("c", "n"), strict=True):
        choice.set("hotkey", key)
    return element


def _hint() -> Element:
    """The tag of regions that only we make: not on the page, so that nobody labels with it."""
    view = Element("View", className="curate-hidden")
    style = {"fillOpacity": "0", "strokeWidth": "2", "opacity": "1"}
    SubElement(
        SubElement(view, "RectangleLabels", {"name": HINT, "toName": IMAGE, **style}),
        "Label",
        value=HINT_TEXT,
        background=HINT_COLOR,
        hotkey=NO_KEY,
    )
    return view


def shows_hints(text: str) -> bool:
    """True if the page of this config can show a hint; it breaks on regions of a tag that it lacks."""
    return f'name="{HINT}"' in text


def _why(reasons: Sequence[str]) -> Element:
    view = Element("View", visibleWhen="choice-selected", whenTagName=VERDICT, whenChoiceValue=UNSURE)
    view.append(_row("Why?", _options(WHY, reasons, choice="multiple", showInline="true"), kind=KEYLESS))
    return view


def _present(project: Project, old: Sequence[str]) -> Element:
    return _options(PRESENT, [*project.active_classes, *old], choice="multiple", layout="select")


# --- instructions -----------------------------------------------------------------------------------------------------


def instructions(project: Project, examples: Sequence[ExampleCrop]) -> str:
    """HTML for Label Studio's instructions: what each class is, and what it looks like."""
    parts = [_HOW, "<h3>Classes</h3>", *(_class(project, name, examples) for name in project.active_classes)]
    return "\n".join(parts)


_HOW = f"""<h3>How to label</h3>
<p>Paint each defect with the brush (keys 1 to 0), or draw a box where its outline does not matter (letter keys).<br/>
What the model suggests is already drawn: correct it, or delete it. Do not trust it.<br/>
A box <b>{HINT_TEXT}</b> only tells where the steel is unlike all other: look there. It is no label and is not kept:
paint what you find, or choose {CLEAN}.<br/>
No defect at all: choose <b>{CLEAN}</b> (key c).<br/>
You cannot tell: choose <b>{UNSURE}</b> (key n) and say why. That is better than a guess.<br/>
A defect that cannot be outlined: choose it under <b>{SEEN}</b>.<br/>
Size of the brush: keys [ and ]. Eraser: e. To see the steel beneath all masks: Ctrl+h.</p>"""


def _class(project: Project, name: str, examples: Sequence[ExampleCrop]) -> str:
    about = next(entry.description for entry in project.config.classes if entry.name == name)
    # Label Studio strips every style and every data: address; what stands in these attributes, it keeps.
    shown = "".join(
        f'<td><img src="{escape(example.url)}" width="120" alt=""/></td>'
        for example in examples
        if example.name == name
    )
    swatch = f'<td width="12" rowspan="2" bgcolor="{project.colors[name]}"></td>'
    text = f'<td colspan="9"><b>{escape(name)}</b> {escape(about)}</td>'
    return f'<table cellpadding="6"><tr>{swatch}{text}</tr><tr>{shown or "<td></td>"}</tr></table>'
