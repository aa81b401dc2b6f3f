"""Whether Triton's kernels can run here, said without importing Triton."""

from __future__ import annotations

import importlib.util
import logging
from functools import cache

import torch

LOG = logging.getLogger(__name__)


@cache
def lacking() -> str | None:
    """Half a sentence; None where they run. With a CUDA device but no Triton it is said once what that costs."""
    if not torch.cuda.is_available():
        return "needs a CUDA device, and torch sees none"
    if importlib.util.find_spec("triton") is None:
        LOG.warning(
            "Triton is not installed (pip install 'sfumato[gpu]'): packed weights are unpacked before each product, "
            "and sparse attention gathers its tiles"
        )
        return "needs the package triton, which is not installed (pip install 'sfumato[gpu]')"
    return None
