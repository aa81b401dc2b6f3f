"""swiftdiffusion: LoRAs are read while the first steps run without them, and join before a later step.

Paper: arXiv:2407.02031, section 4.2 (asynchronous LoRA loading); the base model settles the layout in the first steps
Shapes: any linear or convolutional layer of the network; factors [r, in] and [out, r]
Units and ranges: at 0 and up, the steps that are done without, below the steps of the run, or None for as soon as they
    are ready (at the last step at the latest); weights -100..100
Cost: one thread while they load; a copy of each changed weight; on packed or offloaded weights two thin products per
    layer and call. Nothing per step besides
Neutral: no LoRAs (at = 0 is the model with them from the first step on)
Errors: ValueError for a setting outside its range; BadInput for at beyond the run's steps; BadWeights for a file that
    is no LoRA, is damaged, or fits no module of the network, as soon as the thread has found out
Differs: the step is fixed, and is waited for, unless at = None: a seed makes the same picture at any speed of the disk.
    Changed weights are made ready by the thread, so joining swaps pointers. What a file has for text encoders is passed
    over: prompts are encoded before
Tasks: image, video
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import BadInput
from ..moment import Step, step
from ..sites import inputs
from ._incoming import Arrived, Incoming


@dataclass(frozen=True)
class SwiftDiffusion:
    """Lets LoRAs join while the run goes on."""

    at: int | None = 3
    """Steps done before they join, 0 and up; None: as soon as they are ready."""
    loras: tuple[tuple[str, float], ...] = ()
    """Files and how strongly each acts, -100..100; from the command line they are given as --lora."""
    on_join: Callable[[int, Arrived], None] | None = None
    """Told the step before which they joined, 0-based, and what was read."""

    def __post_init__(self) -> None:
        if self.at is not None and self.at < 0:
            raise ValueError(f"at must be 0 or more, got {self.at}")
        for file, weight in self.loras:
            if not math.isfinite(weight) or abs(weight) > 100:
                raise ValueError(f"the weight of {file} must be in -100..100, got {weight}")

    @contextmanager
    def __call__(self, net: nn.Module) -> Iterator[None]:
        if not any(weight for _, weight in self.loras):
            yield
            return
        last: list[Step | None] = []
        with ExitStack() as stack:
            incoming = stack.enter_context(Incoming(net, self.loras))
            joined: list[Arrived] = []

            def arriving(given: Mapping[str, Any]) -> Mapping[str, Any]:
                now = step()
                if not joined and self._due(now, incoming, begins=last != [now]):
                    joined.append(stack.enter_context(incoming.acting()))
                    if self.on_join is not None:
                        self.on_join(0 if now is None else now.index, joined[0])
                last[:] = [now]
                return {}

            stack.enter_context(inputs(net, arriving))
            yield

    def _due(self, now: Step | None, incoming: Incoming, *, begins: bool) -> bool:
        """Whether they join now. Without a loop there are no steps to wait for."""
        if now is None:
            return True
        if self.at is not None and self.at >= now.steps:
            raise BadInput(
                "techniques", f"swiftdiffusion: at = {self.at} must be below the {now.steps} steps of the run"
            )
        ready = incoming.ready  # raises what is wrong with a file
        if self.at is None:
            return begins and (ready or now.index == now.steps - 1)
        return now.index >= self.at
