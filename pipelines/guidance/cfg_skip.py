"""cfg-skip: guidance whose difference between the conditions is worked out at every other step and kept in between.

Paper: arXiv:2410.19355 (FasterCache), section 3.3 (CFG-Cache)
Shapes: x any shape
Units and ranges: scale 0..100, 1 = off; interval 1 and up, in steps of the loop; start 0..1, share of the steps after
    which it acts; power 1..4
Cost: 1 extra condition (the negative) at every interval-th step and before `start`, none at the others; 1 tensor like x
Neutral: interval = 1 is plain cfg, scale = 1 is no guidance
Errors: ValueError for a setting outside its range, or scale other than 1 without a negative condition
Differs: the difference is that of the velocity and is kept whole; the paper weighs its low and high frequencies by the
    step. deepcache with the same interval, start and power is full at the same steps. Nothing is kept outside the
    loop. A resumed run begins with an evaluation of both
Tasks: image, video, 3d
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from ..moment import Memory
from ..protocols import Conds, Denoiser, Path, Pred, Predict
from ..spacing import Spacing
from ._common import extrapolate, negative


@dataclass
class _Kept:
    """The last difference of velocities, pos - neg, and its step."""

    step: int = -1
    change: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class CfgSkip:
    """CFG with the negative condition evaluated in some of the steps."""

    scale: float = 5.0
    """Guidance scale, 0..100; 1 is off."""
    interval: int = 2
    """Steps from one evaluation of the negative condition to the next, 1 and up; 1 is plain cfg."""
    start: float = 0.25
    """Share of the steps in which both are evaluated at first, 0..1."""
    power: float = 1.0
    """How much the evaluations of both crowd at the start, 1 (evenly) to 4."""

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 100:
            raise ValueError(f"scale must be in 0..100, got {self.scale}")
        self._spacing()

    def __call__(self, denoise: Denoiser, conds: Conds) -> Predict:
        if self.scale == 1:
            return lambda x, t: denoise(x, t, conds.pos)[0]
        neg, memory, spacing = negative(conds, "cfg-skip"), Memory(_Kept), self._spacing()

        def predict(x: Tensor, t: float) -> Pred:
            memory.turn(("difference",))
            step, kept = memory.step, memory.branches[0] if memory.branches else _Kept()
            fits = kept.change and kept.change[0].shape == x.shape
            if step is not None and fits and not spacing.due(step.steps, step.index, kept.step):
                (strong,) = denoise(x, t, conds.pos)
                return _moved(strong, (self.scale - 1) * kept.change[0], denoise.path, t)
            strong, weak = denoise(x, t, conds.pos, neg)
            if step is not None and self.interval > 1:
                kept.step, kept.change = step.index, [_velocity(strong, weak, denoise.path, t)]
            return extrapolate(weak, strong, self.scale)

        return predict

    def _spacing(self) -> Spacing:
        return Spacing(self.interval, self.start, self.power)


def _velocity(strong: Pred, weak: Pred, path: Path, t: float) -> Tensor:
    """The difference of v = p eps - q x0."""
    _, _, p, q = _parts(path, t)
    return p * (strong.eps - weak.eps) - q * (strong.x0 - weak.x0)


def _moved(pred: Pred, change: Tensor, path: Path, t: float) -> Pred:
    """The prediction with its velocity changed; x = alpha x0 + sigma eps stays as it was."""
    a, s, p, q = _parts(path, t)
    change = change / (a * p + s * q)
    return Pred(pred.x0 - s * change, pred.eps + a * change)


def _parts(path: Path, t: float) -> tuple[float, float, float, float]:
    """alpha, sigma, and the p and q of the velocity, which is finite at both ends of every path."""
    a, s = path.alpha(t), path.sigma(t)
    c = math.hypot(a, s)
    return (a, s, 1.0, 1.0) if path.name == "flow" else (a, s, a / c, s / c)
