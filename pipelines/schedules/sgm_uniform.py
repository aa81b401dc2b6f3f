"""sgm-uniform: training times evenly spaced from start to last, the last one replaced by the end.

Paper: none, from Stability's generative-models (as sgm_uniform in ComfyUI)
Shapes: steps + 1 falling floats
Units and ranges: no settings
Cost: no network evaluations
Neutral: none: a schedule replaces another
Errors: ValueError for steps below 1
Differs: on VE, whose training time is log sigma, even in log sigma; a flow path's shift is applied once
Tasks: image, video, 3d
"""

from __future__ import annotations

from ..protocols import Path
from ._common import check_steps, finish


def sgm_uniform(steps: int, path: Path) -> list[float]:
    """linspace(start, last, steps + 1) without its last value, then the end."""
    check_steps(steps)
    if path.name == "ve":
        return finish([path.start * (path.last / path.start) ** (i / steps) for i in range(steps)], path)
    return finish([path.start + i / steps * (path.last - path.start) for i in range(steps)], path)
