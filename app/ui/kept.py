"""Pictures that a form holds: taken in as soon as they are chosen or painted, so that a page that is loaded anew has
them. The browser keeps their ids alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from ..server.desk import Desk
from .canvas import painted
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
            button = gr.Button("Keep", elem_classes="sf-keep", elem_id=f"{form.name}-{one.name}-keep")
            changed = button.click
        else:
            changed = control.change
        changed(_keeper(one, desk), control, form.kept[one.name], trigger_mode="always_last", **QUIET)


def _keeper(one: Field, desk: Desk) -> Callable[[Any], Any]:
    def keep(held: Any) -> Any:
        try:
            desk.inputs.sweep(desk.store)
            return painted(one, held, desk.inputs)
        except REFUSALS:  # what is wrong with it is told when the form is sent
            return gr.skip()

    return keep
