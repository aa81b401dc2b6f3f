"""Which models and LoRAs there are, what each is from its headers alone, and names for more of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from ...pipelines.doors import hub
from ...pipelines.errors import SfumatoError
from ..faults import refuse
from ..inspection import MODELS, inspect_folder, inspect_weights, told
from ..model_facts import facts
from ..model_paths import ENDINGS, paths_file, read_model_paths, shared_files
from ..registration import Added, add, pinned
from ..registration import place_of as settled_place
from ..registry import read_registry
from ..server.about_routes import lora_names, model_names
from ..server.desk import Desk
from .cards import empty
from .panels import button, fault

TITLES = {
    "builtin": "Built in",
    "remembered": "Added",
    "loras": "LoRAs",
    "pulled": "Pulled from the Hub",
    "shared": "In shared folders",
}
ADDED = ("remembered", "loras")
"""Kinds that can be removed from the list."""
ITEM = Markup(
    '<li class="sf-row" data-key="{}"><span class="sf-what"><b>{}</b><span class="sf-small">{}</span></span>'
    '<span class="sf-acts">{}</span></li>'
)
LOOKED_AT = 100
"""Of each kind, so many have their headers read for the list."""
REMEDY = "give a .safetensors or .gguf file, a folder in diffusers layout, or owner/name of the Hub"


def models(desk: Desk) -> Markup:
    """The list, by where models come from."""
    parts = []
    for kind, names in listed().items():
        rows = Markup("").join(_rows(desk, kind, names))
        if names:
            heading = Markup('<h3 class="sf-heading">{}</h3><ul class="sf-list">{}</ul>')
            parts.append(heading.format(TITLES.get(kind, kind), rows))
    return Markup("").join(parts) or empty("No models", "Add one that lies on this machine.")


def listed() -> dict[str, list[str]]:
    """All names, by kind."""
    found = model_names()
    return {kind: found.get(kind, []) if kind != "loras" else lora_names() for kind in TITLES}


def _rows(desk: Desk, kind: str, names: list[str]) -> Iterator[Markup]:
    known = read_registry() if kind in ADDED else {}
    for i, name in enumerate(names):
        told_of = facts(_path(kind, name)).text if i < LOOKED_AT else ""
        if name in known and desk.serving.alone:  # where things lie concerns this machine's user alone
            told_of += f" · {known[name].place}"
        ask = f"Remove {name} from the list? Its files stay where they are."
        acts = button("forget", name, "Remove", title=f"Remove {name}", ask=ask) if name in known else ""
        yield ITEM.format(name, name, told_of, acts)


def inspect(name: str | None) -> Markup:
    """What a model of the list is. Only those can be asked for: a path of this machine leads nowhere."""
    if not name:
        return Markup("")
    try:
        path = place_of(name)
        if path is None:
            return fault(f"model: {name!r} is not in the list; choose one of it")
        found = inspect_folder(path) if path.is_dir() else inspect_weights(path, hashed=False)
        return Markup("<pre>{}</pre>").format(told(found).replace(str(path), name))
    except (SfumatoError, OSError) as error:
        return fault(str(error))


def place_of(name: str) -> Path | None:
    """Where a model or LoRA of the list lies."""
    return next((_path(kind, name) for kind, names in listed().items() if name in names), None)


def _path(kind: str, name: str) -> Path | None:
    match kind:
        case "builtin":
            return MODELS / name
        case "remembered" | "loras":
            return settled_place(read_registry()[name].place)
        case "pulled":
            return hub.pulled(name)
    file = paths_file()
    shared = shared_files(read_model_paths(file)) if file else {}
    return next((path for paths in shared.values() for path in paths if path.name == name), None)


def take(desk: Desk, text: str, name: str, parts: str, *, hashed: bool = False) -> Added:
    """Remember what somebody named in the page; a model of the Hub is downloaded first where that is allowed."""
    place = given(desk, text, "path")
    if place is None:
        place = _of_hub(desk, text.strip())
    beside = None
    if parts.strip():
        found = given(desk, parts, "parts")
        beside = pinned(parts.strip()) if found is None else found
    return add(place, name=name.strip() or None, parts=beside, hashed=hashed)


def given(desk: Desk, text: str, field: str) -> str | None:
    """The file or folder that was named; None for an id of the Hub.

    Where others may come in, only within folders that the operator opened; else anywhere its user can read.
    """
    text = text.strip()
    if not text:
        raise refuse(field, text, f"is needed; {REMEDY}")
    path = _local(text) if desk.serving.alone else desk.places.within(text)
    if path is None:
        if hub.is_id(text):
            return None
        if not desk.serving.alone:
            return desk.places.place(text, field)  # says why not
        raise refuse(field, text, f"does not exist; {REMEDY}, with the whole path")
    if path.is_file() and path.suffix.lower() not in ENDINGS:
        raise refuse(field, text, f"is no model that can be opened; {REMEDY}")
    return str(path)


def _local(text: str) -> Path | None:
    """What is there under a whole path of this machine."""
    try:
        path = Path(text).expanduser()
        return path if path.is_absolute() and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long a name, nobody's home, a zero byte
        return None


def to_download(desk: Desk, text: str) -> bool:
    """Whether `take` would download it."""
    try:
        named = bool(text.strip()) and given(desk, text, "path") is None
        return named and desk.serving.downloads and hub.pulled(text.strip()) is None
    except SfumatoError:
        return False


def _of_hub(desk: Desk, id: str) -> str:
    if hub.pulled(id) is not None:
        return pinned(id)
    if not desk.serving.downloads:
        remedy = f"was not pulled; `sfumato models pull {id}` downloads it, or the operator says --downloads"
        raise refuse("path", id, remedy)
    found = hub.pull(id)
    return f"{found.repository}@{found.commit}"
