"""The optional `reuse.json` beside model_index.json: what each way of reusing steps costs and saves on this model.

Loss is the root mean square of the change of the final latents, as a share of that of the latents themselves; time is
the share of the full run's sampling time. Both are medians over prompts, measured by the recipe `reuse`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import BadWeights
from .weights import read_json

CURVE = "reuse.json"
MOST = 1000
"""Points of a curve."""


@dataclass(frozen=True)
class Point:
    technique: str
    """With its settings, as `deepcache:interval=3`; several have ` + ` between them."""
    loss: float
    """0 and up; 0 is the full run's picture."""
    time: float
    """Above 0; 1 is the full run's."""


@dataclass(frozen=True)
class ReuseCurve:
    steps: int
    """Of the runs measured. With more steps, less changes from one to the next."""
    points: tuple[Point, ...]

    def pick(self, most: float) -> Point | None:
        """The fastest point that loses no more than `most`; None if nothing is gained by any."""
        fit = [point for point in self.points if point.loss <= most and point.time < 1]
        return min(fit, key=lambda point: (point.time, point.loss), default=None)

    def write(self, folder: Path) -> Path:
        path = folder / CURVE
        part = folder / f"{CURVE}.part"
        part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        part.replace(path)
        return path


def read_curve(folder: Path) -> ReuseCurve | None:
    """The curve of a model, checked; None if nobody has measured it."""
    file = folder / CURVE
    if not file.is_file():
        return None
    found = read_json(file)
    if set(found) != {"steps", "points"} or type(found["steps"]) is not int or found["steps"] < 1:
        raise BadWeights(f"{file}: needs steps, a whole number above 0, and points, and nothing else")
    points = found["points"]
    if not isinstance(points, list) or not 0 < len(points) <= MOST:
        raise BadWeights(f"{file}: points must be a list of 1..{MOST}")
    return ReuseCurve(found["steps"], tuple(_point(file, value) for value in points))


def _point(file: Path, value: Any) -> Point:
    if not isinstance(value, dict) or set(value) != {"technique", "loss", "time"}:
        raise BadWeights(f"{file}: a point needs technique, loss and time, and nothing else")
    technique, loss, time = value["technique"], value["loss"], value["time"]
    if not isinstance(technique, str) or not _is_share(loss) or not _is_share(time) or time == 0:
        raise BadWeights(
            f"{file}: the point {str(value)[:80]} needs a name, a loss of 0 or more, a time above 0"
        )
    return Point(technique, float(loss), float(time))


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0
