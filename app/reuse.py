"""The dial `reuse`: from the loss that a request allows to the techniques that were measured to keep within it."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from pydantic import ValidationError

from ..assets.recipes.reuse import Way
from ..pipelines.errors import BadInput, NoSite
from ..pipelines.loading import find_model
from ..pipelines.protocols import Model
from ..pipelines.reuse_curve import ReuseCurve, read_curve
from .builder import build, find
from .chosen import Technique
from .faults import refuse
from .registry import locate

BY_HAND = "choose a technique yourself: `sfumato techniques --kind patch`"
AND = " + "
"""Between the techniques of one way."""
BLOCKS = (
    *(f"first-block:threshold={value}" for value in (0.05, 0.08, 0.12, 0.16, 0.2, 0.3, 0.4)),
    *(f"block-cache:interval={value}" for value in (2, 3, 4)),
    *(f"taylorseer:interval={value},order={order}" for value in (2, 3, 4, 5) for order in (1, 2)),
)
SKIPS = (
    *(
        f"deepcache:interval={value},start={start},power=1.3"
        for value in (2, 3, 4, 5)
        for start in (0.15, 0.25, 0.4)
    ),
    *(f"deepcache:branch=2,interval={value}" for value in (2, 3)),
    *(f"deepcache:interval={value},order=0,start=0.0" for value in (2, 3, 4)),
)
NEGATIVE = tuple(f"cfg-skip:interval={value},start={start}" for value in (2, 3) for start in (0.25, 0.4))
"""Where a negative condition is evaluated."""
BLOCKS_AND_NEGATIVE = tuple(
    f"taylorseer:interval={value},order=1,warmup=5{AND}cfg-skip:interval={value},start=0.25"
    for value in (2, 3, 4, 5)
)
SKIPS_AND_NEGATIVE = tuple(
    AND.join(f"{name}:interval={value},start={start},power=1.3" for name in ("deepcache", "cfg-skip"))
    for value in (2, 3, 4, 5, 6)
    for start in (0.15, 0.2, 0.25, 0.4)
)
"""Both evaluate everything at the same steps, so that neither condition is older than the other."""


class Kind(NamedTuple):
    """Of networks, by what of them can be reused."""

    builtin: str
    """The built-in model of this kind."""
    alone: tuple[str, ...]
    both: tuple[str, ...]
    """With guidance."""


KINDS = (Kind("still-life", BLOCKS, BLOCKS_AND_NEGATIVE), Kind("still-life-unet", SKIPS, SKIPS_AND_NEGATIVE))


def parsed(way: str) -> tuple[Technique, ...]:
    try:
        return tuple(Technique.model_validate(text) for text in way.split(AND))
    except ValidationError as error:
        raise refuse("way", way, f"can't be read: {error.errors()[0]['msg']}") from error


def chosen(allowed: float, name: str, steps: int, scale: float | None) -> tuple[Technique, ...]:
    """The fastest way that was measured to lose no more than is allowed, on the model of this name.

    `scale` is that of the guidance; None if which guidance it is has been decided, or there is none.
    """
    found = measured(name)
    if found is None:
        raise refuse("reuse", str(allowed), f"{unmeasured(name)}, or {BY_HAND}")
    if steps < found.steps:
        raise refuse(
            "reuse",
            str(allowed),
            f"was measured at {found.steps} steps, and fewer steps lose more; ask for --steps {found.steps} or more",
        )
    if scale is None:
        kept = tuple(p for p in found.points if not any(map(_guides, parsed(p.technique))))
        found = replace(found, points=kept)
    point = found.pick(allowed)
    if point is None:
        gaining = [p.loss for p in found.points if p.time < 1]
        least = f"is less than the least that can be lost for a gain, {min(gaining, default=0.0):.3g}"
        none = f"gains nothing: of the ways that were measured on {name} none is faster; {BY_HAND}"
        raise refuse("reuse", str(allowed), least if gaining else none)
    return tuple(_scaled(technique, scale) for technique in parsed(point.technique))


def unmeasured(name: str) -> str:
    """Why there are no numbers, and what to do about it."""
    if find_model(locate(name).place).is_file():
        return f"what reuse costs is kept in a model's folder, and {name} is a single file; take a folder"
    return f"nobody has measured what reuse costs on {name}; measure it with `sfumato train reuse {name}`"


def measured(name: str) -> ReuseCurve | None:
    """What reuse was found to cost and save on the model of this name; None if nobody has measured it."""
    place = find_model(locate(name).place)
    return read_curve(place) if place.is_dir() else None


def like(model: Model) -> str | None:
    """The built-in model of this one's kind, by which one may go until it is measured."""
    kind = _kind(model)
    return kind.builtin if kind else None


def candidates(model: Model, scale: float) -> tuple[str, ...]:
    """What can be tried on the model's network with guidance of this scale, 1 for none."""
    kind, guided = _kind(model), scale != 1
    if kind is not None:
        return (*kind.alone, *NEGATIVE, *kind.both) if guided else kind.alone
    if guided:
        return NEGATIVE
    raise BadInput("name", f"{type(model.denoise.net).__name__} has neither the site 'blocks' nor 'skip'")


def _kind(model: Model) -> Kind | None:
    for kind in KINDS:
        patch = build(Technique.model_validate(kind.alone[0]))
        try:
            with patch(model.denoise.net):
                return kind
        except NoSite:
            continue
    return None


def way(text: str, scale: float) -> Way:
    """As it runs, with guidance of this scale."""
    techniques = [_scaled(technique, scale) for technique in parsed(text)]
    for technique in techniques:
        if find(technique, None, "way").kind not in ("patch", "guidance"):
            raise refuse(
                "way", str(technique), "is neither a patch nor a guidance; take one that reuses steps"
            )
    return Way(
        tuple(build(t, field="way") for t in techniques if not _guides(t)),
        next((build(t, field="way") for t in techniques if _guides(t)), None),
    )


def _guides(technique: Technique) -> bool:
    return find(technique, None, "techniques").kind == "guidance"


def _scaled(technique: Technique, scale: float | None) -> Technique:
    if scale is None or not _guides(technique):
        return technique
    return technique.model_copy(update={"settings": {**technique.settings, "scale": scale}})
