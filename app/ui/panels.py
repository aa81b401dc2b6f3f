"""Parts of the pages that are HTML of ours: what users wrote is escaped, clicks come back as events."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import gradio as gr
from markupsafe import Markup

SHOW = """
let last = null;
const show = () => {
  const now = props.value || "";
  if (now !== last) { last = now; sfumato.morph(element, now); }
};
watch("value", show);
show();
element.addEventListener("click", event => {
  const button = event.target.closest("[data-do]");
  if (button && element.contains(button)) {
    event.preventDefault();
    if (button.dataset.ask && !window.confirm(button.dataset.ask)) return;
    trigger("click", {deed: button.dataset.do, id: button.dataset.id || "", to: button.dataset.to || ""});
  }
});
"""
"""Gradio would take the value for a template; so it is put in here, as it is."""


class Deed(NamedTuple):
    """What was clicked."""

    deed: str
    id: str
    to: str


def panel(value: str, id: str, *, classes: str = "") -> Any:
    return gr.HTML(
        str(value),
        html_template="",
        js_on_load=SHOW,
        apply_default_css=False,
        elem_id=id,
        elem_classes=["sf-panel", *classes.split()],
    )


def deed_of(event: gr.EventData) -> Deed:
    """Anyone could send anything, so it is taken as text."""
    data = event._data if isinstance(event._data, dict) else {}
    return Deed(*(str(data.get(name, ""))[:200] for name in Deed._fields))


def button(deed: str, id: object, text: str, *, to: str = "", title: str = "", ask: str = "") -> Markup:
    """`ask` is a question that the browser asks first; nothing is sent unless it is answered with yes."""
    return Markup(
        '<button type="button" data-do="{}" data-id="{}" data-to="{}" data-ask="{}" title="{}">{}</button>'
    ).format(deed, id, to, ask, title or text, text)


def fault(sentence: str) -> Markup:
    """What is wrong with a request, each fault on its line."""
    rows = Markup("").join(Markup("<p>{}</p>").format(line) for line in sentence.splitlines())
    return Markup('<div class="sf-fault" role="alert">{}</div>').format(rows)


def note(sentence: str) -> Markup:
    """What was done."""
    return Markup('<div class="sf-status" role="status">{}</div>').format(sentence)


def code(value: Any) -> Markup:
    return Markup("<pre>{}</pre>").format(json.dumps(value, indent=1, ensure_ascii=False, default=str))
