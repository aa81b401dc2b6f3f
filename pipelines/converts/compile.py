"""compile: the repeated blocks of a network through torch.compile, each kind once, for all sizes.

Paper: https://docs.pytorch.org/tutorials/recipes/regional_compilation.html
Shapes: any network with the site 'blocks', or a UNet's residual and transformer blocks
Units and ranges: backend inductor, aot_eager or eager
Cost: seconds per kind of block at its first call (kept on disk for the next process), and once more per kind at the
    first call under a patch of the attention
Neutral: backend = eager (traced, and run by torch as before)
Errors: ValueError for an unknown backend, or where what it needs (a C++ compiler on processors, Triton on CUDA) is
    missing; NoSite for a network without repeated blocks
Differs: only blocks are compiled, so a network of many layers compiles as fast as one of few. Patches act outside of
    compiled code: a layer that one answers leaves it for that call
Tasks: image, video
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..blocks import stacks
from ..errors import NoSite

BACKENDS = ("inductor", "aot_eager", "eager")
COMPILERS = ("g++", "clang++", "c++")
IN_UNETS = (
    *("BasicTransformerBlock", "TemporalBasicTransformerBlock", "ResnetBlock2D", "SpatioTemporalResBlock"),
    *("ResnetBlockCondNorm2D", "AnimateDiffTransformer3D"),
)
"""Classes of blocks that a UNet repeats."""


@dataclass(frozen=True)
class Compile:
    """Compiles what a network repeats."""

    slot: ClassVar[str] = "compile"

    backend: str = "inductor"
    """What makes the code: inductor, or aot_eager and eager, which only trace (to find out what goes wrong)."""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")

    def __call__(self, net: nn.Module) -> nn.Module:
        why = _lacking(next(net.parameters()).device) if self.backend == "inductor" else None
        if why is not None:
            raise ValueError(f"compile: {why}")
        made: dict[Any, Callable[..., Any]] = {}
        for block in _regions(net):
            kind = _kind(block)
            if kind not in made:
                made[kind] = torch.compile(_own(type(block).forward), dynamic=True, backend=self.backend)
            # the class's function, not the method: blocks of a kind share one graph
            vars(block)["forward"] = functools.partial(made[kind], block)
        return net


def _regions(net: nn.Module) -> list[nn.Module]:
    try:
        return [block.module for stack in stacks(net) for block in stack]
    except NoSite:
        found = [module for module in net.modules() if type(module).__name__ in IN_UNETS]
        if not found:
            raise
        return found


def _kind(block: nn.Module) -> Any:
    """What tells graphs apart: the class, and names and shapes of the weights."""
    return type(block), tuple((name, tuple(weight.shape)) for name, weight in block.named_parameters())


def _own(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a code object of its own: the compiler keeps eight graphs per code object, a UNet has more."""
    if not isinstance(forward, types.FunctionType):
        return forward
    copy = types.FunctionType(
        forward.__code__.replace(),
        forward.__globals__,
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    copy.__kwdefaults__ = forward.__kwdefaults__
    return functools.update_wrapper(copy, forward)


def _lacking(device: torch.device) -> str | None:
    if device.type == "cuda":
        here = importlib.util.find_spec("triton") is not None
        return (
            None if here else "needs the package triton, which is not installed (pip install 'sfumato[gpu]')"
        )
    if any(shutil.which(name) for name in COMPILERS):
        return None
    return f"needs a C++ compiler ({' or '.join(COMPILERS)}), and none is installed; install one or leave compile out"
