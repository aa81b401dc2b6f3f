"""none: the positive condition alone, no guidance.

Paper: none, because nothing is added to the network's own prediction
Shapes: x any shape
Units and ranges: no settings
Cost: no extra network evaluations: 1 condition per call
Neutral: always
Errors: none
Differs: nothing
Tasks: image, video, 3d
"""

from __future__ import annotations

from torch import Tensor

from ..protocols import Conds, Denoiser, Pred, Predict


def none(denoise: Denoiser, conds: Conds) -> Predict:
    """Predict under conds.pos."""

    def predict(x: Tensor, t: float) -> Pred:
        return denoise(x, t, conds.pos)[0]

    return predict
