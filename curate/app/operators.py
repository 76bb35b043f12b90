"""The App's operators, each with a form: commands in the background, and quick ones at once."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curate.app import commands
from curate.app.markdown import plain
from curate.errors import CurateError
from curate.index.app_plugins import NAME
from curate.ops import desk, jobs
from curate.project import Project

Run = Callable[[Any, Project], str]  # context, project: a line (or Markdown) that tells what was done
NONE_SELECTED = "select images in the grid first (a click on a sample's corner), or open one; patches do not count"
PLAIN = re.compile(r"[\w][\w .-]{0,80}")
SHOWN = 5  # images of a selection that are explained


@dataclass(frozen=True)
class DeskOperator:
    """An operator. `form` adds its inputs; `missing` tells what it lacks, and the remedy: it is greyed out then."""

    name: str
    label: str
    help: str
    run: Run
    form: Callable[[Any, Any, Project], None] = lambda ctx, inputs, project: None
    missing: Callable[[Any, Project], str | None] = lambda ctx, project: None
    reloads: bool = True
    shows: bool = False  # what it tells is for reading, not only a notice


@dataclass(frozen=True)
class BackgroundCommand:
    """A command that runs in a process of its own. `choices`: the values of an option, where they are known."""

    command: tuple[str, ...]
    label: str
    fields: tuple[str, ...] = ()
    choices: Mapping[str, Callable[[Project], Sequence[str]]] = field(default_factory=dict)
    missing: Callable[[Project], str | None] = lambda project: None
    selection: str = ""  # the option that takes the content ids of the selection

    @property
    def name(self) -> str:
        return "_".join(self.command)


Choices = Mapping[str, Callable[[Project], Sequence[str]]]
MODEL: Choices = {"model": desk.model_names}
DEVICE: Choices = {"device": lambda project: desk.DEVICES}
BACKGROUND = (
    BackgroundCommand(("index",), "Index new images and labels", ("reread",)),
    BackgroundCommand(("embed",), "Compute vectors", ("encoder", "device"), DEVICE),
    BackgroundCommand(("anomaly",), "Measure how unusual images are"),
    BackgroundCommand(
        ("select",),
        "Select the next round",
        ("budget", "strategy", "option", "exemplars", "classes", "per_stratum", "near", "seed"),
        {"strategy": lambda project: desk.strategies()},
        selection="exemplars",
    ),
    BackgroundCommand(
        ("push",), "Push to Label Studio", ("number", "suggest", "withdraw", "reset_config"), missing=desk.no_studio
    ),
    BackgroundCommand(("pull",), "Pull from Label Studio", ("full",), missing=desk.no_studio),
    BackgroundCommand(("labelstudio", "up"), "Start Label Studio", missing=desk.not_installed),
    BackgroundCommand(
        ("train",),
        "Train a model",
        ("task", "recipe", "set_", "pseudo", "target_recall", "device"),
        {
            **DEVICE,
            "task": lambda project: desk.TASKS,
            "recipe": lambda project: desk.recipes(),
            "pseudo": desk.model_names,
        },
    ),
    BackgroundCommand(("predict",), "Predict", ("model", "everything", "device"), {**MODEL, **DEVICE}),
    BackgroundCommand(
        ("evaluate",),
        "Evaluate a model",
        ("model", "split", "target_recall", "allow_leak", "device"),
        {**MODEL, **DEVICE, "split": lambda project: desk.HELD_OUT},
    ),
    BackgroundCommand(
        ("models", "promote"), "Promote a model", ("model", "force", "why", "device"), {**MODEL, **DEVICE}
    ),
    BackgroundCommand(
        ("export",),
        "Export the labels",
        ("to", "format", "split", "classes"),
        {"format": lambda project: desk.formats(), "split": lambda project: desk.SPLITS},
    ),
    BackgroundCommand(("simulate",), "Simulate: would selection beat random?", ("strategies", "rounds", "budget")),
)


def register(plugin: Any) -> None:
    """Register all operators."""
    for operator in (*map(_in_background, BACKGROUND), *AT_ONCE):
        plugin.register(_class_of(operator))


def names() -> list[str]:
    """Return the names of all operators, as fiftyone.yml lists them."""
    return [operator.name for operator in (*BACKGROUND, *AT_ONCE)]


def uri(name: str) -> str:
    return f"{NAME}/{name}"


def _class_of(operator: DeskOperator) -> type:
    """Return the class that FiftyOne wants to make the operator of."""
    import fiftyone.operators as foo
    from fiftyone.operators import types

    class Operator(foo.Operator):  # type: ignore[misc]
        @property
        def config(self) -> Any:
            about = {"label": f"Rare defects: {operator.label}", "description": operator.help, "dynamic": True}
            return foo.OperatorConfig(name=operator.name, view_target=False, **about)

        def resolve_input(self, ctx: Any) -> Any:
            inputs = types.Object()
            try:
                project = desk.project_of(ctx.dataset.name)
                refusal = operator.missing(ctx, project)
                if refusal is None:
                    operator.form(ctx, inputs, project)
            except CurateError as error:
                refusal = str(error)
            if not refusal and not inputs.properties:
                return None  # nothing to ask: it runs at once
            if refusal:
                view = types.Warning(label="Not possible now", description=refusal)
                inputs.str("refusal", view=view, invalid=True, error_message=refusal)
            prompt = types.PromptView(label=operator.label, caption=operator.help, submit_button_label="Run")
            return types.Property(inputs, view=prompt, invalid=bool(refusal), error_message=refusal or "")

        def execute(self, ctx: Any) -> dict[str, Any]:
            project = desk.project_of(ctx.dataset.name)
            if refusal := operator.missing(ctx, project):
                raise CurateError(refusal)
            told = operator.run(ctx, project)
            if operator.reloads:
                ctx.ops.reload_dataset()
            if not operator.shows:
                ctx.ops.notify(told, variant="success")
            return {"told": told}

        def resolve_output(self, ctx: Any) -> Any:
            if not operator.shows:
                return None
            outputs = types.Object()
            outputs.str("told", view=types.MarkdownView())
            return types.Property(outputs, view=types.View(label=operator.label))

    Operator.__name__ = operator.name
    return Operator


# --- commands in the background ---------------------------------------------------------------------------------------


def _in_background(spec: BackgroundCommand) -> DeskOperator:
    def form(ctx: Any, inputs: Any, project: Project) -> None:
        if spec.selection and (count := len(ctx.selected)):
            text = "What is looked for: these images, and what is labelled on them."
            inputs.bool("selection", default=True, label=f"Exemplars: the {count} selected images", description=text)
        for name in spec.fields:
            option = commands.options(spec.command)[name]
            _add(inputs, option, spec.choices[name](project) if name in spec.choices else None)

    def run(ctx: Any, project: Project) -> str:
        given = {name: ctx.params[name] for name in spec.fields if name in ctx.params}
        if spec.selection and ctx.selected and ctx.params.get("selection", True) and not given.get(spec.selection):
            given[spec.selection] = ",".join(desk.content_ids(ctx.dataset, ctx.selected))
        if "to" in spec.fields:
            given["to"] = str(_export_folder(project, given.get("to")))
        job = jobs.start(project, spec.command, commands.words(spec.command, given))
        return f"curate {job.command} runs in the background; the panel Rare defects shows how far it is"

    missing: Callable[[Any, Project], str | None] = lambda ctx, project: spec.missing(project)  # noqa: E731
    return DeskOperator(spec.name, spec.label, commands.summary(spec.command), run, form, missing, reloads=False)


def _add(inputs: Any, option: commands.CommandOption, choices: Sequence[str] | None) -> None:
    """Add an option to a form, with the command's default and help."""
    from fiftyone.operators import types

    about = {"label": option.label, "description": option.help, "default": option.default}
    required = not option.flag and option.name == "to"
    if choices is not None and not option.many:
        view = types.AutocompleteView(allow_user_input=False)
        for choice in choices:
            view.add_choice(choice, label=choice)
        inputs.str(option.name, view=view, **about)
    elif option.many:
        inputs.list(option.name, types.String(), label=option.label, description=option.help)
    elif option.kind is bool:
        inputs.bool(option.name, **about)
    elif option.kind in (int, float):
        add = inputs.int if option.kind is int else inputs.float
        add(option.name, min=option.low, max=option.high, **about)
    else:
        inputs.str(option.name, required=required, **about)


