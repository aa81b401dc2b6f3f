"""mixdq: a format for each layer by how much the picture hangs on it, within a budget of bytes.

Paper: arXiv:2405.17873 (MixDQ), sections 3.2-3.4
Shapes: any linear layer or 2D convolution
Units and ranges: budget in bytes, above 0, of the layers' weights together; share 0..1, or below 0 to be chosen; inputs
    8, or 0 to leave activations alone
Cost: two integer programmes for each share that is tried, for a known solver; then as weight-only
Neutral: a network without any of the measured layers
Errors: ValueError for a budget below that of the smallest formats, with the numbers, or without scipy
Differs: losses are of the final latents of short runs instead of pictures; the share between content and finish is
    the best of 33 by the sum of both groups' losses, each relative to what it loses with as much of the budget as it
    has of the weights. A text's first token keeps full precision by what the full layer made of it, where it was always
    the same
Tasks: image, video
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from ...kernels.quant.activations import Activation
from ...kernels.quant.formats import NAMED
from ...kernels.quant.packed import Layer, matrix
from ._calibration import Seen, Sensitivity
from ._packing import check_range, pack_layer, pack_layers

SHARES = 33
"""That are tried."""
Losses = Mapping[str, Mapping[str, float]]
"""By layer and format."""


class _Choice(NamedTuple):
    formats: dict[str, str]
    """By layer; none if nothing fits."""
    loss: float


@dataclass(frozen=True)
class MixDq:
    sensitivity: Sensitivity
    """Measured beforehand; its layers are those that get a format."""
    budget: float
    """Bytes of these layers' weights together, above 0."""

    slot: ClassVar[str] = "weights"
    weight_bits: ClassVar[int] = 0

    share: float = -1.0
    """Of the budget, for the layers that content hangs on, 0..1; below 0 it is chosen."""
    inputs: int = 0
    """Bits of the activations: 8, or 0 to leave them alone."""
    seen: Seen | None = None
    """What the layers are given: by it a text's first token is spared; for inputs = 8 only."""

    def __post_init__(self) -> None:
        if not self.budget > 0:
            raise ValueError(f"budget must be above 0, got {self.budget}")
        check_range("share", self.share, -1, 1)
        if self.inputs not in (0, 8):
            raise ValueError(f"inputs must be 8 or 0, got {self.inputs}")
        if find_spec("scipy") is None:
            raise ValueError("mixdq needs scipy's solver; install it: pip install 'sfumato[quant]'")

    def __call__(self, net: nn.Module) -> nn.Module:
        formats = self._formats
        return pack_layers(net, lambda n, layer: self._pack(n, layer, formats.get(n)), skip=(), smallest=0)

    def _pack(self, name: str, layer: Layer, title: str | None) -> nn.Module | None:
        if title is None:
            return None
        w, activation = matrix(layer), Activation(8) if self.inputs else None
        beside: dict[str, Tensor] = {}
        first = self.seen.layers[name].first if self.seen and name in self.seen.layers else None
        if activation and first is not None:
            beside = {"first_input": first, "first_output": w @ first.to(w)}
        return pack_layer(layer, NAMED[title], w, beside, activation)

    @cached_property
    def _formats(self) -> dict[str, str]:
        """Layer to format name. Solved once, however many networks of one layer each it is asked for."""
        names = self.sensitivity.losses
        groups = [
            {n: dict(names[n]) for n in names if (n in self.sensitivity.content) == content}
            for content in (True, False)
        ]
        groups = [group for group in groups if group]
        least = sum(min(sizes.values()) for sizes in self.sensitivity.sizes.values())
        if least > self.budget:
            raise ValueError(f"budget is {self.budget:,.0f} bytes, the smallest formats take {least:,}")
        if len(groups) == 1:
            return self._solved(groups[0], self.budget).formats
        shares = [self.share] if self.share >= 0 else self._shares(groups[0])
        found = [
            [self._solved(group, self.budget * part) for group, part in zip(groups, (s, 1 - s), strict=True)]
            for s in shares
        ]
        usual = [self._usual(group) for group in groups]
        best = min(
            found, key=lambda pair: sum(choice.loss / u for choice, u in zip(pair, usual, strict=True))
        )
        if any(not choice.formats for choice in best):
            raise ValueError(
                f"share = {self.share:g} leaves one of the groups less than its smallest formats"
            )
        return best[0].formats | best[1].formats

    def _usual(self, losses: Losses) -> float:
        """What a group loses with as much of the budget as it has of the weights, or with its smallest formats."""
        sizes = self.sensitivity.sizes
        part, whole = (sum(max(sizes[name].values()) for name in names) for names in (losses, sizes))
        found = self._solved(losses, self.budget * part / whole)
        return (found.loss if found.formats else sum(max(rows.values()) for rows in losses.values())) or 1.0

    def _shares(self, content: Losses) -> list[float]:
        """From the least that content can do with to the most that the others leave it."""
        sizes = self.sensitivity.sizes
        low = sum(min(sizes[name].values()) for name in content)
        high = self.budget - sum(min(sizes[name].values()) for name in sizes if name not in content)
        return [(low + (high - low) * i / (SHARES - 1)) / self.budget for i in range(SHARES)]

    def _solved(self, losses: Losses, budget: float) -> _Choice:
        """One format per layer: the least sum of losses within the budget (eq. 5). Nothing fits: no formats, inf."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array

        if budget <= 0:
            return _Choice({}, float("inf"))
        pairs = [(name, title) for name, rows in losses.items() for title in rows]
        order = {name: i for i, name in enumerate(losses)}
        worst = sum(max(rows.values()) for rows in losses.values()) or 1.0
        cost = [losses[name][title] / worst for name, title in pairs]
        bytes_of = [self.sensitivity.sizes[name][title] / budget for name, title in pairs]
        places = ([order[name] for name, _ in pairs], list(range(len(pairs))))
        one_each = coo_array(([1.0] * len(pairs), places), shape=(len(order), len(pairs)))
        rules = [
            LinearConstraint(one_each.tocsr(), 1, 1),
            LinearConstraint(coo_array([bytes_of]).tocsr(), 0, 1 + 1e-9),
        ]
        found = milp(cost, constraints=rules, integrality=[1] * len(pairs), bounds=Bounds(0, 1))
        if found.x is None:
            return _Choice({}, float("inf"))
        taken = {name: title for (name, title), x in zip(pairs, found.x, strict=True) if x > 0.5}
        return _Choice(taken, sum(losses[name][title] for name, title in taken.items()))
