"""The form of a task: a control per field, made from the request; what it holds as a request, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from ..chosen import parse_technique
from ..requests import Request
from ..server.about_routes import all_models
from ..server.desk import Desk
from ..server.places import BRIDGE, installed
from ..settings import make_request
from ..tasks import Task
from .canvas import Canvas, drawn, painted
from .kinds import Field, fields_of, groups, taken, told
from .picked import chosen_settings, settings_of, show_settings

TITLES = {"picture": "Picture and mask", "techniques": "Techniques", "advanced": "Advanced"}
LONG = {"prompt": 4, "negative": 2}
SECRET = "sfumato"
"""Not a secret: Gradio wants one that stays the same, else what a browser keeps can't be read after a restart."""
SOURCES = ["upload", "clipboard"]
"""No address of a picture elsewhere can be given."""


@dataclass
class Form:
    """The controls of one task. `controls` are in the order of `fields`; a mask has none of its own."""

    task: Task
    fields: tuple[Field, ...]
    controls: dict[str, Any] = field(default_factory=dict)
    settings: Any = None
    """What the browser keeps: settings of techniques, {id: {name: value}}."""
    epoch: Any = None
    """State that counts how often the form was filled from elsewhere."""
    draft: Any = None
    """What the browser keeps: values of the controls, so that a closed page comes back as it was."""
    kept: dict[str, Any] = field(default_factory=dict)
    """The same for controls of pictures: the fields of the request, by control."""

    @property
    def name(self) -> str:
        return self.task.request.task

    @property
    def parts(self) -> list[Any]:
        """All that holds values, for an event's inputs and outputs."""
        return [*self.controls.values(), self.settings, self.epoch, self.draft, *self.kept.values()]

    @property
    def pictured(self) -> bool:
        """Whether a result can be sent here as the picture to start from."""
        return any(one.kind == "picture" for one in self.fields)

    @property
    def lasting(self) -> list[str]:
        """Fields whose values a browser keeps: all but pictures."""
        return [one.name for one in self.fields if one.name in self.controls and one.kind not in PICTURES]

    def values(self, held: Sequence[Any], desk: Desk) -> dict[str, Any]:
        """What the controls hold, as values of the request; pictures are taken in."""
        by_name = dict(zip(self.controls, held, strict=False))
        settings: dict[str, dict[str, Any]] = held[len(self.controls)] or {}
        found: dict[str, Any] = {}
        for one in self.fields:
            value = by_name.get(one.name)
            match one.kind:
                case "mask":
                    continue
                case "picture" | "pictures":
                    found |= painted(one, value, desk.inputs)
                case "technique":
                    found |= {one.name: chosen_settings(value, settings)} if value else {}
                case "techniques":
                    found |= {one.name: [chosen_settings(name, settings) for name in value]} if value else {}
                case _:
                    taken_value = taken(one, value)
                    if taken_value is not None and taken_value != one.default:
                        found[one.name] = taken_value
        if self.task.request.spoken:
            found.setdefault(self.task.request.positional, "")
        return found

    def request(self, held: Sequence[Any], desk: Desk) -> Request:
        return make_request(self.task.request, self.values(held, desk))

    def filled(self, values: Mapping[str, Any], desk: Desk, *, epoch: int = 0) -> list[Any]:
        """Updates of all parts for a request's values, as JSON has them; what is not given takes its default."""
        updates: list[Any] = []
        draft: dict[str, Any] = {}
        kept: list[dict[str, Any]] = []
        given: dict[str, dict[str, Any]] = {}
        for one in self.fields:
            if one.name not in self.controls:
                continue
            value = values.get(one.name, _plain(one.default))
            if one.kind in ("technique", "techniques") and value:
                many = value if isinstance(value, list | tuple) else [value]
                parsed = [item if isinstance(item, dict) else parse_technique(item) for item in many]
                given |= settings_of(parsed)
                value = parsed if one.kind == "techniques" else parsed[0]
            if one.kind in PICTURES:
                mask = values.get("mask") if any(f.kind == "mask" for f in self.fields) else None
                updates.append(drawn(one, value, mask, desk))
                kept.append({one.name: value} | ({"mask": mask} if mask else {}) if value else {})
            else:
                draft[one.name] = told(one, value)
                updates.append(gr.update(value=draft[one.name]))
        return [*updates, given, epoch + 1, draft, *kept]

    def redrawn(self, draft: Any, kept: Sequence[Any], desk: Desk) -> list[Any]:
        """Updates of the controls from what the browser kept; another version's fields are passed over."""
        held = draft if isinstance(draft, dict) else {}
        pictures = dict(zip(self.kept, kept, strict=True))
        updates = []
        for one in self.fields:
            if one.name not in self.controls:
                continue
            found = pictures.get(one.name)
            if isinstance(found, dict) and found.get(one.name):
                updates.append(drawn(one, found[one.name], found.get("mask"), desk))
            elif one.name in self.lasting and one.name in held:
                updates.append(gr.update(value=held[one.name]))
            else:
                updates.append(gr.skip())
        return updates


PICTURES = ("picture", "pictures")