def _export_folder(project: Project, name: Any) -> Path:
    """Return where an export goes: into the project, whatever the browser asks for."""
    if not isinstance(name, str) or not PLAIN.fullmatch(name):
        raise CurateError(f"the export's name {name!r} is not plain; allowed: letters, digits, spaces, . - _")
    return project.work / "exported" / name


# --- at once ----------------------------------------------------------------------------------------------------------


def _chosen(ctx: Any) -> list[str]:
    """Return the content ids of the images selected in the grid, else of the regions selected, else of the open one."""
    if ctx.selected and ctx.current_sample and ctx.current_sample not in ctx.selected:
        raise CurateError(
            f"the open image is not among the {len(ctx.selected)} selected ones: close it, or clear those"
        )
    samples = ctx.selected or [entry["sample_id"] for entry in ctx.selected_labels or ()]
    samples = samples or [sample for sample in [ctx.current_sample] if sample]
    ids = desk.content_ids(ctx.dataset, samples)
    if not ids:
        raise CurateError(NONE_SELECTED)
    return ids


def _regions(ctx: Any, *fields: str) -> list[str]:
    """Return the ids of the regions selected in these fields; none where whole images are meant."""
    chosen = [entry["label_id"] for entry in ctx.selected_labels or () if entry.get("field") in fields]
    if ctx.selected_labels and not ctx.selected and not chosen:
        raise CurateError(f"none of the selected regions is of {' or '.join(fields)}: select those, or whole images")
    return chosen


