"""Command-line options made from a request: no field is repeated by hand.

Every value reaches the request as text and is checked there, so that all entrances refuse the same things
in the same words.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from .chosen import LoraChoice, Technique
from .faults import refuse
from .requests import Request

METAVARS = {int: "INTEGER", float: "NUMBER", str: "TEXT", Technique: "NAME[:KEY=VALUE,...]"}
METAVARS[LoraChoice] = "FILE_OR_NAME[:WEIGHT]"


def command_signature(request: type[Request], function: Callable[..., Any]) -> inspect.Signature:
    """Options of `request`, which take the place of `values`, then the other parameters of `function`."""
    own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "values"]
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    return inspect.Signature([*request_parameters(request), *keyword])


def request_command(request: type[Request]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate `function(values, ...)`: the command takes the request's options."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = command_signature(request, function)
        names = {p.name for p in request_parameters(request)}

        def command(**given: Any) -> Any:
            values = collect(request, {k: v for k, v in given.items() if k in names})
            return function(values, **{k: v for k, v in given.items() if k not in names})

        command.__name__, command.__doc__ = request.task, function.__doc__ or request.__doc__
        command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        command.__signature__ = signature  # type: ignore[attr-defined]
        return command

    return decorate


def request_parameters(request: type[Request]) -> list[inspect.Parameter]:
    """One parameter per field and shorthand, and the positional argument."""
    parameters = []
    if request.positional in request.model_fields:
        info = request.model_fields[request.positional]
        argument = typer.Argument(help=_help(info), metavar=request.positional.upper(), show_default=False)
        parameters.append(_parameter("positional", str | None, argument))
    for name, info in request.model_fields.items():
        parameters.append(_field_parameter(name, info))
        for short, hand in request.shorthands.items():
            if hand.fields[-1] == name:
                option = typer.Option(f"--{short}", help=hand.help, metavar=hand.metavar, show_default=False)
                parameters.append(_parameter(short, str | None, option))
    return parameters


def collect(request: type[Request], given: Mapping[str, Any]) -> dict[str, Any]:
    """Only what was given, ready for `request.model_validate`."""
    values = {k: v for k, v in given.items() if v is not None and v != [] and k != "positional"}
    positional = given.get("positional")
    if positional is not None:
        if request.positional in values:
            raise refuse(request.positional, positional, "is given twice; keep the argument or the option")
        values[request.positional] = positional
    return values


def _field_parameter(name: str, info: FieldInfo) -> inspect.Parameter:
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    kind, repeated = plain_type(info.annotation)
    spelled = f"--{name.replace('_', '-')}" + (f"/--no-{name.replace('_', '-')}" if kind is bool else "")
    flags = [spelled, *(str(flag) for flag in _list(extra.get("flags")))]
    annotation: Any = bool | None if kind is bool else list[str] if repeated else str | None
    panel = None if extra.get("group", "basic") == "basic" else f"{str(extra['group']).capitalize()} options"
    option = typer.Option(
        *flags,
        help=_help(info),
        metavar=None if kind is bool else _metavar(info, kind),
        show_default=False,
        rich_help_panel=panel,
    )
    return _parameter(name, annotation, option, [] if repeated else None)


def plain_type(annotation: Any) -> tuple[Any, bool]:
    """The type inside Optional, and whether the field takes several values."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return plain_type(next(a for a in get_args(annotation) if a is not type(None)))
    if origin in (tuple, list):
        return get_args(annotation)[0], True
    return annotation, False


def _metavar(info: FieldInfo, kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(str(choice) for choice in get_args(kind))
    return METAVARS.get(kind, "TEXT")


def _help(info: FieldInfo) -> str:
    """The field's help with its unit and range."""
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    marks = [str(extra["unit"])] if extra.get("unit") else []
    bounds = bounds_of(info)
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is not None and high is not None and high < 2**40:
        marks.append(f"{low} to {high}")
    elif low is not None:
        marks.append(f"from {low}")
    if info.default not in (None, "", ()) and not isinstance(info.default, bool):
        several = isinstance(info.default, tuple)
        marks.append(f"default {', '.join(info.default) if several else info.default}")
    return f"{info.description} ({', '.join(marks)})" if marks else str(info.description)


def bounds_of(info: FieldInfo) -> dict[str, Any]:
    """The range of a field as pydantic keeps it: {"ge": 1, "le": 1000}."""
    found = {}
    for mark in info.metadata:
        for name in ("ge", "gt", "le", "lt", "multiple_of"):
            if hasattr(mark, name):
                found[name] = getattr(mark, name)
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _parameter(name: str, annotation: Any, option: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[annotation, option], default=default
    )
