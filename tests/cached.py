"""What tests of caches share: runs on tiny networks, evaluations one by one, and how often a block was computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from sfumato.pipelines.blocks import stacks
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.paths import begin
from sfumato.pipelines.pipeline import Pipeline
from sfumato.pipelines.protocols import Cond, Conds, Denoiser, Guidance, Patch, Pred, Predict, Sampler
from sfumato.pipelines.samplers.ddim import Ddim
from tiny_nets import Tiny, few_steps
from torch import Tensor, nn


def run(
    tiny: Tiny,
    *patches: Patch,
    seed: int = 0,
    count: int = 1,
    guidance: Guidance | None = None,
    sampler: Sampler | None = None,
    denoise: Denoiser | None = None,
) -> Tensor:
    """Seven times, six steps, guided."""
    pipeline = Pipeline(denoise or tiny.denoise, sampler or Ddim(), guidance or Cfg(3.0), patches)
    x = begin(tiny.denoise.path, tiny.noise(seed, count), few_steps(tiny.denoise.path.name)[0])
    return pipeline(x, tiny.conds, few_steps(tiny.denoise.path.name))


class OneByOne:
    """The same denoiser, whose conditions never share a network call."""

    def __init__(self, denoise: Denoiser) -> None:
        self.denoise, self.path, self.net = denoise, denoise.path, denoise.net

    def __call__(self, x: Tensor, t: float, *conds: Cond) -> list[Pred]:
        return [self.denoise(x, t, cond)[0] for cond in conds]


def positive(denoise: Denoiser, conds: Conds) -> Predict:
    """The positive condition alone."""
    return lambda x, t: denoise(x, t, conds.pos)[0]


def positive_beside_the_other(denoise: Denoiser, conds: Conds) -> Predict:
    """The positive prediction, the negative one being computed first and thrown away."""
    assert conds.neg is not None
    return lambda x, t: denoise(x, t, conds.neg, conds.pos)[1]  # type: ignore[arg-type]


@contextmanager
def counted(net: nn.Module) -> Iterator[Counter[str]]:
    """How often each block was computed: a block that is passed by does not come to its first linear layer."""
    seen: Counter[str] = Counter()
    handles = []
    for stack in stacks(net):
        for block in stack:
            inner = next(m for m in block.module.modules() if isinstance(m, nn.Linear))

            def note(module: nn.Module, args: object, out: object, name: str = block.name) -> None:
                seen[name] += 1

            handles.append(inner.register_forward_hook(note))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def broken(net: nn.Module) -> Iterator[None]:
    """The network fails in the midst of its evaluation, at its last block."""

    def fail(module: nn.Module, args: object) -> None:
        raise ZeroDivisionError

    handle = stacks(net)[-1][-1].module.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()
