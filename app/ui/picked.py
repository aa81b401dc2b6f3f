"""Techniques that were chosen in a form: their settings as controls, and as values of the request."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gradio as gr

from ..builder import by_name
from ..catalogue import Entry, Setting
from ..chosen import parse_technique

Settings = dict[str, dict[str, Any]]


def chosen_settings(name: str, settings: Settings) -> dict[str, Any]:
    """A technique as the request takes it. A name may bring settings of its own, as on the command line."""
    found = parse_technique(name)
    entry = by_name(None).get(found["id"])
    defaults = {s.name: s.default for s in entry.settings} if entry else {}
    typed = {key: read(value) for key, value in settings.get(found["id"], {}).items()}
    kept = {key: value for key, value in typed.items() if value is not None and value != defaults.get(key)}
    return {"id": found["id"], "settings": {**kept, **found["settings"]}}


def settings_of(many: Iterable[Mapping[str, Any]]) -> Settings:
    """Settings by technique, of a request's techniques."""
    return {str(one["id"]): dict(one.get("settings") or {}) for one in many}


def read(value: Any) -> Any:
    """What was typed: JSON where it is, else text."""
    if not isinstance(value, str):
        return int(value) if isinstance(value, float) and value.is_integer() else value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except ValueError:
        return value


def show_settings(choices: list[Any], settings: Any, epoch: Any) -> None:
    """A box per chosen technique, made anew when another is chosen or the form is filled from elsewhere."""

    @gr.render(
        inputs=[*choices, settings],
        triggers=[*(choice.change for choice in choices), epoch.change],
        show_progress="hidden",
    )
    def boxes(*held: Any) -> None:
        names: list[str] = []
        for value in held[:-1]:
            names += value if isinstance(value, list) else [value] if value else []
        known = by_name(None)
        for name in names:
            id = str(name).partition(":")[0]
            if id in known:
                _box(id, known[id], (held[-1] or {}).get(id, {}), settings)


def _box(name: str, entry: Entry, held: Mapping[str, Any], settings: Any) -> None:
    with gr.Group(elem_classes="sf-technique"):
        gr.Markdown(f"**{name}** {entry.summary}")
        with gr.Row(elem_classes="sf-fields"):
            for setting in entry.settings:
                if setting.name in ("skip", "seen"):
                    continue
                part = _control(name, setting, held.get(setting.name, setting.default))
                part.input(
                    _remember(name, setting.name),
                    [part, settings],
                    settings,
                    show_progress="hidden",
                    api_visibility="private",
                )


def _remember(technique: str, name: str) -> Callable[[Any, Settings], Settings]:
    def remember(value: Any, settings: Settings) -> Settings:
        return {**settings, technique: {**settings.get(technique, {}), name: value}}

    return remember


def _control(technique: str, setting: Setting, value: Any) -> Any:
    id, about = f"set-{technique}-{setting.name}", setting.help
    key = f"{technique}-{setting.name}"
    if setting.type == "bool":
        return gr.Checkbox(bool(value), label=setting.name, info=about, elem_id=id, key=key, interactive=True)
    if setting.type in ("int", "float") and isinstance(value, int | float):
        places = 0 if setting.type == "int" else None
        return gr.Number(
            value,
            label=setting.name,
            info=about,
            precision=places,
            elem_id=id,
            key=key,
            interactive=True,
            min_width=120,
        )
    if setting.type.startswith("Literal["):
        choices = [part.strip(" '\"") for part in setting.type[len("Literal[") : -1].split(",")]
        return gr.Dropdown(
            choices,
            value=value,
            label=setting.name,
            info=about,
            elem_id=id,
            key=key,
            interactive=True,
            min_width=120,
        )
    text = "" if value is ... or value is None else value if isinstance(value, str) else json.dumps(value)
    return gr.Textbox(
        text, label=setting.name, info=about, elem_id=id, key=key, interactive=True, min_width=120
    )
