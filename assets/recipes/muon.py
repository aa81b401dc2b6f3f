"""Muon with AdamW for everything that is not a hidden matrix.

Muon (Jordan 2024; arXiv:2502.16982, algorithm 2) takes the momentum's nearest orthogonal matrix by five Newton-Schulz
steps. A convolution's kernel is a matrix [O, I H W]. Matrices of one shape go through one batched product, in bfloat16
where its products run natively (as the authors do), else in float32. The update is scaled by 0.2 sqrt(max(m, n)), so
that one learning rate serves both kinds of parameter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .fitting import has_bfloat16

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """The batch of matrices [K,M,N] with singular values pushed to about 1."""
    a, b, c = COEFFICIENTS
    tall = g.shape[1] > g.shape[2]
    x = g.transpose(1, 2) if tall else g
    x = x / (x.flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """Parameter groups marked `hidden=True` hold matrices and get Muon; the others get AdamW.

    lr: learning rate of both; momentum: Muon's; betas: AdamW's; weight_decay: decoupled, matrices only.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(
            groups, {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            (self._muon if group["hidden"] else self._adamw)(group)

    def _muon(self, group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for p in group["params"]:
            if p.grad is not None:
                shapes[p.shape].append(p)
        for shape, params in shapes.items():
            for p in params:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - momentum)
            steps = [p.grad.lerp(self.state[p]["momentum"], momentum).flatten(1) for p in params]
            together = torch.stack(steps)
            if has_bfloat16(together.device):
                together = together.bfloat16()
            update = orthogonalise(together) * (0.2 * max(steps[0].shape) ** 0.5)
            for p, u in zip(params, update, strict=True):
                p.mul_(1 - lr * group["weight_decay"]).add_(u.view(shape), alpha=-lr)

    def _adamw(self, group: dict[str, Any]) -> None:
        b1, b2 = group["betas"]
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
            state["step"] += 1
            state["mean"].lerp_(p.grad, 1 - b1)
            state["square"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
            size = (state["square"] / (1 - b2 ** state["step"])).sqrt_().add_(1e-8)
            p.addcdiv_(state["mean"], size, value=-group["lr"] / (1 - b1 ** state["step"]))


def muon_groups(module: nn.Module, *, plain: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Split a module's parameters: matrices and kernels [O,I,H,W] whose name holds none of `plain` are hidden."""
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in module.named_parameters():
        if p.requires_grad:
            (hidden if p.ndim in (2, 4) and not any(word in name for word in plain) else rest).append(p)
    return [{"params": hidden, "hidden": True}, {"params": rest, "hidden": False}]
