"""What the levels of the dial `optimize` stand for: one table, and what of it a machine and a request allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

HALVES = ("bfloat16", "float16")


class Facts(NamedTuple):
    """What the choice depends on. A text is half a sentence about what is lacking; None where nothing is."""

    device: str
    """cpu, cuda, mps or xpu."""
    dtype: str
    capability: tuple[int, int] = (0, 0)
    """Of an NVIDIA GPU; (0, 0) for others."""
    triton: str | None = None
    native: str | None = None
    """About our kernels in C++."""
    int8: str | None = None
    """About torch's 8-bit kernels for processors."""
    loras: bool = False
    """Whether LoRAs are asked for."""
    projections: bool = False
    """Whether a technique looks for the single projections of attention layers."""
    offload: bool = False
    """Whether weights come and go."""


Need = Callable[[Facts], str | None]
"""Why not, in half a sentence; None if it may be."""


class Part(NamedTuple):
    """A technique, and what it needs."""

    technique: str
    needs: tuple[Need, ...] = ()

    def lacking(self, facts: Facts) -> str | None:
        return next((why for need in self.needs if (why := need(facts)) is not None), None)


class Choice(NamedTuple):
    techniques: tuple[str, ...]
    notes: tuple[str, ...]


def capable(major: int, minor: int, what: str) -> Need:
    def need(facts: Facts) -> str | None:
        if facts.capability >= (major, minor):
            return None
        here = "{}.{}".format(*facts.capability) if facts.capability > (0, 0) else "none of NVIDIA's"
        return f"{what} begin at compute capability {major}.{minor}, and this GPU has {here}"

    return need


def _triton(facts: Facts) -> str | None:
    return facts.triton


def _native(facts: Facts) -> str | None:
    return facts.native


def _int8(facts: Facts) -> str | None:
    return facts.int8


def _halves(facts: Facts) -> str | None:
    if facts.dtype in HALVES:
        return None
    return f"its products on a GPU are for {' and '.join(HALVES)}, and the network is in {facts.dtype}"


def _no_loras(facts: Facts) -> str | None:
    return "LoRAs act on the weights that it changes" if facts.loras else None


def _no_hooks(facts: Facts) -> str | None:
    return "LoRAs come and go, which compiled blocks don't see" if facts.loras else None


def _projections(facts: Facts) -> str | None:
    return "another technique looks for the single projections" if facts.projections else None


def _resident(facts: Facts) -> str | None:
    return "weights come and go (offload), which compiled blocks don't see" if facts.offload else None


WINOGRAD = (Part("winograd", (_no_loras,)),)
INT8 = (Part("int8", (_no_loras, _int8)),)
PRODUCTS = (Part("products", (_no_loras, _projections, _native)),)
ATTENTION = (Part("attention:backend=native", (_native,)),)
INT8_ATTENTION = (Part("int8-attention", (_native,)),)
LAYOUT = (Part("channels-last"),)
PROJECTIONS = (Part("fused-qkv", (_no_loras, _projections)),)
COMPILE = (Part("compile:sizes=seen", (_triton, _no_hooks, _resident)), Part("attention"))
"""Torch takes the best exact attention of its own within compiled blocks; without them the fastest is measured."""
EIGHT_BITS = (
    Part("w8a8", (_no_loras, _halves, capable(8, 9, "products in fp8"))),
    Part("w8a8:kind=int8", (_no_loras, _halves, capable(8, 0, "products in int8"), _triton)),
)
FOUR_BITS = (
    Part("svdquant:inputs=8", (_halves, capable(8, 0, "products in int8"), _triton)),
    Part("weight-only"),
)

LEVELS: Mapping[str, Mapping[str, tuple[tuple[Part, ...], ...]]] = {
    "cpu": {
        "exact": (PRODUCTS, WINOGRAD, ATTENTION),
        "balanced": (INT8, WINOGRAD, INT8_ATTENTION),
        "fast": (INT8, WINOGRAD, INT8_ATTENTION),
        "small": ((Part("weight-only"),),),
    },
    "cuda": {
        "exact": (LAYOUT, PROJECTIONS, COMPILE),
        "balanced": (LAYOUT, PROJECTIONS, EIGHT_BITS, COMPILE),
        "fast": (LAYOUT, PROJECTIONS, EIGHT_BITS, COMPILE),
        "small": (LAYOUT, PROJECTIONS, FOUR_BITS, COMPILE),
    },
}
"""Device -> level -> in the order in which they are done: techniques, of which the first that may be is taken.

`fast` also reuses steps, which is decided where the model is known.
"""
REUSING = "fast"


def choice(level: str, facts: Facts) -> Choice:
    """The techniques of a level, and what is left out and why."""
    nothing = "nothing but the reuse of steps" if level == REUSING else "nothing"
    if facts.device not in LEVELS:
        here = " and ".join(LEVELS)
        return Choice((), (f"{level} has {nothing} for {facts.device} yet; it is for {here}",))
    if facts.device == "cpu" and facts.dtype != "float32":
        where = "it is for float32 on a processor, and for GPUs"
        return Choice((), (f"{level} has {nothing} for {facts.dtype} on cpu yet; {where}",))
    taken: list[str] = []
    notes: dict[str, None] = {}
    for parts in LEVELS[facts.device][level]:
        passed: list[tuple[str, str]] = []
        for part in parts:
            why = part.lacking(facts)
            if why is None:
                taken.append(part.technique)
                notes |= {f"{part.technique} instead of {name}: {told}": None for name, told in passed}
                break
            passed.append((part.technique, why))
        else:
            notes |= {f"{name.partition(':')[0]} is left out: {told}": None for name, told in passed}
    return Choice(tuple(taken), tuple(notes))
