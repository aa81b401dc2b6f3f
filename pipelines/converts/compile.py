"""compile: the repeated blocks of a network through torch.compile, each kind once, for all sizes.

Paper: https://docs.pytorch.org/tutorials/recipes/regional_compilation.html
Shapes: any network with the site 'blocks', or a UNet's residual and transformer blocks
Units and ranges: backend inductor, ahead, aot_eager or eager; sizes any or seen
Cost: seconds per kind of block at its first call (kept on disk for the next process), and once more per kind at the
    first call under a patch of the attention. tuned takes minutes more, and gains some percent on a GPU. ahead: minutes
    once, then a second or so to open, and no tracing
Neutral: backend = eager (traced, and run by torch as before)
Errors: ValueError for an unknown backend, or where what it needs (a C++ compiler on processors, Triton on CUDA) is
    missing, or nothing was compiled ahead; BadInput for code that others could have written; NoSite for a network
    without repeated blocks
Differs: only blocks are compiled, so a network of many layers compiles as fast as one of few. Patches act outside of
    compiled code: a layer that one answers leaves it for that call; with ahead the whole block does, as do blocks whose
    weights were swapped, or that are called with other arguments than they were compiled for
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

from ...kernels.offload import offloaded
from ._ahead import Store
from ._compiled import put
from ._repeated import regions

TUNED: dict[str, str | int | bool | Callable[..., Any]] = {
    "max_autotune": True,
    "coordinate_descent_tuning": True,
    "coordinate_descent_check_all_directions": True,
    "conv_1x1_as_mm": True,
    "epilogue_fusion": False,
}
"""What diffusers recommends for pictures: https://huggingface.co/docs/diffusers/optimization/fp16"""
BACKENDS = ("inductor", "ahead", "aot_eager", "eager")
SIZES = {"any": True, "seen": None}
"""What the compiler is told of them."""
COMPILERS = ("g++", "clang++", "c++")


@dataclass(frozen=True)
class Compile:
    """Compiles what a network repeats."""

    slot: ClassVar[str] = "compile"

    backend: str = "inductor"
    """What makes the code: inductor, or ahead, which opens what `sfumato models compile MODEL` made; aot_eager and
    eager only trace (to find out what goes wrong)."""
    sizes: str = "any"
    """any: code for all sizes of pictures and batches. seen: faster code for the first size alone, then for all."""
    tuned: bool = False
    """Whether inductor measures many forms of each product and takes the fastest."""
    store: Store | None = None
    """Where `ahead` finds it; the command line takes the user's own cache folder, and nothing else."""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")
        if self.sizes not in SIZES:
            raise ValueError(f"sizes must be one of {', '.join(SIZES)}, got {self.sizes!r}")

    def __call__(self, net: nn.Module) -> nn.Module:
        if self.backend == "ahead":
            return self._opened(net)
        why = _lacking(next(net.parameters()).device) if self.backend == "inductor" else None
        if why is not None:
            raise ValueError(f"compile: {why}")
        made: dict[Any, Callable[..., Any]] = {}
        for block in regions(net):
            kind = _kind(block)
            if kind not in made:
                made[kind] = torch.compile(
                    _own(type(block).forward),
                    dynamic=SIZES[self.sizes],
                    backend=self.backend,
                    options=TUNED if self.tuned and self.backend == "inductor" else None,
                )
            put(block, made[kind])
        return net

    def _opened(self, net: nn.Module) -> nn.Module:
        if self.store is None:
            raise ValueError("compile: backend ahead needs a store; give Store(FOLDER)")
        if next(net.parameters()).device.type != "cpu" or offloaded(net) is not None:
            raise ValueError("compile: backend ahead is for processors and weights in memory; take inductor")
        found = [(block, self.store.open(net, block)) for block in regions(net)]
        if not any(code for _, code in found):
            raise ValueError(
                "compile: nothing was compiled ahead for this network on this machine; "
                "run `sfumato models compile MODEL`"
            )
        for block, code in found:
            if code is not None:
                put(block, code)
        return net


def _kind(block: nn.Module) -> Any:
    """What tells graphs apart: the class, and names and shapes of the weights."""
    weights = (*block.named_parameters(), *block.named_buffers())
    return type(block), tuple((name, tuple(weight.shape)) for name, weight in weights)


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
