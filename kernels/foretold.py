"""What a kernel outside torch would take, told where tensors lie on torch's device `meta` and have no numbers.

Such a kernel then gives a tensor of the right shape, computes nothing, and tells this; `pipelines.rehearsal` listens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Literal

Kind = Literal["bytewise", "winograd", "dense"]
"""Products of 8-bit numbers, convolutions by Winograd, and products of floats."""
Listener = Callable[[Kind, float, int], None]

LISTENER: ContextVar[Listener | None] = ContextVar("LISTENER", default=None)
"""For as long as someone rehearses, and no longer."""


def tell(kind: Kind, work: float, beside: int) -> None:
    """Multiplications and additions of a call (those of the plain layer), and bytes between its stages."""
    listener = LISTENER.get()
    if listener is not None:
        listener(kind, work, beside)
