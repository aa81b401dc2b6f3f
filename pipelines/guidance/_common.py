"""What the guidances share."""

from __future__ import annotations

from ..protocols import Cond, Conds, Pred


def extrapolate(weak: Pred, strong: Pred, scale: float) -> Pred:
    """weak + scale (strong - weak), on both estimates: the CFG form, in which 1 gives `strong`."""
    return Pred(weak.x0 + scale * (strong.x0 - weak.x0), weak.eps + scale * (strong.eps - weak.eps))


def negative(conds: Conds, name: str) -> Cond:
    """The negative condition, which a guidance with scale other than 1 needs."""
    if conds.neg is None:
        raise ValueError(f"{name} needs a negative condition (an empty prompt will do); or use scale 1")
    return conds.neg
