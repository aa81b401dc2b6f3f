"""The dial `reuse`: from the loss that a request allows to the technique that was measured to keep within it."""

from __future__ import annotations

from ..pipelines.errors import BadInput, NoSite
from ..pipelines.loading import find_model
from ..pipelines.protocols import Model
from ..pipelines.reuse_curve import read_curve
from .builder import build
from .chosen import Technique, parse_technique
from .faults import refuse
from .registry import locate

BLOCKS = (
    *(f"first-block:threshold={value}" for value in (0.05, 0.08, 0.12, 0.16, 0.2, 0.3, 0.4)),
    *(f"block-cache:interval={value}" for value in (2, 3, 4)),
    *(f"taylorseer:interval={value},order={order}" for value in (2, 3, 4, 5) for order in (1, 2)),
)
SKIPS = tuple(
    f"deepcache:branch={branch},interval={value},order={order}"
    for branch in (0, 2)
    for value in (2, 3, 4, 5)
    for order in (0, 1, 2)
)


def chosen(allowed: float, name: str, steps: int) -> Technique:
    """The fastest technique that was measured to lose no more than is allowed, on the model of this name."""
    place = find_model(locate(name).place)
    found = read_curve(place) if place.is_dir() else None
    if found is None:
        raise refuse(
            "reuse",
            str(allowed),
            f"nobody has measured what reuse costs on {name}; measure it with `sfumato train reuse {name}`, or choose "
            "a technique yourself: `sfumato techniques --kind patch`",
        )
    if steps < found.steps:
        raise refuse(
            "reuse",
            str(allowed),
            f"was measured at {found.steps} steps, and fewer steps lose more; ask for --steps {found.steps} or more",
        )
    point = found.pick(allowed)
    if point is None:
        least = min(p.loss for p in found.points)
        raise refuse(
            "reuse", str(allowed), f"is less than the least that can be lost for a gain, {least:.3g}"
        )
    return Technique.model_validate(parse_technique(point.technique))


def candidates(model: Model) -> tuple[str, ...]:
    """What can be tried on the model's network."""
    for texts in (BLOCKS, SKIPS):
        patch = build(Technique.model_validate(texts[0]))
        try:
            with patch(model.denoise.net):
                return texts
        except NoSite:
            continue
    raise BadInput("name", f"{type(model.denoise.net).__name__} has neither the site 'blocks' nor 'skip'")