def _needs_images(ctx: Any, project: Project) -> str | None:
    return None if ctx.selected or ctx.selected_labels or ctx.current_sample else NONE_SELECTED


def _count(number: int, what: str) -> str:
    return f"{what}: {number} image{'' if number == 1 else 's'}"


def _explain(ctx: Any, project: Project) -> str:
    from curate.ops import select

    parts = []
    for id in _chosen(ctx)[:SHOWN]:
        (short, path), *lines = select.explained(select.explain(project, id))
        points = (f"- {plain(f'{lead} {text}'.strip())}" for lead, text in lines)
        parts.append("\n".join([f"**{short}** {plain(path)}\n", *points]))
    return "\n\n".join(parts)


def _drop(ctx: Any, project: Project) -> str:
    from curate.ops import edit_round

    ids = _chosen(ctx)
    round_ = edit_round.drop(project, ctx.params.get("round"), ids)
    return f"dropped from {round_.name}: {len(ids)}; {round_.manifest['picked']} are left"


def _pin(ctx: Any, project: Project) -> str:
    from curate.ops import edit_round

    ids = _chosen(ctx)
    round_ = edit_round.pin(project, ctx.params.get("round"), ids)
    return f"pinned to {round_.name}: {len(ids)}, of {round_.manifest['picked']} images"


def _round_form(ctx: Any, inputs: Any, project: Project) -> None:
    inputs.int("round", min=1, label="Round", description="Which round [default: the newest].")


def _resolve(ctx: Any, project: Project) -> str:
    from curate.index import conflicts

    (id,) = _chosen(ctx)[:1]
    keep = ctx.params.get("keep")
    if not isinstance(keep, str):
        raise CurateError(f"choose a version to keep: one of the paths, or {', '.join(conflicts.SPECIAL)}")
    conflicts.resolve(project, id, keep)
    return f"{id[:12]}: kept {keep}"


def _resolve_form(ctx: Any, inputs: Any, project: Project) -> None:
    from fiftyone.operators import types

    from curate.index import conflicts

    (listed,) = conflicts.conflicts(project, _chosen(ctx)[0])
    if picture := listed.get("picture"):
        inputs.str(
            "picture", default=desk.data_url(Path(picture)), view=types.ImageView(label="The versions", width=640)
        )
    option = commands.options(("resolve",))["keep"]
    view = types.RadioGroup()
    for version in listed["versions"]:
        view.add_choice(version.partition(": ")[0], label=version)
    for special in conflicts.SPECIAL:
        view.add_choice(special, label=special)
    inputs.enum("keep", view.values(), view=view, required=True, label=option.label, description=option.help)


def _second_look(ctx: Any, project: Project) -> str:
    name = f"second look {time.strftime('%Y-%m-%d %H.%M.%S')}"
    ids = _chosen(ctx)
    ctx.dataset.save_view(name, ctx.dataset.select_by("content_id", ids, ordered=True))
    jobs.start(project, ("push",), commands.words(("push",), {"view": name}))
    return f"{_count(len(ids), 'sent for a second look')} (view '{name}')"


def _set_class(ctx: Any, project: Project) -> str:
    from curate.ops import label

    name = str(ctx.params.get("class"))
    return _count(label.set_class(project, _chosen(ctx), name, _regions(ctx, "defects")), f"labelled {name}")


def _class_form(ctx: Any, inputs: Any, project: Project) -> None:
    from fiftyone.operators import types

    view = types.RadioGroup()
    for name in project.active_classes:
        view.add_choice(name, label=name)
    regions = _regions(ctx, "defects")
    text = f"Of the {len(regions)} selected regions." if regions else "Of the image as a whole; regions stay."
    inputs.enum("class", view.values(), view=view, required=True, label="Class", description=text)


def _clean_form(ctx: Any, inputs: Any, project: Project) -> None:
    text = "What is drawn on them goes from the index, and stays in the label log."
    inputs.bool("sure", default=True, label=_count(len(_chosen(ctx)), "Label as clean"), description=text)


