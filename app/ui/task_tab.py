"""The tab of a task: its form on the left, what comes of it on the right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
from starlette.exceptions import HTTPException

from ...pipelines.errors import SfumatoError
from ..faults import Failure
from ..requests import Request
from ..server.desk import Desk
from ..server.identity import Identity
from ..server.submission import Intake
from .counting import count
from .form import Form, build
from .panels import fault, panel
from .spelling import as_command, as_json, as_python

REFUSALS = (SfumatoError, HTTPException, Failure, OSError)
MINE = 20
"""Jobs of one's own that a browser remembers for each task."""
QUIET = {"show_progress": "hidden", "api_visibility": "private"}
SPELLINGS: dict[str, Callable[[Request], str]] = {
    "Command line": as_command,
    "Python": as_python,
    "JSON": as_json,
}


@dataclass
class Tab:
    form: Form
    status: Any
    picture: Any
    film: Any

    @property
    def panels(self) -> list[Any]:
        return [self.status, self.picture, self.film]


def build_tab(form: Form, desk: Desk, mine: Any) -> Tab:
    """Everything of a task's tab but what other tabs do to it."""
    parts: dict[str, Any] = {}

    def after_words(form: Form) -> None:
        parts["counted"] = gr.HTML("", elem_classes="sf-count", elem_id=f"{form.name}-tokens")
        parts["button"] = gr.Button(
            form.name.capitalize(), variant="primary", elem_classes="sf-generate", elem_id=f"{form.name}-run"
        )
        parts["said"] = panel("", f"{form.name}-said")

    with gr.Row(elem_classes="sf-main"):
        with gr.Column(scale=5, min_width=320, elem_classes="sf-form"):
            build(form, after_words)
            _spellings(form, desk)
        with gr.Column(scale=6, min_width=320, elem_classes="sf-stage"):
            names = ("status", "picture", "film")
            tab = Tab(form, *(panel("", f"{form.name}-{name}") for name in names))
    inputs, outputs = [mine, *form.parts], [parts["said"], mine]
    parts["button"].click(_submitter(form, desk), inputs, outputs, concurrency_limit=None, **QUIET)
    _count_tokens(form, parts["counted"])
    return tab


def _submitter(form: Form, desk: Desk) -> Callable[..., tuple[Any, Any]]:
    def submit(request: gr.Request, mine: Any, *held: Any) -> tuple[Any, Any]:
        """Queue what the form says; what is wrong with it is told beside the button."""
        try:
            asked = form.request(held, desk)
            identity = Identity(request.username or "local")
            wait = desk.changes.wait(identity.name)
            if wait:
                return str(fault(f"rate: too many requests a minute; wait {wait:.0f} s")), gr.skip()
            id = Intake(desk, identity, None).submit(asked)
        except REFUSALS as error:
            return str(fault(told(error))), gr.skip()
        return "", remembered(mine, form.name, [id])

    return submit


def told(error: Exception) -> str:
    return str(error.detail) if isinstance(error, HTTPException) else str(error)


def remembered(mine: Any, task: str, ids: list[int]) -> dict[str, list[int]]:
    """What the browser remembers, with these jobs."""
    held = mine if isinstance(mine, dict) else {}
    return {**held, task: [*own(held, task), *ids][-MINE:]}


def own(mine: Any, task: str) -> list[int]:
    found = mine.get(task, []) if isinstance(mine, dict) else []
    return [id for id in found if isinstance(id, int)] if isinstance(found, list) else []


def _count_tokens(form: Form, counted: Any) -> None:
    words = form.controls.get(form.task.request.positional)
    model = form.controls.get("model")
    if words is None or model is None:
        return
    gr.on(
        [words.change, model.change],
        lambda prompt, name: count(prompt or "", name or ""),
        [words, model],
        counted,
        queue=False,
        trigger_mode="always_last",
        **QUIET,
    )


def _spellings(form: Form, desk: Desk) -> None:
    """The form's request in the words of the other entrances."""
    with gr.Accordion("Copy as", open=False):
        with gr.Row():
            buttons = {name: gr.Button(name, size="sm", min_width=90) for name in SPELLINGS}
        text = gr.Code(
            "", language=None, label="", show_label=False, interactive=False, elem_id=f"{form.name}-spelled"
        )
    for name, button in buttons.items():

        def spelled(*held: Any, write: Callable[[Request], str] = SPELLINGS[name]) -> str:
            try:
                return write(form.request(held, desk))
            except REFUSALS as error:
                return told(error)

        button.click(_only(spelled), form.parts, text, **QUIET)


def _only(function: Callable[..., str]) -> Callable[..., str]:
    """Without the parameters that Gradio would fill."""

    def run(*held: Any) -> str:
        return function(*held)

    return run
