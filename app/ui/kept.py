"""Pictures that a form holds: taken in as soon as they are chosen or painted, so that a page that is loaded anew has
them. The browser keeps their ids alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from ..server.desk import Desk
from .canvas import drawn, painted
from .form import PICTURES, Form
from .kinds import Field
from .task_tab import QUIET, REFUSALS


def keep_pictures(form: Form, desk: Desk) -> None:
    """What a control of pictures holds goes into the browser's store, as ids."""
    for one in form.fields:
        if one.kind not in PICTURES:
            continue
        control = form.controls[one.name]
        if isinstance(control, gr.ImageEditor):
            # whoever listens to its changes gets the whole picture at each move of the pointer, so the script of the
            # pages presses this instead
            id = f"{form.name}-{one.name}"
            button, again = (
                gr.Button(name, elem_classes="sf-keep", elem_id=f"{id}-{name}") for name in ("keep", "show")
            )
            changed = button.click
            # an editor that is just being made loses the mask of what it is given
            again.click(_shower(one, desk), form.kept[one.name], control, **QUIET)
        else:
            changed = control.change
        changed(_keeper(one, desk), control, form.kept[one.name], trigger_mode="always_last", **QUIET)


def _shower(one: Field, desk: Desk) -> Callable[[Any], Any]:
    def show(kept: Any) -> Any:
        if not isinstance(kept, dict) or not kept.get("mask"):
            return gr.skip()
        return drawn(one, kept.get(one.name), kept["mask"], desk)

    return show


def _keeper(one: Field, desk: Desk) -> Callable[[Any], Any]:
    def keep(held: Any) -> Any:
        try:
            desk.inputs.sweep(desk.store)
            return painted(one, held, desk.inputs)
        except REFUSALS:  # what is wrong with it is told when the form is sent
            return gr.skip()

    return keep