def begin(task: Task) -> Form:
    """A form without controls, but with what the browser keeps: Gradio reads that only outside of tabs."""
    form = Form(task, fields_of(task.request))
    name = f"sfumato-{form.name}"
    form.settings = gr.BrowserState({}, storage_key=f"{name}-settings", secret=SECRET)
    form.draft = gr.BrowserState({}, storage_key=f"{name}-draft", secret=SECRET)
    form.epoch = gr.State(0)
    for one in form.fields:
        if one.kind in PICTURES:
            form.kept[one.name] = gr.BrowserState({}, storage_key=f"{name}-{one.name}", secret=SECRET)
    return form


def build(form: Form, after_words: Callable[[Form], object]) -> None:
    """The controls, where Gradio's context is now: words first, then the basic fields, the rest in groups.

    `after_words` makes what stands below the words, such as the button.
    """
    masked = any(one.kind == "mask" for one in form.fields)
    spoken = [one for one in form.fields if one.kind == "words"]
    for one in spoken:
        form.controls[one.name] = control(one, form.name)
    after_words(form)
    for group, members in groups(tuple(one for one in form.fields if one not in spoken)):
        if group == "basic":
            _group(form, members, masked)
            continue
        with gr.Accordion(TITLES.get(group, group.capitalize()), open=False):
            _group(form, members, masked)
            choices = [form.controls[one.name] for one in members if one.kind in ("technique", "techniques")]
            if choices:
                show_settings(choices, form.settings, form.epoch)
    order = [one.name for one in form.fields if one.name in form.controls]
    form.controls = {name: form.controls[name] for name in order}
    _keep(form)


def _keep(form: Form) -> None:
    """What is typed goes into the browser's store, without asking the server. What is pasted is seen on leaving."""
    names = form.lasting
    controls = [form.controls[name] for name in names]
    pairs = f"{json.dumps(names)}.map((name, i) => [name, held[i]])"
    script = f"function(...held) {{ return [Object.fromEntries({pairs})]; }}"
    events = [control.input for control in controls]
    events += [control.blur for control in controls if isinstance(control, gr.Textbox)]
    if events:
        gr.on(events, None, controls, form.draft, js=script, show_progress="hidden", api_visibility="private")


def _group(form: Form, members: Sequence[Field], masked: bool) -> None:
    """Pictures and lists over the whole width, small controls side by side."""
    wide = [one for one in members if one.kind in ("picture", "pictures", "techniques")]
    for one in wide:
        if one.kind != "picture" or not masked or one.name != "image":
            form.controls[one.name] = control(one, form.name)
        else:
            form.controls[one.name] = Canvas(form.name, one).build()
    narrow = [one for one in members if one not in wide and one.kind != "mask"]
    if narrow:
        with gr.Row(elem_classes="sf-fields"):
            for one in narrow:
                form.controls[one.name] = control(one, form.name)


def control(one: Field, task: str) -> Any:
    """The control of a field."""
    id, about = f"{task}-{one.name}", one.help + (f" ({one.range})" if one.range else "")
    match one.kind:
        case "words":
            lines = LONG.get(one.name, 2)
            return gr.Textbox(
                _plain(one.default),
                label=one.label,
                lines=lines,
                max_lines=12,
                placeholder=one.help,
                elem_id=id,
                elem_classes="sf-words",
            )
        case "number":
            places = 0 if one.whole else None
            return gr.Number(
                one.default, label=one.label, info=about, precision=places, elem_id=id, min_width=130
            )
        case "slider":
            return gr.Slider(
                one.low, one.high, one.default, step=0.01, label=one.label, info=about, elem_id=id
            )
        case "flag":
            return gr.Checkbox(bool(one.default), label=one.label, info=about, elem_id=id)
        case "picture":
            return gr.Image(type="filepath", label=one.label, sources=SOURCES, elem_id=id, height=220)
        case "pictures":
            note = f"{one.label}: the file's name says what it is, as control.png"
            return gr.File(file_count="multiple", file_types=["image"], label=note, elem_id=id, height=120)
        case "choice" | "model" | "bridge" | "technique" | "techniques":
            return _dropdown(one, about, id)
        case "lines":
            text = told(one, _plain(one.default))
            return gr.Textbox(
                text, label=f"{one.label}, one a line", info=about, lines=2, elem_id=id, min_width=200
            )
    return gr.Textbox(
        told(one, one.default),
        label=one.label,
        info=about,
        placeholder=_hint(one),
        elem_id=id,
        max_lines=1,
        min_width=130,
        elem_classes="sf-number" if one.low is not None else None,
    )


def _hint(one: Field) -> str:
    """What an empty control means."""
    if one.default is not None:
        return ""
    return "random" if "random" in one.help else "auto" if "own" in one.help else ""


def _dropdown(one: Field, about: str, id: str) -> Any:
    match one.kind:
        case "model":
            choices = all_models()
        case "bridge":
            choices = installed(BRIDGE)
        case _:
            choices = list(one.choices)
    several = one.kind == "techniques"
    open_end = one.kind in ("model", "bridge", "technique")
    return gr.Dropdown(
        choices_of(one, choices),
        value=[] if several else "" if one.default is None else one.default,
        multiselect=several,
        allow_custom_value=open_end,
        label=one.label,
        info=about,
        elem_id=id,
        min_width=130,
    )


def choices_of(one: Field, choices: list[str]) -> list[Any]:
    """As a dropdown offers them: with a name for what leaves the field open."""
    if one.kind == "techniques" or one.default is not None:
        return list(choices)
    return [("the model's own" if one.kind == "technique" else "none", ""), *choices]


def _plain(default: Any) -> Any:
    return list(default) if isinstance(default, tuple) else default
