"""A pipeline: a denoiser with techniques around it, in the fixed order patch, guidance, wraps, sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from .errors import NoSite
from .guidance.cfg import Cfg
from .loop import Control, Polled, run
from .noise import SeededNoise
from .protocols import Conds, Denoiser, Guidance, Patch, Predict, Sampler, Wrap
from .samplers.ddim import Ddim


@runtime_checkable
class Slotted(Protocol):
    """A technique that needs something for itself alone, as `attention` or `step cache`."""

    slot: ClassVar[str]


@dataclass(frozen=True)
class Pipeline:
    """The only place where shapes of technique meet. Wraps: the first is innermost."""

    denoise: Denoiser
    sampler: Sampler = field(default_factory=Ddim)
    guidance: Guidance = field(default_factory=Cfg)
    patches: tuple[Patch, ...] = ()
    wraps: tuple[Wrap, ...] = ()

    def __post_init__(self) -> None:
        taken: dict[str, str] = {}
        for technique in (*self.patches, self.guidance, *self.wraps, self.sampler):
            if not isinstance(technique, Slotted):
                continue
            name = type(technique).__name__
            if technique.slot in taken:
                raise ValueError(
                    f"{taken[technique.slot]} and {name} both need the slot {technique.slot!r}: drop one"
                )
            taken[technique.slot] = name

    @contextmanager
    def predictor(self, conds: Conds, cancelled: Callable[[], bool] | None = None) -> Iterator[Predict]:
        """The guided, wrapped prediction while the patches are in place; score distillation uses it directly."""
        with ExitStack() as stack:
            for patch in self.patches:
                try:
                    stack.enter_context(patch(self.denoise.net))
                except NoSite as error:
                    raise NoSite(f"{type(patch).__name__}: {error}; leave it out") from error
            denoise: Denoiser = self.denoise if cancelled is None else Polled(self.denoise, cancelled)
            predict = self.guidance(denoise, conds)
            for wrap in self.wraps:
                predict = wrap(predict, self.denoise.path)
            yield predict

    def __call__(
        self,
        x: Tensor,
        conds: Conds,
        ts: Sequence[float],
        *,
        noise: SeededNoise | None = None,
        control: Control | None = None,
    ) -> Tensor:
        """Take x from time ts[0] to ts[-1] under the conditions."""
        control = control or Control()
        with self.predictor(conds, control.cancelled) as predict:
            return run(self.sampler, predict, x, ts, self.denoise.path, noise=noise, control=control)
