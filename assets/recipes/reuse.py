"""What reusing steps costs and saves on a model: the same prompts and seeds with each way, against the full run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ...pipelines.protocols import Guidance, Model, Patch
from ...pipelines.reuse_curve import Point, ReuseCurve
from ...pipelines.text_to_image import Images, TextToImage

FULL = "full"


@dataclass(frozen=True)
class Way:
    """How a run reuses."""

    patches: tuple[Patch, ...] = ()
    guidance: Guidance | None = None
    """None is the model's own."""


@dataclass
class Compared:
    """One way, prompt by prompt."""

    times: list[float] = field(default_factory=list)
    """Of sampling, as a share of the full run's in the same round."""
    losses: list[float] = field(default_factory=list)
    """Root mean square of the change of the final latents, as a share of that of the latents."""
    psnr: list[float] = field(default_factory=list)
    """Of the picture against the full run's, decibels; inf where they are the same."""


def compare(
    model: Model, ways: Mapping[str, Way], prompts: Sequence[str], *, steps: int, seed: int = 0
) -> dict[str, Compared]:
    """Every way on every prompt, in turn and back, so that a slow minute of the machine hits all alike.

    The first prompt is run once more beforehand, for warmth.
    """
    runs = {FULL: Way(), **ways}
    made = {name: TextToImage(model, patches=w.patches, guidance=w.guidance) for name, w in runs.items()}
    found = {name: Compared() for name in ways}
    for turn in range(-1, len(prompts)):
        prompt = prompts[max(turn, 0)]
        order = list(made) if turn % 2 == 0 else list(reversed(made))
        images = {name: made[name](prompt, steps=steps, seed=seed + max(turn, 0)) for name in order}
        if turn < 0:
            continue
        for name, result in found.items():
            _add(result, images[name], images[FULL])
    return found


def curve(found: Mapping[str, Compared], steps: int) -> ReuseCurve:
    """Names are techniques with their settings."""
    points = (
        Point(name, round(statistics.median(way.losses), 5), round(statistics.median(way.times), 4))
        for name, way in found.items()
    )
    return ReuseCurve(steps, tuple(points))


def _add(result: Compared, images: Images, full: Images) -> None:
    result.times.append(images.timings.sample / full.timings.sample)
    result.losses.append(_rms(images.latents - full.latents) / _rms(full.latents))
    error = float((images.pixels - full.pixels).square().mean())
    result.psnr.append(-10 * math.log10(error) if error > 0 else math.inf)


def _rms(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())
