"""Where values come from: flags over environment over config file over defaults.

Environment: `SFUMATO_STEPS=30`. Config file, YAML or TOML: --config, `SFUMATO_CONFIG`, or in the user's
config folder; a request's fields at the top level, or under its task's name to hold for that task only. One more key,
`model_paths`, names an extra_model_paths.yaml.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ..pipelines.errors import BadInput
from .faults import nearest, refuse, validation_sentences
from .model_paths import SETTING
from .options import plain_type
from .requests import REQUESTS, Request

PREFIX = "SFUMATO_"
OTHERS = ("CONFIG", "OUTPUT", "MODEL_PATHS", "HOME", "DISK_CAP", "CHECKPOINT_SECONDS")
"""Variables that are no request fields."""

R = TypeVar("R", bound=Request)


def config_file(given: str | None = None, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The config file in force, if there is one. One that was asked for must exist."""
    named = given or environment.get(f"{PREFIX}CONFIG")
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise refuse("config", named, "is not a file; write one or leave it out")
        return path
    import platformdirs

    folder = Path(platformdirs.user_config_dir("sfumato", appauthor=False))
    return next(
        (p for p in (folder / f"config.{end}" for end in ("toml", "yaml", "yml")) if p.is_file()), None
    )


def read_config(path: Path) -> dict[str, Any]:
    """A YAML, TOML or JSON file that must hold one table of known keys."""
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text) if path.suffix == ".toml" else _yaml(text)
    except OSError as error:
        raise refuse("config", str(path), f"can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise refuse(
            "config", str(path), f"is not valid {path.suffix.lstrip('.')} ({str(error)[:120]})"
        ) from error
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise refuse("config", str(path), f"must be a table of settings, not a {type(found).__name__}")
    known = {name for request in REQUESTS.values() for name in fields(request)} | set(REQUESTS) | {SETTING}
    for key in found:
        if key not in known:
            raise refuse(
                "config", str(key), f"in {path} is no setting; {nearest(str(key), known)}".rstrip("; ")
            )
    return found


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def fields(request: type[Request]) -> list[str]:
    return [*request.model_fields, *request.shorthands]


def from_file(request: type[Request], config: Mapping[str, Any]) -> dict[str, Any]:
    """This task's settings: its own table over the top level."""
    own = config.get(request.task, {})
    if not isinstance(own, Mapping):
        raise refuse("config", str(own), f"must be a table of {request.task}'s settings")
    names = fields(request)
    for key in own:
        if key not in names:
            raise refuse(
                "config", str(key), f"is no field of {request.task}; {nearest(str(key), names)}".rstrip("; ")
            )
    return {k: v for k, v in {**config, **own}.items() if k in names}


def from_environment(request: type[Request], environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """`SFUMATO_STEPS=30`; several techniques are separated by `;`, or given as JSON."""
    found: dict[str, Any] = {}
    for name in fields(request):
        value = environment.get(PREFIX + name.upper())
        if value is None:
            continue
        info = request.model_fields.get(name)
        if info is not None and plain_type(info.annotation)[1]:
            found[name] = _several(PREFIX + name.upper(), value)
        else:
            found[name] = value
    return found


def _several(name: str, value: str) -> list[Any]:
    if not value.lstrip().startswith("["):
        return [part for part in value.split(";") if part.strip()]
    try:
        return list(json.loads(value))
    except ValueError as error:
        raise refuse(name, value, "is not a JSON list") from error


def unknown_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """SFUMATO_ variables that no one reads: usually a slip of the pen."""
    known = {PREFIX + name.upper() for request in REQUESTS.values() for name in fields(request)}
    known |= {PREFIX + name for name in OTHERS}
    return sorted(name for name in environment if name.startswith(PREFIX) and name not in known)


def merged(request: type[Request], flags: Mapping[str, Any], config: Path | None) -> dict[str, Any]:
    """All sources, the strongest last. Shorthands are spelled out in each, so --width beats a file's size."""
    values: dict[str, Any] = {}
    for source in (
        from_file(request, read_config(config)) if config else {},
        from_environment(request),
        flags,
    ):
        try:
            values.update(request.expand(dict(source)))
        except ValueError as error:
            raise BadInput("size", str(error)) from error
    return values


def make_request(request: type[R], values: Mapping[str, Any]) -> R:
    """The request, or all of its faults in one sentence each."""
    try:
        return request.model_validate(dict(values))
    except ValidationError as error:
        sentences = validation_sentences(error, fields(request))
        first = error.errors(include_url=False)[0]["loc"]
        raise BadInput(str(first[0]) if first else "request", "\n".join(sentences)) from error
