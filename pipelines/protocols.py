"""The few central types. Everything that generates is a denoiser on a path; techniques are plain callables around it.

A path is x_t = alpha(t) x0 + sigma(t) eps. Times `t` are Python floats that fall from noise to data: 1 to 0 on VP and
flow paths, sigma itself on VE. A model family turns its network into a `Denoiser`; nothing above that line knows what
the network predicts, or whether x is an image [B,C,H,W], a clip [B,C,F,H,W], a set of views or a parameter tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn


class Pred(NamedTuple):
    """What one evaluation says about x_t: the clean estimate and the noise estimate, both shaped like x."""

    x0: Tensor
    eps: Tensor


@dataclass(frozen=True)
class Path:
    """A probability path x_t = alpha(t) x0 + sigma(t) eps.

    `time_of(lam)` inverts lam(t) = log(alpha(t) / sigma(t)), the half-log-SNR; `start` is the noisiest time and `end`
    the cleanest (alpha = 1, sigma = 0 unless the family's training says otherwise). `last` is the cleanest time the
    network was trained at: a schedule that cannot reach sigma = 0 by its own formula stops there and jumps to `end`.
    `grid` is the number of discrete training steps N, where step k has t = (k + 1) / N; None on continuous paths.
    """

    name: str
    alpha: Callable[[float], float]
    sigma: Callable[[float], float]
    time_of: Callable[[float], float]
    start: float = 1.0
    end: float = 0.0
    last: float = 1e-3
    grid: int | None = None


@dataclass(frozen=True)
class Cond:
    """What a network is conditioned on. `embeds` maps a family's own names to tensors [B or 1, ...].

    `key` tells one evaluation of a step from another, so that caches never mix branches.
    """

    key: str
    embeds: Mapping[str, Tensor] = field(default_factory=dict)

    def variant(self, tag: str) -> Cond:
        """The same embeds under a key of their own, for an extra evaluation within a step."""
        return Cond(f"{self.key}/{tag}", self.embeds)


class Conds(NamedTuple):
    pos: Cond
    neg: Cond | None = None


class State(NamedTuple):
    """Everything a sampler carries between steps: a value, so it can be saved, resumed and branched.

    `memory` holds tensors shaped like x (newest first) and `times` the path times they belong to.
    """

    x: Tensor
    memory: tuple[Tensor, ...] = ()
    times: tuple[float, ...] = ()


Predict = Callable[[Tensor, float], Pred]
Noise = Callable[[], Tensor]
"""Draws the next standard normal tensor, shaped like x, from the per-image generators."""


class Denoiser(Protocol):
    """A network seen as a denoiser. Several conditions are answered in one batched call where memory allows."""

    path: Path
    net: nn.Module

    def __call__(self, x: Tensor, t: float, *conds: Cond) -> list[Pred]: ...


class Sampler(Protocol):
    """One pure step from time t to the cleaner time u."""

    def __call__(
        self, predict: Predict, state: State, t: float, u: float, path: Path, noise: Noise
    ) -> State: ...


class Schedule(Protocol):
    """`steps` + 1 falling times from path.start to path.end."""

    def __call__(self, steps: int, path: Path) -> list[float]: ...


class Guidance(Protocol):
    def __call__(self, denoise: Denoiser, conds: Conds) -> Predict: ...


class Wrap(Protocol):
    def __call__(self, predict: Predict, path: Path) -> Predict: ...


class Patch(Protocol):
    """A change inside the network for the length of a `with` block, undone on exit without a trace."""

    def __call__(self, net: nn.Module) -> AbstractContextManager[None]: ...


class Convert(Protocol):
    def __call__(self, net: nn.Module) -> nn.Module: ...


class Distill(Protocol):
    """Score distillation: a gradient shaped like the clean latent z."""

    def __call__(self, predict: Predict, path: Path, z: Tensor, t: float, noise: Tensor) -> Tensor: ...


class Encoder(Protocol):
    """Prompts to what a network is conditioned on, [prompts, ...]."""

    def __call__(self, prompts: Sequence[str], *, key: str) -> Cond: ...


class Limits(NamedTuple):
    """What sizes and prompts a model takes. Sizes are pixels."""

    multiple: int
    smallest: int
    largest: int
    tokens: int


class Defaults(NamedTuple):
    """What a request that names only a prompt gets. Names are those of the catalogue."""

    width: int
    height: int
    steps: int
    guidance: float
    sampler: str
    schedule: str


class Model(Protocol):
    """An opened checkpoint of any family: the door between names on disk and the algebra."""

    name: str
    family: str
    denoise: Denoiser
    limits: Limits
    defaults: Defaults
    needs: tuple[str, ...]
    """Names of pictures that a request must bring, as ("image", "mask") for an inpainting network."""
    accepts: tuple[str, ...]
    """Names of pictures that it may bring."""

    def encode(self, prompts: Sequence[str], *, key: str) -> Cond:
        """Prompts (one per image, or one for all) to a condition; those under the key "neg" are what to avoid."""
        ...

    def attach(self, cond: Cond, pictures: Mapping[str, Tensor]) -> Cond:
        """The condition with pictures [1 or B,3,H,W] in 0..1 joined to it (a mask has one channel, 1 = repaint)."""
        ...

    def default_schedule(self, width: int, height: int) -> Schedule:
        """The model's own schedule, which may depend on the picture's size in pixels."""
        ...

    def reads(self, prompt: str) -> str:
        """The prompt without the syntax that this model does not know: weights, where it reads plain language."""
        ...

    def dropped(self, prompt: str) -> str:
        """The tail of the prompt that does not fit `limits.tokens`; empty if all of it does."""
        ...

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        """Shape of one latent, without the batch axis."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images [B,3,H,W] in 0..1."""
        ...

    def encode_image(self, images: Tensor) -> Tensor:
        """Images [B,3,H,W] in 0..1 to latents (the mean of the posterior)."""
        ...

    @property
    def projection(self) -> Callable[[Tensor], Tensor] | None:
        """A cheap preview: clean latents to a small uint8 picture [B,3,...]; None if the checkpoint brings none."""
        ...

    def info(self) -> Mapping[str, Any]:
        """Name, family, revision or tensor hash, dtype, parameter counts: what a result must record."""
        ...