def _clean(ctx: Any, project: Project) -> str:
    from curate.ops import label

    if ctx.params.get("sure") is False:
        return _count(0, "labelled clean")
    return _count(label.set_clean(project, _chosen(ctx)), "labelled clean")


def _skip(ctx: Any, project: Project) -> str:
    from curate.ops import label

    return _count(label.skip(project, _chosen(ctx), str(ctx.params.get("reason") or label.SKIPPED)), "skipped")


def _skip_form(ctx: Any, inputs: Any, project: Project) -> None:
    from curate.ops import label

    inputs.str("reason", default=label.SKIPPED, label="Reason", description="Shown as status_reason.")


def _confirm(ctx: Any, project: Project) -> str:
    from curate.ops import label

    return _count(label.confirm(project, _chosen(ctx), _regions(ctx, "predictions")), "confirmed suggestions")


def _reject(ctx: Any, project: Project) -> str:
    from curate.ops import label

    return _count(label.reject(project, _chosen(ctx), _regions(ctx, "predictions")), "rejected suggestions")


def _similar(ctx: Any, project: Project) -> str:
    from curate.ops import similar

    ids, count = _chosen(ctx), ctx.params.get("count") or 100
    if not isinstance(count, int) or not 0 < count <= 10_000:
        raise CurateError(f"{count!r} images cannot be shown; allowed: 1 to 10000")
    regions = [entry for entry in ctx.selected_labels or () if entry.get("label_id")]
    box = desk.box_of(ctx.dataset, regions[0]) if regions else None
    found = similar.run(project, ids, box, count)
    ctx.ops.set_view(ctx.dataset.select_by("content_id", [image.id for image in found], ordered=True))
    least = (
        f"; similarity from {found[len(ids)].similarity:.2f} to {found[-1].similarity:.2f}" if found[len(ids) :] else ""
    )
    return f"{len(found)} images like {'this window' if box else 'these' if len(ids) > 1 else 'this one'}{least}"


def _similar_form(ctx: Any, inputs: Any, project: Project) -> None:
    inputs.int(
        "count", min=1, max=10_000, default=100, label="Images", description="How many to show, the most similar first."
    )


def _cancel(ctx: Any, project: Project) -> str:
    name = ctx.params.get("job") or next((job.name for job in jobs.listed(project) if job.state == "running"), None)
    if name is None:
        raise CurateError("no command is running")
    return f"curate {jobs.cancel(project, str(name)).command} ends"


AT_ONCE = (
    DeskOperator(
        "explain",
        "Explain a pick",
        "Say why the selected images are in a round, or why they are not.",
        _explain,
        missing=_needs_images,
        reloads=False,
        shows=True,
    ),
    DeskOperator(
        "drop",
        "Drop images from a round",
        "Take the selected images out of a round that is not pushed yet.",
        _drop,
        _round_form,
        _needs_images,
    ),
    DeskOperator(
        "pin",
        "Pin images to a round",
        "Put the selected images first in a round that is not pushed yet.",
        _pin,
        _round_form,
        _needs_images,
    ),
    DeskOperator(
        "resolve",
        "Resolve a conflict",
        "Choose the version that holds, of an image whose copies have different labels.",
        _resolve,
        _resolve_form,
        _needs_images,
    ),
    DeskOperator(
        "second_look",
        "Second look",
        "Send the selected labelled images to Label Studio again, with the label that they have.",
        _second_look,
        missing=lambda ctx, project: _needs_images(ctx, project) or desk.no_studio(project),
    ),
    DeskOperator(
        "set_class",
        "Set class",
        "Label the selected images, or the selected regions, with a class.",
        _set_class,
        _class_form,
        _needs_images,
    ),
    DeskOperator(
        "set_clean", "Set clean", "Label the selected images as without defects.", _clean, _clean_form, _needs_images
    ),
    DeskOperator(
        "skip",
        "Skip",
        "Put the selected images aside: nobody is asked about them, nothing is learnt from them.",
        _skip,
        _skip_form,
        _needs_images,
    ),
    DeskOperator(
        "confirm",
        "Confirm suggestions",
        "Make what the model suggests on the selected images, or the selected regions, their label.",
        _confirm,
        missing=_needs_images,
    ),
    DeskOperator(
        "reject",
        "Reject suggestions",
        "Take the suggestions of the selected images, or the selected regions, away.",
        _reject,
        missing=_needs_images,
    ),
    DeskOperator(
        "more_like_this",
        "More like this",
        "Show the images most similar to the selected ones, or with a window like the selected region.",
        _similar,
        _similar_form,
        _needs_images,
        reloads=False,
    ),
    DeskOperator(
        "cancel", "Cancel", "End a running command in order; what it has finished stays.", _cancel, reloads=False
    ),
)
