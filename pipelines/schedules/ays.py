"""ays: Align Your Steps, noise levels optimised for a model.

Paper: arXiv:2404.14507, the published 10-step tables
Shapes: steps + 1 falling floats
Units and ranges: model, one of sd15, sdxl, svd
Cost: no network evaluations
Neutral: none: a schedule replaces another
Errors: ValueError for an unknown model, or steps below 1
Differs: other numbers of steps by interpolating log sigma, as the authors recommend; the first value becomes
    path.start and the last path.end; on flow paths the tables' sigma / alpha is used, for which none was fitted
Tasks: image, video, 3d
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..protocols import Path
from ._common import check_steps, finish

_LEVELS = {  # sigma / alpha
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


@dataclass(frozen=True)
class Ays:
    """The model's table, interpolated to the number of steps."""

    model: Literal["sd15", "sdxl", "svd"] = "sd15"
    """Which table."""

    def __post_init__(self) -> None:
        if self.model not in _LEVELS:
            raise ValueError(f"model must be one of {', '.join(_LEVELS)}, got {self.model!r}")

    def __call__(self, steps: int, path: Path) -> list[float]:
        check_steps(steps)
        table = [math.log(s) for s in _LEVELS[self.model]]
        times = [path.start]
        for i in range(1, steps):
            place = i / steps * (len(table) - 1)
            k = int(place)
            log_s = table[k] + (place - k) * (table[k + 1] - table[k])
            times.append(path.time_of(-log_s))
        return finish(times, path)
