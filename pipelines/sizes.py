"""Are the numbers of a request ones that a model takes? Each refusal names the nearest that are."""

from __future__ import annotations

from .errors import BadInput
from .protocols import Limits


def check_size(width: int, height: int, limits: Limits) -> None:
    """Width and height in pixels."""
    for field, value in (("width", width), ("height", height)):
        check_count(field, value)
        near = _nearest(value, limits)
        if value not in near:
            rule = f"a multiple of {limits.multiple} from {limits.smallest} to {limits.largest}"
            raise BadInput(field, f"{field} = {value} must be {rule}; nearest: {' or '.join(map(str, near))}")


def nearest_side(value: float, limits: Limits) -> int:
    """The width or height in pixels nearest to `value` that a model takes."""
    return min(_nearest(round(value), limits), key=lambda side: abs(side - value))


def _nearest(value: int, limits: Limits) -> list[int]:
    m = limits.multiple
    least, most = -(-limits.smallest // m) * m, limits.largest // m * m
    below = min(max(value // m * m, least), most)
    above = min(max(-(-value // m) * m, least), most)
    return sorted({below, above})


def check_count(field: str, value: int, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadInput(field, f"{field} = {value!r} is not a whole number; give {least} or more")
    if value < least:
        raise BadInput(field, f"{field} = {value} is too small; give {least} or more")
