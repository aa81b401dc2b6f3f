"""Values of request fields that have a spelling of their own: techniques, LoRAs and devices."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ..pipelines.prompts import MOST_WEIGHT


class Technique(BaseModel):
    """A technique by its catalogue id, with the settings that differ from its defaults.

    Accepts `cfg`, `cfg:scale=7`, or {"id": "cfg", "settings": {"scale": 7}}.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(description="id in the catalogue: `sfumato techniques` lists them", min_length=1)
    settings: dict[str, Any] = Field(
        default_factory=dict, description="settings by name; the rest keep their defaults"
    )

    @model_validator(mode="before")
    @classmethod
    def from_text(cls, value: Any) -> Any:
        return parse_technique(value) if isinstance(value, str) else value

    def __str__(self) -> str:
        settings = ",".join(
            f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in sorted(self.settings.items())
        )
        return f"{self.id}:{settings}" if settings else self.id


def parse_technique(text: str) -> dict[str, Any]:
    """`NAME:key=value,key=value` to {"id", "settings"}. Values are JSON where possible, else text."""
    name, _, rest = text.strip().partition(":")
    if not name:
        raise ValueError("needs a technique's name, as in cfg:scale=7")
    settings: dict[str, Any] = {}
    for item in _split(rest):
        key, equals, value = item.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise ValueError(f"{item!r} is not key=value, as in cfg:scale=7")
        if key in settings:
            raise ValueError(f"{key!r} is given twice")
        settings[key] = _value(value.strip())
    return {"id": name.strip(), "settings": settings}


def _split(text: str) -> list[str]:
    """Split at commas outside brackets and quotes."""
    parts, depth, quoted, start = [], 0, False, 0
    for i, char in enumerate(text):
        if char == '"':
            quoted = not quoted
        elif not quoted and char in "[{(":
            depth += 1
        elif not quoted and char in "]})":
            depth -= 1
        elif not quoted and char == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [part for part in parts if part.strip()]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _device(text: str) -> str:
    if re.fullmatch(r"auto|cpu|(cuda|mps|xpu)(:\d{1,3})?", text) is None:
        raise ValueError(f"{text[:60]!r} is no device; write auto, cpu, cuda, cuda:1, mps or xpu")
    return text


Device = Annotated[str, AfterValidator(_device)]
"""Well written; whether this machine has it is looked up where it is used."""


class LoraChoice(BaseModel):
    """A LoRA and how strongly it acts. Accepts `ink`, `ink:0.8` and {"name": "ink", "weight": 0.8}."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="a file, or a name in the folder of LoRAs", min_length=1)
    weight: float = Field(1.0, description="how strongly it acts; 0 is off", ge=-MOST_WEIGHT, le=MOST_WEIGHT)

    @model_validator(mode="before")
    @classmethod
    def from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        name, colon, weight = value.rpartition(":")
        return {"name": name, "weight": weight} if colon and _is_number(weight) else {"name": value}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
