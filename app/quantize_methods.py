"""The methods of `sfumato models quantize`: converts that pack weights, with `--bits` among their settings.

A convert is one of them by `weight_bits`: the setting that says in how many bits weights are, or their number, or 0
where each layer has its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .builder import MEASURED, by_name, settings
from .catalogue import Entry, techniques
from .chosen import Technique
from .faults import refuse, unknown

if TYPE_CHECKING:
    from ..pipelines.protocols import Convert


class Method(NamedTuple):
    """One that was chosen, with all that was said of it."""

    entry: Entry
    given: dict[str, Any]
    """Settings, converted to their types; with `--bits`."""

    def __str__(self) -> str:
        return str(Technique(id=self.entry.id, settings=self.given))

    @property
    def bits(self) -> int | None:
        """Of a weight; None where each layer has its own."""
        return _bits(self.entry, self.given)

    @property
    def listens(self) -> bool:
        """Whether it takes what the layers are given."""
        return self._has("seen") and (not self.weighs or self.given.get("inputs") == 8)

    @property
    def weighs(self) -> bool:
        """Whether it goes by how much each layer matters."""
        return self._has("sensitivity")

    @property
    def needs(self) -> bool:
        """Whether it can't do without a run of the model."""
        return any(s.default is ... and s.name in MEASURED for s in self.entry.settings)

    def _has(self, name: str) -> bool:
        return any(setting.name == name for setting in self.entry.settings)

    def made(self, measured: Mapping[str, Any]) -> Convert:
        try:
            convert: Convert = _class(self.entry)(**self.given, **measured)
        except ValueError as error:
            raise refuse("method", self.entry.id, f"cannot be used so: {error}") from error
        return convert

    def check(self) -> None:
        """Refuse settings outside their ranges before anything is measured."""
        from ..pipelines.converts._calibration import Seen, Sensitivity

        nothing = {"seen": Seen(1, {}), "sensitivity": Sensitivity({}, {}, frozenset()), "budget": 1.0}
        needed = [setting.name for setting in self.entry.settings if setting.default is ...]
        self.made({name: nothing[name] for name in needed})


def methods() -> dict[str, Entry]:
    return {id: entry for id, entry in techniques("convert").items() if "weight_bits" in vars(_class(entry))}


def method_of(text: str, bits: int | None = None, field: str = "method") -> Method:
    """Checked, as far as it can be without the model."""
    technique = Technique.model_validate(text)
    known = methods()
    choice = f"choose from {', '.join(known)}"
    if technique.id not in known:
        if technique.id in by_name(None):
            raise refuse(field, technique.id, f"packs no weights; {choice}")
        raise unknown(field, technique.id, known, choice)
    entry = known[technique.id]
    for name in (*MEASURED, "budget"):
        if name in technique.settings and any(setting.name == name for setting in entry.settings):
            how = "is given as --budget" if name == "budget" else "is measured here"
            raise refuse(field, f"{entry.id}:{name}", f"{how}; leave it out")
    given = settings(entry, _class(entry), technique, field)
    found = Method(entry, given if bits is None else _with_bits(entry, given, bits))
    found.check()
    return found


def _class(entry: Entry) -> Any:
    return getattr(importlib.import_module(entry.module), entry.name)


def _bits(entry: Entry, given: Mapping[str, Any]) -> int | None:
    from ..kernels.quant.formats import NAMED

    where: str | int = _class(entry).weight_bits
    if isinstance(where, int):
        return where or None
    value = given.get(where, next(s.default for s in entry.settings if s.name == where))
    return NAMED[value].bits if value in NAMED else value if isinstance(value, int) else None


def _with_bits(entry: Entry, given: dict[str, Any], bits: int) -> dict[str, Any]:
    """The settings with those of `--bits`, which are the weights'."""
    where: str | int = _class(entry).weight_bits
    if isinstance(where, int):
        known = f"which {entry.id} has in {where} bits" if where else f"which {entry.id} chooses by --budget"
        of_inputs = any(setting.name == "bits" for setting in entry.settings)
        remedy = f"for its activations write {entry.id}:bits={bits}" if of_inputs else "leave --bits out"
        raise refuse("bits", str(bits), f"is of the weights, {known}; {remedy}")
    if where in given:
        if _bits(entry, given) not in (bits, None):
            raise refuse(
                "bits", str(bits), f"is not what {entry.id}:{where}={given[where]} says; give one of the two"
            )
        return given
    if where == "bits":
        return {**given, where: bits}
    if bits == 7:
        raise refuse("bits", "7", f"is no number of bits of {entry.id}; choose 2 to 6 or 8")
    return {**given, where: "nf4" if bits == 4 else f"int{bits}"}
