"""The panel "Rare defects": what to do next, running commands, rounds, classes and models."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from curate.app import charts, commands, operators
from curate.app.markdown import plain
from curate.errors import CurateError
from curate.ops import desk, jobs
from curate.ops.jobs import Job
from curate.units import duration

NAME = "rare_defects"
TABS = ("Rounds", "Classes", "Models")
BUSY, IDLE = 2000, 4000  # milliseconds between two looks at the commands
LOOKS = {"curate resolve": "conflicts"}  # steps that begin with a look at a saved view
SHORT = 8  # characters of a model's key
FULL_WIDTH = {"container": {"sx": {"width": "100%"}}}
HELP = "Where the project stands and what to do next; every button is also in the list of operators (key `)."


def register(plugin: Any) -> None:
    """Register the panel."""
    import fiftyone.operators as foo
    from fiftyone.operators import types

    class RareDefects(foo.Panel):  # type: ignore[misc]
        @property
        def config(self) -> Any:
            return foo.PanelConfig(name=NAME, label="Rare defects", icon="troubleshoot", help_markdown=HELP)

        def on_load(self, ctx: Any) -> None:
            ctx.panel.state.tab = TABS[0]
            self.refresh(ctx)

        def on_change_dataset(self, ctx: Any) -> None:
            self.refresh(ctx)

        def refresh(self, ctx: Any) -> None:
            """Read the project anew."""
            at = time.time()  # a command that ends meanwhile is told by the next look
            try:
                project = desk.project_of(ctx.dataset.name)
                ctx.panel.state.shown = desk.overview(project)
                ctx.panel.state.fault = None
            except CurateError as error:
                ctx.panel.state.shown, ctx.panel.state.fault = None, str(error)
            ctx.panel.state.at = at

        def tick(self, ctx: Any) -> None:
            """Look at the commands; one that has ended since changes what there is to see."""
            project = desk.project_of(ctx.dataset.name)
            since = float(ctx.panel.state.at or 0)
            ended = [job for job in jobs.listed(project) if job.state != "running" and job.ended > since]
            for job in ended:
                good = job.state == "done"
                ctx.ops.notify(f"curate {job.command}: {job.told}", variant="success" if good else "error")
            if ended:
                self.refresh(ctx)
                ctx.ops.reload_dataset()

        def select_tab(self, ctx: Any) -> None:
            ctx.panel.state.tab = ctx.params.get("value")

        def show_round(self, ctx: Any) -> None:
            """Show the picks of the bar that was clicked, of a result only those with it."""
            project = desk.project_of(ctx.dataset.name)
            ids = desk.picks_of(project, str(ctx.params.get("x")), str(ctx.params.get("trace")))
            ctx.ops.set_view(ctx.dataset.select_by("content_id", ids, ordered=True))

        def show_class(self, ctx: Any) -> None:
            ctx.ops.set_view(name=f"class {ctx.params.get('y')}")

        def show_saved(self, ctx: Any) -> None:
            ctx.ops.set_view(name=str(ctx.params.get("view")))

        def render(self, ctx: Any) -> Any:
            panel = types.Object()
            state = ctx.panel.state
            shown = state.shown
            if state.fault or not shown:
                panel.str("fault", view=types.Warning(label="No project to show", description=state.fault or "loading"))
                return _stacked(panel)
            known = jobs.listed(desk.project_of(ctx.dataset.name))
            _head(self, panel, shown)
            _jobs(panel, known)
            view = types.TabsView(variant="fullWidth")
            for tab in TABS:
                view.add_choice(tab, label=tab)
            panel.str("tab", default=state.tab or TABS[0], view=view, on_change=self.select_tab)
            {"Classes": _classes, "Models": _models}.get(str(state.tab), _rounds)(self, panel, shown)
            interval = BUSY if any(job.state == "running" for job in known) else IDLE
            panel.view("timer", types.TimerView(interval=interval, on_interval=self.tick))
            return _stacked(panel)

    def _stacked(panel: Any) -> Any:
        return types.Property(panel, view=types.GridView(orientation="vertical", gap=1.5, align_x="left", pad=2))

    def _head(owner: Any, panel: Any, shown: Mapping[str, Any]) -> None:
        counts = ", ".join(f"{count:,} {status}" for status, count in shown["by_status"].items())
        panel.md(f"**{plain(shown['project'])}**, {shown['images']:,} images: {counts}", name="head")
        for number, step in enumerate(shown["next"]):
            row = panel.h_stack(f"step_{number}", gap=2, align_y="center")
            lead = "contained" if number == 0 else "outlined"
            operator, params = operator_for(step["command"])
            look = next((saved for text, saved in LOOKS.items() if step["command"].startswith(text)), None)
            if operator is not None:
                label, uri = operator.label, operators.uri(operator.name)
                row.btn(f"do_{number}", label=label, variant=lead, on_click=uri, prompt=True, params=params)
            elif look:
                params = {"view": look}
                row.btn(f"do_{number}", label="Look at them", variant=lead, on_click=owner.show_saved, params=params)
            why = plain(step["why"][:1].upper() + step["why"][1:])
            row.md(why if operator or look else f"{why}: `{step['command']}`", name=f"why_{number}")

    def _jobs(panel: Any, known: Sequence[Job]) -> None:
        running = [job for job in known if job.state == "running"]
        for number, job in enumerate(running):
            since = duration(max(1.0, time.time() - job.started))
            row = panel.h_stack(f"job_{number}", gap=2, align_y="center")
            row.btn(
                f"cancel_{number}",
                label="Cancel",
                variant="outlined",
                on_click=operators.uri("cancel"),
                params={"job": job.name},
            )
            row.md(f"**curate {job.command}**, for {since}  \n{progress_of(job)}", name=f"job_told_{number}")
        if not running and known and time.time() - known[0].ended < 3600:
            last = known[0]
            severity = {"done": "success", "failed": "error"}.get(last.state, "info")
            view = types.AlertView(
                severity=severity, label=f"curate {last.command}: {last.state}", description=last.told
            )
            panel.str("last", view=view)

    def _plot(panel: Any, name: str, chart: charts.Chart, height: int, on_click: Any = None) -> None:
        """Add a chart; its clicks name the bar."""
        data, layout = chart
        about = {"config": charts.CONFIG, "height": f"{height}px", "componentsProps": FULL_WIDTH}
        panel.plot(name, data=data, layout={**layout, "height": height}, on_click=on_click, **about)

    def _rounds(owner: Any, panel: Any, shown: Mapping[str, Any]) -> None:
        if not shown["rounds"]:
            panel.md("No round yet: `curate select` chooses the images that are worth labelling.", name="no_round")
            return
        for name, title, keys in (
            ("slots", "Why picked", charts.SLOTS),
            ("results", "What they showed", charts.RESULTS),
        ):
            _plot(panel, name, charts.round_bars(shown["rounds"], name, title, keys), 250, owner.show_round)
        newest = shown["rounds"][-1]
        lines = [
            f"| {n} | {p['slot']} | {p['result']} | {plain(p['reason'])} |" for n, p in enumerate(newest["picks"], 1)
        ]
        head = f"**{newest['name']}**, strategy {newest['strategy']}\n\n| # | slot | result | reason |\n"
        head += "|---|---|---|---|\n"
        panel.md(head + "\n".join(lines), name="picks")
        if more := sum(newest["slots"].values()) - len(lines):
            panel.md(f"and {more} more: a click on a bar shows them in the grid", name="more")

    def _classes(owner: Any, panel: Any, shown: Mapping[str, Any]) -> None:
        _plot(panel, "known", charts.class_bars(shown["classes"]), 80 + 28 * len(shown["classes"]), owner.show_class)
        _plot(panel, "discovery", charts.discovery(shown["discovery"], shown["classes"]), 280)
        audit = shown["audit"]
        if audit["note"]:
            panel.md(f"**Audit**: {audit['note']}", name="audit_note")
            return
        if any(entry["prevalence"] for entry in audit["classes"]):
            _plot(panel, "prevalence", charts.prevalence(audit["classes"]), 100 + 28 * len(audit["classes"]))
        lines = [f"**Audit**, labelled picks that were drawn at random: {audit['labelled']}. **{audit['verdict']}**:"]
        lines += [f"- {plain(reason)}" for reason in audit["reasons"]]
        recall = [f"{entry['name']} {_range(entry['recall'])}" for entry in audit["classes"] if entry["recall"]]
        lines += [f"- recall of the predictions: {plain(', '.join(recall))}"] if recall else []
        panel.md(lines[0] + "\n\n" + "\n".join(lines[1:]), name="audit")

    def _models(owner: Any, panel: Any, shown: Mapping[str, Any]) -> None:
        models = shown["models"]
        panel.md("\n".join(f"- {plain(line)}" for line in models["verdict"]), name="verdict")
        named = {name: f"{name} {str(key)[:SHORT]}" for name, key in models["named"].items()}
        tested = {named[name]: values for name, values in models["metrics"].items() if values}
        if tested:
            for metric in ("recall", "precision"):
                if any(by_name.get(metric) for values in tested.values() for by_name in values["classes"].values()):
                    _plot(panel, metric, charts.models(tested, metric), 300)
                else:
                    panel.md(f"**{metric.capitalize()}** cannot be measured: too little of test shows it.", name=metric)
            alarms = [f"{name}: {_range(values['false_alarms'])}" for name, values in tested.items()]
            panel.md(f"False alarms on clean images of test: {'; '.join(alarms)}", name="alarms")
        row = panel.btn_group("model_buttons")
        for name in ("train", "predict", "evaluate", "models_promote"):
            operator = next(spec for spec in operators.BACKGROUND if spec.name == name)
            row.btn(name, label=operator.label, variant="outlined", on_click=operators.uri(name), prompt=True)

    plugin.register(RareDefects)


def operator_for(command: str) -> tuple[operators.BackgroundCommand | None, dict[str, Any]]:
    """Return the operator of a command line such as `curate select --budget 500 --project x`, and its parameters."""
    words = command.split()[1:]
    for spec in sorted(operators.BACKGROUND, key=lambda spec: -len(spec.command)):
        if tuple(words[: len(spec.command)]) == spec.command:
            by_flag = {option.flag: option for option in commands.options(spec.command).values()}
            return spec, {by_flag[flag].name: value for flag, value in pairwise(words) if flag in by_flag}
    return None, {}


def progress_of(job: Job) -> str:
    """Return how far a command is, in a line of Markdown with a bar where the total is known."""
    if not job.stages:
        return plain(job.lines[-1]) if job.lines else "begins"
    stage = job.stages[-1]
    if not stage.total:
        return f"{plain(stage.name)}: {stage.done:,}"
    tenths = min(20, round(20 * stage.done / stage.total))
    rest = f", {plain(stage.rest)}" if stage.rest else ""
    return f"`{'█' * tenths}{'░' * (20 - tenths)}` {plain(stage.name)}: {stage.done:,} of {stage.total:,}{rest}"


def _range(bounds: Sequence[float] | None) -> str:
    if not bounds:
        return "too few to say"
    return f"{bounds[0]:.0%} ({bounds[1]:.0%} to {bounds[2]:.0%})"
