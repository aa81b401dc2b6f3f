"""The optional `sfumato.json` beside model_index.json: what its makers recommend, and its licence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from .errors import BadWeights
from .protocols import Defaults
from .weights import read_json

CARD = "sfumato.json"


class Card(NamedTuple):
    """Fields left out keep the family's own values.

    `preview` maps latents to RGB: a row of 3 per channel, and a last row as bias.
    """

    name: str | None = None
    steps: int | None = None
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    sampler: str | None = None
    schedule: str | None = None
    licence: str = ""
    note: str = ""
    preview: tuple[tuple[float, ...], ...] | None = None

    def over(self, family: Defaults) -> Defaults:
        """The family's defaults with this card's laid over them."""
        own = {key: getattr(self, key) for key in Defaults._fields}
        return family._replace(**{key: value for key, value in own.items() if value is not None})


def read_card(folder: Path, channels: int) -> Card:
    """The card of a model whose latents have so many channels; an empty one if there is no file."""
    file = folder / CARD
    if not file.exists():
        return Card()
    fields = read_json(file)
    unknown = sorted(set(fields) - set(Card._fields))
    if unknown:
        raise BadWeights(f"{file}: the field {unknown[0]!r} is unknown; known are {', '.join(Card._fields)}")
    for name, value in fields.items():
        if not _fits(name, value):
            raise BadWeights(f"{file}: {name} = {str(value)[:60]!r} is not {_wanted(name)}")
    if "preview" in fields:
        rows = len(fields["preview"])
        if rows != channels + 1:
            raise BadWeights(f"{file}: preview has {rows} rows; {channels} and one for the bias are needed")
        fields["preview"] = tuple(tuple(float(number) for number in row) for row in fields["preview"])
    return Card(**fields)


def _wanted(name: str) -> str:
    if name in ("steps", "width", "height"):
        return "a whole number above 0"
    if name == "guidance":
        return "a number, 0 or more"
    return "a list of rows of 3 numbers" if name == "preview" else "text"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e6


def _fits(name: str, value: Any) -> bool:
    if name in ("steps", "width", "height"):
        return type(value) is int and 0 < value <= 65536
    if name == "guidance":
        return _is_number(value) and value >= 0
    if name == "preview":
        rows = value if isinstance(value, list) else [value]
        return bool(rows) and all(
            isinstance(r, list) and len(r) == 3 and all(map(_is_number, r)) for r in rows
        )
    return isinstance(value, str)
