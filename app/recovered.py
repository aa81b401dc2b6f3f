"""What a file says about how it was made, whoever made it: the common form of all dialects."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

MAX_TEXT = 4_000_000
"""Characters of metadata that are looked at. Longer ones are refused: no program writes them."""


class BrokenMetadata(ValueError):
    """The file's metadata is not what its dialect promises."""


@dataclass(frozen=True)
class Recovered:
    """Fields as far as they map, named as in `GenerateRequest`; the rest stays in `unmapped` as found."""

    dialect: str
    prompt: str | None = None
    negative: str | None = None
    model: str | None = None
    model_hash: str | None = None
    sampler: str | None = None
    schedule: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    unmapped: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] | None = None
    """Sfumato's own record, if the file carries one: all that is needed to make it again."""

    def fields(self) -> dict[str, Any]:
        """What was found, without what was not."""
        return {k: v for k, v in asdict(self).items() if v is not None and v != {}}


def load_object(text: str, what: str) -> dict[str, Any]:
    """JSON text that must be one object, within bounds."""
    if len(text) > MAX_TEXT:
        raise BrokenMetadata(f"{what} has {len(text)} characters, more than {MAX_TEXT}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BrokenMetadata(f"{what} is not JSON: {type(error).__name__}") from error
    if not isinstance(value, dict):
        raise BrokenMetadata(f"{what} is a {type(value).__name__}, not an object")
    return value


def take(source: Mapping[str, Any], names: Mapping[str, str], dialect: str) -> Recovered:
    """`names` maps a dialect's key to ours. A value of the wrong type stays unmapped."""
    found: dict[str, Any] = {}
    unmapped: dict[str, Any] = {}
    for key, value in source.items():
        name = names.get(str(key))
        converted = None if name is None else CONVERSIONS[name](value)
        if name is None or converted is None or name in found:
            unmapped[str(key)] = value
        else:
            found[name] = converted
    return Recovered(dialect, **found, unmapped=unmapped)


def text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def whole(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str) and len(value) < 40 and value.strip().lstrip("-").isdecimal():
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None


def number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


CONVERSIONS = {
    "prompt": text,
    "negative": text,
    "model": text,
    "model_hash": text,
    "sampler": text,
    "schedule": text,
    "steps": whole,
    "guidance": number,
    "seed": whole,
    "width": whole,
    "height": whole,
}
