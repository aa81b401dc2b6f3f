"""Whether Triton's kernels can run here, said without importing Triton."""

from __future__ import annotations

import importlib.util
import logging

import torch

LOG = logging.getLogger(__name__)
INSTALLED = importlib.util.find_spec("triton") is not None
_told: set[str] = set()


def lacking() -> str | None:
    """Half a sentence; None where they run. With a CUDA device but no Triton it is said once what that costs.

    Compiled code asks too, so nothing but plain facts is looked at.
    """
    if not torch.cuda.is_available():
        return "needs a CUDA device, and torch sees none"
    if INSTALLED:
        return None
    if not torch.compiler.is_compiling():
        _tell(
            "Triton is not installed (pip install 'sfumato[gpu]'): packed weights are unpacked before each product, "
            "and sparse attention gathers its tiles"
        )
    return "needs the package triton, which is not installed (pip install 'sfumato[gpu]')"


def _tell(text: str) -> None:
    if text not in _told:
        _told.add(text)
        LOG.warning(text)
