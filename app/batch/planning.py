"""batchplan: models, adapters and prompts of many requests are asked for once, and pictures of one shape share a batch.

Paper: arXiv:2412.03594 (BatchLLM): what requests share is put side by side, so that it is computed once
Use: `sfumato batch run FILE`, where `--dry-run` prints the plan; from Python `run_batch`
Cost: every row is looked at before the first is made
Tasks: image, video
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from .parcels import Asked, Counts, Group, Look, Unit


class Plan(NamedTuple):
    """Groups in the order in which they are made, and what the order saves."""

    groups: tuple[Group, ...]
    units: int
    done: int
    """Units that are there already."""
    needed: Counts
    """What check and groups need, with one worker."""
    single: Counts
    """What one call per row needs."""
    in_order: int
    """Models opened by a queue that keeps the last one and takes the rows as they come."""

    @property
    def cost(self) -> int:
        return sum(group.cost for group in self.groups)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "units": self.units,
            "done": self.done,
            "groups": len(self.groups),
            "largest_group": max((len(group.units) for group in self.groups), default=0),
            "steps": self.cost,
            "loads": self.needed.loads,
            "encodings": self.needed.encodings,
            "saved": {
                "loads": self.single.loads - self.needed.loads,
                "loads_in_order": self.in_order - self.needed.loads,
                "encodings": self.single.encodings - self.needed.encodings,
            },
        }

    def told(self) -> str:
        """For people."""
        left = sum(len(group.units) for group in self.groups)
        lines = [
            f"{left} of {self.units} to make, in {len(self.groups)} groups of up to {self.plain()['largest_group']}"
        ]
        if self.single.loads:
            lines.append(
                f"models opened: {self.needed.loads} (one call per row: {self.single.loads}; the rows as they come: "
                f"{self.in_order})"
            )
            lines.append(f"prompts encoded: {self.needed.encodings} (one by one: {self.single.encodings})")
        return "\n".join(lines)


def make_plan(
    rows: Sequence[Asked], looks: Mapping[str, Look], units: Sequence[Unit], done: Collection[Unit]
) -> Plan:
    """`units` are those of all rows that can be made; rows with units that are not done have a look."""
    asked = {row.id: row for row in rows}
    left = [unit for unit in units if unit not in done]
    groups = [
        Group(
            tuple(part),
            tuple(asked[id] for id in dict.fromkeys(unit.row for unit in part)),
            _cost(part, looks),
        )
        for part in _parts(left, looks)
    ]
    return Plan(
        tuple(groups),
        len(units),
        len(units) - len(left),
        Counts(
            _switches([g.units[0].row for g in groups], looks) + _for_the_check(looks),
            _encodings(groups, looks),
        ),
        Counts(
            sum(bool(looks[id].model) for id in dict.fromkeys(unit.row for unit in left)),
            sum(_asked(looks[unit.row]) for unit in left),
        ),
        _switches([unit.row for unit in left], looks),
    )


def _parts(left: Sequence[Unit], looks: Mapping[str, Look]) -> list[list[Unit]]:
    """By model, plain before adapted; by shape; by prompt; and no more at once than fit.

    Prompts are sorted by their text, so that what a killed run has left falls into the groups that it would have made.
    """
    models: OrderedDict[tuple[str, ...], OrderedDict[str, list[Unit]]] = OrderedDict()
    for unit in left:
        look = looks[unit.row]
        shape = look.alike[unit.image] if look.alike else f"{unit}"
        models.setdefault(look.model, OrderedDict()).setdefault(shape, []).append(unit)
    places = {place: at for at, place in enumerate(OrderedDict.fromkeys(model[:-1] for model in models))}
    parts = []
    for model in sorted(models, key=lambda model: (places[model[:-1]], model[-1:])):
        for same in models[model].values():
            ordered = sorted(same, key=lambda unit: _words(looks[unit.row], unit.image))
            most = looks[ordered[0].row].most
            parts += [ordered[at : at + most] for at in range(0, len(ordered), most)]
    return parts


def _words(look: Look, image: int) -> tuple[str, ...]:
    return look.words[image] if look.words else ()


def _switches(ids: Sequence[str], looks: Mapping[str, Look]) -> int:
    """Models opened by who keeps the last one; adapters stay on a model, so that one is opened anew after them."""
    count, last = 0, tuple[str, ...]()
    for id in ids:
        model = looks[id].model
        clean = last[:-1] == model[:-1] and last[-1:] in ((), ("",), model[-1:])
        if model and not (last and clean):
            count += 1
        last = model or last
    return count


def _for_the_check(looks: Mapping[str, Look]) -> int:
    """Models opened to look at rows, all but the one that is left open for the first group."""
    return max(len({look.model[:-1] for look in looks.values() if look.model}) - 1, 0)


def _asked(look: Look) -> int:
    """Prompts that a picture by itself needs encoded."""
    return (2 if look.guided else 1) if look.words else 0


def _encodings(groups: Sequence[Group], looks: Mapping[str, Look]) -> int:
    seen = set()
    for group in groups:
        for unit in group.units:
            look = looks[unit.row]
            if look.words:
                prompt, negative, acting = look.words[unit.image]
                seen.add((look.model, acting, prompt, False))
                seen |= {(look.model, acting, negative, True)} if look.guided else set()
    return len(seen)


def _cost(part: Sequence[Unit], looks: Mapping[str, Look]) -> int:
    return sum(looks[unit.row].steps for unit in part)
