"""The tab of models: adding one, the list, what one is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gradio as gr

from ..model_facts import facts
from ..registration import place_of
from ..registry import forget
from ..server.about_routes import all_models
from ..server.desk import Desk
from .form import Form, choices_of
from .models_page import inspect, listed, models, take, to_download
from .panels import deed_of, fault, note, panel
from .task_tab import QUIET, REFUSALS, told

ABOUT = """Models and LoRAs are added where they lie; nothing is copied. Forms then offer the model by its name; a LoRA
is named in the field *Loras*, or in a prompt as `<lora:name:0.8>`."""
HINT = "/models/sdxl.safetensors, a folder, or owner/name"


class ModelsTab:
    """Its parts, and the controls elsewhere that list models."""

    def __init__(self, desk: Desk, forms: Iterable[Form]) -> None:
        self.desk = desk
        self.offering = [(form, one) for form in forms for one in form.fields if one.kind == "model"]
        with gr.Row(elem_classes="sf-main"):
            with gr.Column(min_width=300, scale=5, elem_classes="sf-form"):
                held, button = _adding()
                self.said = panel("", "models-said")
                self.chosen = gr.Dropdown(_names(), value=None, label="Inspect", elem_id="inspect")
                about = panel("", "about-model")
            with gr.Column(min_width=300, scale=6, elem_classes="sf-stage"):
                self.list = panel("", "models")
        self.chosen.change(lambda name: str(inspect(name)), self.chosen, about, **QUIET)
        changed = [self.said, *self.shown]
        self.list.click(self._removed(), None, changed, **QUIET)
        button.click(self._added(), held, [*changed, *held[:3]], concurrency_limit=1, **QUIET)

    @property
    def shown(self) -> list[Any]:
        """All that lists models."""
        return [self.list, self.chosen, *(form.controls[one.name] for form, one in self.offering)]

    def fresh(self) -> list[Any]:
        """Updates of `shown`: what is listed now. What was chosen or typed stays."""
        offers = [gr.update(choices=choices_of(one, all_models())) for _, one in self.offering]
        return [str(models(self.desk)), gr.update(choices=_names()), *offers]

    def _added(self) -> Callable[..., Iterator[list[Any]]]:
        def added(text: str, name: str, parts: str, hashed: bool) -> Iterator[list[Any]]:
            still = [gr.skip()] * (len(self.shown) + 3)
            if to_download(self.desk, text or ""):
                yield [str(note(f"Downloading {text.strip()}: this goes on if the page is closed.")), *still]
            try:
                found = take(self.desk, text or "", name or "", parts or "", hashed=hashed)
            except REFUSALS as error:
                yield [str(fault(told(error))), *still]
                return
            about = facts(place_of(found.entry.place)).text
            yield [str(note(f"{found.name} is added: {about}")), *self.fresh(), "", "", ""]

        return added

    def _removed(self) -> Callable[..., list[Any]]:
        def removed(event: gr.EventData) -> list[Any]:
            deed = deed_of(event)
            if deed.deed != "forget":
                return [gr.skip()] * (1 + len(self.shown))
            try:
                forget(deed.id)
            except REFUSALS as error:
                return [str(fault(told(error))), *self.fresh()]
            return [str(note(f"{deed.id} is removed; its files are still there")), *self.fresh()]

        return removed


def _adding() -> tuple[list[Any], Any]:
    """The controls that say what to add, and the button."""
    gr.Markdown(ABOUT, elem_classes="sf-note")
    place = gr.Textbox(label="File, folder or Hub id", placeholder=HINT, max_lines=1, elem_id="add-path")
    with gr.Row(elem_classes="sf-fields"):
        name = gr.Textbox(
            label="Name", info="that of the file or folder if empty", max_lines=1, elem_id="add-name"
        )
        parts = gr.Textbox(
            label="Parts",
            info="for a single file: the diffusers folder with its tokenizers",
            max_lines=1,
            elem_id="add-parts",
        )
    hashed = gr.Checkbox(
        False, label="Remember the hash, for sfumato models verify: reads the whole file", elem_id="add-hash"
    )
    button = gr.Button("Add", variant="primary", elem_classes="sf-generate", elem_id="add-run")
    return [place, name, parts, hashed], button


def _names() -> list[str]:
    return list(dict.fromkeys(name for names in listed().values() for name in names))
