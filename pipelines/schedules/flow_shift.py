"""flow-shift: even times pushed towards noise by a factor, fixed or growing with the resolution.

Paper: arXiv:2403.03206, eq. 23 (SD3); the growth with tokens is that of FLUX
Shapes: steps + 1 falling floats
Units and ranges: shift 0.01..100, 1 = even; tokens 0 and up, latent tokens of the picture, 0 = use shift;
    base_tokens and max_tokens, where the log-shift is base_shift and max_shift; terminal 0..1, flow sigma of the
    last step, 0 = off
Cost: no network evaluations
Neutral: shift = 1 with tokens = 0 and terminal = 0 (even times on a flow path)
Errors: ValueError for a setting outside its range
Differs: sets sigma / (alpha + sigma), so it holds on every path; a flow path's own shift is not added
Tasks: image, video, 3d
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..protocols import Path
from ._common import check_steps, finish, flow_time


@dataclass(frozen=True)
class FlowShift:
    """s = shift r / (1 + (shift - 1) r) for even r; with tokens, shift = exp(mu) and mu linear in tokens."""

    shift: float = 3.0
    """Factor on the odds of noise, 0.01..100; 1 is even."""
    tokens: int = 0
    """Latent tokens of the picture or clip, 0 and up; 0 uses `shift`."""
    base_shift: float = 0.5
    """Log-shift at base_tokens, -5..5."""
    max_shift: float = 1.15
    """Log-shift at max_tokens, -5..5."""
    base_tokens: int = 256
    """Tokens, 1 and up."""
    max_tokens: int = 4096
    """Tokens, above base_tokens."""
    terminal: float = 0.0
    """Flow sigma at which the last step begins, 0..1 (LTX, Qwen-Image: 0.1, 0.02); 0 leaves it as it is."""

    def __post_init__(self) -> None:
        if not 0.01 <= self.shift <= 100:
            raise ValueError(f"shift must be in 0.01..100, got {self.shift}")
        if self.tokens < 0:
            raise ValueError(f"tokens must be 0 or more, got {self.tokens}")
        for name, value in (("base_shift", self.base_shift), ("max_shift", self.max_shift)):
            if not -5 <= value <= 5:
                raise ValueError(f"{name} must be in -5..5, got {value}")
        if not 1 <= self.base_tokens < self.max_tokens:
            raise ValueError(
                f"need 1 <= base_tokens < max_tokens, got {self.base_tokens} and {self.max_tokens}"
            )
        if not 0 <= self.terminal < 1:
            raise ValueError(f"terminal must be in 0..1, got {self.terminal}")

    def __call__(self, steps: int, path: Path) -> list[float]:
        check_steps(steps)
        shift = self.shift
        if self.tokens:
            slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
            shift = math.exp(self.base_shift + slope * (self.tokens - self.base_tokens))
        high = path.sigma(path.start) / (path.alpha(path.start) + path.sigma(path.start))
        # even times begin where the shift leads to the path's start: 1 on flow paths
        top = high / (shift - (shift - 1) * high)
        even = [top * (1 - i / steps) for i in range(steps)]
        levels = [shift * r / (1 + (shift - 1) * r) for r in even]
        if self.terminal and steps > 1:
            stretch = (levels[0] - self.terminal) / (levels[0] - levels[-1])
            levels = [levels[0] - (levels[0] - s) * stretch for s in levels]
        return finish([path.start, *(flow_time(path, s) for s in levels[1:])], path)
