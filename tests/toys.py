"""Toys whose truth is known: the exact denoiser of a Gaussian, and a small network with every named site."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from sfumato.pipelines.paths import flow, ve, vp_from_config
from sfumato.pipelines.protocols import Cond, Conds, Path, Pred
from torch import Tensor, nn
from torch.nn import functional as F

torch.set_num_threads(1)

SD = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
"""Stable Diffusion's noise."""


def paths() -> dict[str, Path]:
    return {
        "vp": vp_from_config(SD),
        "vp0": vp_from_config(SD | {"rescale_betas_zero_snr": True}),
        "flow": flow(),
        "flow3": flow(3.0),
        "ve": ve(0.02, 50.0),
    }


def gaussian(path: Path, mu: Tensor | float, s: float) -> Callable[[Tensor, float], Pred]:
    """The exact prediction for data N(mu, s^2 I): E[x0 | x_t] and the eps that goes with it."""

    def predict(x: Tensor, t: float) -> Pred:
        a, b = path.alpha(t), path.sigma(t)
        spread = a * a * s * s + b * b
        off = x - a * mu
        return Pred(mu + a * s * s / spread * off, b / spread * off)

    return predict


def consistent(path: Path, mu: Tensor | float, s: float) -> Callable[[Tensor, float], Pred]:
    """What a perfect consistency model says of the same data: x0 is the end of the ODE through x."""

    def predict(x: Tensor, t: float) -> Pred:
        a, b = path.alpha(t), path.sigma(t)
        x0 = mu + s / math.hypot(a * s, b) * (x - a * mu)
        return Pred(x0, (x - a * x0) / b)

    return predict


def exact(path: Path, mu: Tensor | float, s: float, x: Tensor, t: float, u: float) -> Tensor:
    """The solution at u of the probability-flow ODE through x at t, for data N(mu, s^2 I)."""
    (a, b), (c, d) = (path.alpha(t), path.sigma(t)), (path.alpha(u), path.sigma(u))
    return c * mu + math.hypot(c * s, d) / math.hypot(a * s, b) * (x - a * mu)


class GaussianDenoiser:
    """A denoiser whose conditions are means: each cond's embeds["mu"], data N(mu, s^2 I). Records the keys it saw."""

    def __init__(self, path: Path, s: float = 0.5) -> None:
        self.path = path
        self.s = s
        self.net: nn.Module = nn.Identity()
        self.keys: list[tuple[str, ...]] = []

    def __call__(self, x: Tensor, t: float, *conds: Cond) -> list[Pred]:
        self.keys.append(tuple(c.key for c in conds))
        return [gaussian(self.path, c.embeds["mu"].to(x), self.s)(x, t) for c in conds]


def means(pos: float | Tensor = 1.0, neg: float | Tensor | None = -0.5) -> Conds:
    """Conditions for the GaussianDenoiser."""
    return Conds(
        Cond("pos", {"mu": torch.as_tensor(pos)}),
        None if neg is None else Cond("neg", {"mu": torch.as_tensor(neg)}),
    )


class ToyNet(nn.Module):
    """16 features, 4 blocks of attention and MLP over tokens, x [B,C,...]; sites: attention, block, rest, run."""

    def __init__(self, channels: int = 4, features: int = 16, blocks: int = 4, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.inward = nn.Linear(channels, features)
            self.times = nn.Linear(2, features)
            self.qkv = nn.ModuleList(nn.Linear(features, 3 * features) for _ in range(blocks))
            self.mlp = nn.ModuleList(nn.Linear(features, features) for _ in range(blocks))
            self.outward = nn.Linear(features, channels)
        self.requires_grad_(False)

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    def block(self, layer: int, h: Tensor, key: str) -> Tensor:
        q, k, v = self.qkv[layer](h).chunk(3, dim=-1)
        h = h + self.attention(layer, q, k, v)
        return h + torch.tanh(self.mlp[layer](h))

    def rest(self, h: Tensor, key: str) -> Tensor:
        for layer in range(1, len(self.qkv)):
            h = self.block(layer, h, key)
        return h

    def run(self, h: Tensor, key: str) -> Tensor:
        return self.rest(self.block(0, h, key), key)

    def forward(self, x: Tensor, noise_level: float, bias: Tensor, key: str) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        clock = torch.tensor([math.sin(noise_level), math.cos(3 * noise_level)]).to(x)
        h = self.inward(tokens) + self.times(clock) + bias
        return self.outward(self.run(h, key)).transpose(1, 2).reshape(x.shape)


class ToyDenoiser:
    """The ToyNet as a denoiser on any path, finite everywhere. Conditions are embeds["bias"] [16] or scalars."""

    def __init__(self, path: Path, net: ToyNet | None = None) -> None:
        self.path = path
        self.net: nn.Module = net or ToyNet()
        self.keys: list[tuple[str, ...]] = []

    def __call__(self, x: Tensor, t: float, *conds: Cond) -> list[Pred]:
        self.keys.append(tuple(c.key for c in conds))
        c = math.hypot(self.path.alpha(t), self.path.sigma(t))
        a, s = self.path.alpha(t) / c, self.path.sigma(t) / c
        y = x / c
        answers = [self.net(y, math.atan2(s, a), cond.embeds["bias"].to(x), cond.key) for cond in conds]
        return [Pred(a * y - s * v, s * y + a * v) for v in answers]


def biases(pos: float = 0.3, neg: float | None = -0.2) -> Conds:
    """Conditions for the ToyDenoiser."""
    return Conds(
        Cond("pos", {"bias": torch.tensor(pos)}),
        None if neg is None else Cond("neg", {"bias": torch.tensor(neg)}),
    )
