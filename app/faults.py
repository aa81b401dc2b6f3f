"""The one place that turns what went wrong into a sentence for people and an exit code for scripts."""

from __future__ import annotations

import difflib
import errno
import sqlite3
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from ..pipelines.errors import BadInput, NotFinite, SfumatoError

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

DEFECTS = (
    ValueError,
    RuntimeError,
    OSError,
    MemoryError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ImportError,
)
"""What code may raise by a user's choice or a defect: where one job's fault must not stop the next."""

WORDS = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "finite_number": "must be a finite number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of at most 19 digits",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "string_unicode": "must be valid text",
    "string_too_short": "must not be empty",
    "literal_error": "must be one of {expected}",
    "missing": "is needed",
    "is_instance_of": "can be given from Python only, as a {class}",
}


def refuse(field: str, value: Any, remedy: str) -> BadInput:
    """What was asked for can't be done so: the field, the value, what to do about it. Exit code 2."""
    return BadInput(field, f"{field}: {shown(value)} {remedy}")


class Failure(RuntimeError):
    """The request was sound, the work was not finished. Exit code 1."""


class OutOfMemory(Failure):
    """There was less memory than the work took."""


def shown(value: Any) -> str:
    """A value for a sentence: short, on one line."""
    text = repr(value) if isinstance(value, str) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} characters)"


def unknown(field: str, name: str, known: Iterable[str], listing: str) -> BadInput:
    """An unknown name, with its nearest known neighbour."""
    return refuse(field, name, f"is not known; {nearest(name, known)}{listing}")


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'? `, or nothing if nothing is near."""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f"did you mean {by_lower[close[0]]!r}? " if close else ""


def validation_sentences(error: ValidationError, fields: Iterable[str]) -> list[str]:
    """One sentence per fault of a request: `field: value remedy`."""
    return [fault_sentence(fault, list(fields)) for fault in error.errors(include_url=False)]


def fault_sentence(fault: Any, fields: list[str]) -> str:
    """One of pydantic's faults as a sentence."""
    kind, place, value = fault["type"], ".".join(str(part) for part in fault["loc"]), fault["input"]
    if kind == "extra_forbidden":
        return str(
            refuse(place, value, f"is no field of this request; {nearest(place, fields)}".rstrip("; "))
        )
    if kind in ("value_error", "assertion_error"):
        message = str(fault["ctx"]["error"])
        return f"{place}: {message}" if place else message
    words = WORDS.get(kind)
    remedy = words.format(**fault.get("ctx", {})) if words else str(fault["msg"]).lower()
    return str(refuse(place, value, remedy))


def describe(error: BaseException) -> tuple[int, str] | None:
    """Exit code and sentence for the expected faults; None for a bug, which deserves its traceback."""
    if isinstance(error, ValidationError):
        return BAD_INPUT, "\n".join(validation_sentences(error, ()))
    if isinstance(error, NotFinite):
        return FAILED, str(error)
    if isinstance(error, SfumatoError):
        return BAD_INPUT, str(error)
    if isinstance(error, OSError):
        return FAILED, os_sentence(error)
    if isinstance(error, sqlite3.Error):
        return FAILED, f"the database of jobs: {error}; is the disk full, or the folder on a network?"
    if isinstance(error, MemoryError):
        return FAILED, "out of memory: ask for a smaller size or count"
    if isinstance(error, Failure):
        return FAILED, str(error)
    return None


def os_sentence(error: OSError) -> str:
    """What the system said, where, and what helps."""
    where = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{where}{reason}; nothing half-written was left. Free some space or choose another --output"
    return f"{where}{reason}"
