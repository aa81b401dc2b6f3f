"""The tabs beside those of the tasks: queue, gallery, comparison, grid, reading a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from ..server.desk import Desk
from ..server.identity import Identity
from ..server.submission import Intake
from .form import SECRET, Form
from .gallery_page import Look
from .grid_page import Axis, axis_choices, axis_of, requests
from .panels import code, fault, panel
from .recalled import from_file
from .task_tab import QUIET, REFUSALS, told

AXES = ("X", "Y", "Z")
CODES = ("Command line", "Python", "JSON")


@dataclass
class Others:
    """The parts of these tabs that something else writes to or reads from."""

    queue: Any = None
    gallery: Any = None
    look: Any = None
    details: Any = None
    codes: list[Any] = field(default_factory=list)
    compared: Any = None
    pair: Any = None
    grid: Any = None
    grid_held: Any = None
    read: Any = None
    file: Any = None
    use: Any = None


def build_queue(others: Others) -> None:
    others.queue = panel("", "queue")


def build_gallery(others: Others, desk: Desk) -> None:
    others.look = gr.State(Look())
    with gr.Row(elem_classes="sf-fields"):
        words = gr.Textbox(
            label="Search", placeholder="words of the prompt, a model, a seed", elem_id="search", scale=3
        )
        task = gr.Dropdown([("all", ""), *desk.tasks], value="", label="Task", elem_id="search-task")
    others.gallery = panel("", "gallery")
    with gr.Row():
        newest = gr.Button("Newest", size="sm")
        older = gr.Button("Older", size="sm", elem_id="older")
    with gr.Accordion("How it was made", open=True, elem_id="details-box"):
        others.details = panel(
            str(Markup('<p class="sf-small">Press Details below a result.</p>')), "details"
        )
        for name in CODES:
            others.codes.append(gr.Code("", language=None, label=name, interactive=False, visible=False))

    def searched(words: str, task: str) -> Look:
        return Look((words or "")[:500], task or "")

    def next_page(look: Look) -> Look:
        from .gallery_page import gallery

        return look._replace(before=gallery(desk, look, ())[1])

    gr.on([words.change, task.change, newest.click], searched, [words, task], others.look, **QUIET)
    older.click(next_page, others.look, others.look, **QUIET)


def begin(others: Others) -> None:
    """What the browser keeps: Gradio reads that only outside of tabs."""
    others.pair = gr.BrowserState(["", ""], storage_key="sfumato-pair", secret=SECRET)
    others.grid_held = gr.BrowserState({}, storage_key="sfumato-grid", secret=SECRET)


def build_comparison(others: Others) -> None:
    others.compared = panel("", "compared")


def build_grid(others: Others, desk: Desk, forms: dict[str, Form]) -> None:
    names = list(forms)
    gr.Markdown("One request, up to three of its fields varied. All else is as the task's form says.")
    task = gr.Dropdown(names, value=names[0], label="Task", elem_id="grid-task")
    choices = [("none", ""), *axis_choices(forms[names[0]].task.request)]
    parts: list[Any] = []
    for axis in AXES:
        with gr.Row(elem_classes="sf-fields"):
            parts += [
                gr.Dropdown(choices, value="", label=f"{axis}: field", elem_id=f"grid-{axis}-field"),
                gr.Textbox(
                    "",
                    label=f"{axis}: values",
                    info="parted by commas, semicolons or lines",
                    elem_id=f"grid-{axis}-values",
                ),
            ]
    said = panel("", "grid-said")
    button = gr.Button("Make the grid", variant="primary", elem_classes="sf-generate", elem_id="grid-run")
    others.grid = panel("", "grid")

    def chosen(name: str) -> list[Any]:
        fresh = [("none", ""), *axis_choices(forms[name].task.request)]
        return [gr.update(choices=fresh, value="") for _ in AXES]

    task.change(chosen, task, parts[::2], **QUIET)
    held = [part for form in forms.values() for part in form.parts]
    submit = _grid_submitter(desk, forms)
    button.click(submit, [task, *parts, *held], [said, others.grid_held], **QUIET)


def _grid_submitter(desk: Desk, forms: dict[str, Form]) -> Any:
    def submit(request: gr.Request, task: str, *held: Any) -> tuple[Any, Any]:
        texts, values = held[: 2 * len(AXES)], held[2 * len(AXES) :]
        pairs = zip(texts[::2], texts[1::2], strict=True)
        axes: list[Axis] = [axis for name, text in pairs if (axis := axis_of(name, text or "")) is not None]
        at = 0
        for name, form in forms.items():
            if name == task:
                break
            at += len(form.parts)
        form = forms[task]
        try:
            base = form.values(values[at : at + len(form.parts)], desk)
            if "seed" in form.task.request.model_fields and not any(axis.field == "seed" for axis in axes):
                base.setdefault("seed", 0)
            asked = list(requests(form.task.request, base, axes))
            intake = Intake(desk, Identity(request.username or "local"), None)
            ids = [intake.submit(one) for one in asked]
        except REFUSALS as error:
            return str(fault(told(error))), gr.skip()
        return "", {"task": task, "axes": [[axis.field, list(axis.values)] for axis in axes], "jobs": ids}

    return submit


def build_reader(others: Others, desk: Desk) -> None:
    gr.Markdown(
        "Drop a picture: what it says about how it was made, by Sfumato, A1111, ComfyUI, InvokeAI and others."
    )
    others.file = gr.File(
        label="Picture", file_types=["image"], type="filepath", elem_id="reader", height=150
    )
    others.use = gr.Button("Use these settings", variant="primary", elem_id="reader-use")
    others.read = panel("", "read")

    def read(path: str | None) -> str:
        if not path:
            return ""
        try:
            found = from_file(Path(path), desk)
        except REFUSALS as error:
            return str(fault(told(error).replace(path, Path(path).name)))
        notes = Markup("").join(Markup('<p class="sf-small">{}</p>').format(note) for note in found.notes)
        return str(Markup('<h3 class="sf-heading">{}</h3>{}{}').format(found.task, notes, code(found.values)))

    others.file.change(read, others.file, others.read, **QUIET)
