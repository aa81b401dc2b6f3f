"""Which models there are, and what each is, from its headers alone."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from ...pipelines.doors import hub
from ...pipelines.errors import SfumatoError
from ..inspection import MODELS, builtin_models, inspect_folder, inspect_weights, told
from ..model_paths import paths_file, read_model_paths, shared_files
from ..registry import read_registry
from ..server.about_routes import model_names
from .cards import empty
from .panels import fault

TITLES = {
    "builtin": "Built in",
    "remembered": "Remembered",
    "pulled": "Pulled from the Hub",
    "shared": "In shared folders",
}
ITEM = Markup(
    '<li class="sf-row"><span class="sf-what"><b>{}</b><span class="sf-small">{}</span></span></li>'
)


def models() -> Markup:
    """The list, by where models come from."""
    builtin = {one["name"]: one["text"] for one in builtin_models()}
    remembered = {name: f"{one.kind or one.role}" for name, one in read_registry().items()}
    parts = []
    for kind, names in model_names().items():
        about = builtin | remembered
        rows = Markup("").join(ITEM.format(name, about.get(name, "")) for name in names)
        if names:
            heading = Markup('<h3 class="sf-heading">{}</h3><ul class="sf-list">{}</ul>')
            parts.append(heading.format(TITLES.get(kind, kind), rows))
    return Markup("").join(parts) or empty("No models", "`sfumato models add` remembers one.")


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
    """Where a model of the list lies."""
    names = model_names()
    if name in names["builtin"]:
        return MODELS / name
    if name in names["remembered"]:
        place = Path(read_registry()[name].place)
        return place if place.exists() else hub.pulled(str(place))
    if name in names["pulled"]:
        return hub.pulled(name)
    file = paths_file()
    shared = shared_files(read_model_paths(file)) if file else {}
    return next((path for paths in shared.values() for path in paths if path.name == name), None)
