"""LoHa and LoKr as plain low-rank factors. Both are exact: a product of products has factors of its own.

LoHa (arXiv:2108.06098): dW = (A1 B1) * (A2 B2), entry by entry, is [A1 x A2] [B1 x B2] with row- and column-wise
Kronecker products, of rank r^2. LoKr (arXiv:2309.14859): dW = W1 (x) (A2 B2) is (W1 (x) A2) (I (x) B2). Where the
factors would be larger than dW itself, dW and an identity stand for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import BadWeights

HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
KRONECKER = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")


class Factors(NamedTuple):
    """dW = up @ down: down [r, in], up [out, r]."""

    down: Tensor
    up: Tensor


def as_lora(state: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The same adapter with LoRA factors in place of the others', their alpha multiplied in."""
    found: dict[str, Tensor] = {}
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        module, _, role = name.rpartition(".")
        if role in (*HADAMARD, *KRONECKER):
            modules.setdefault(module, {})[role] = tensor.float()
        else:
            found[name] = tensor
    for module, held in modules.items():
        try:
            factors, rank = _hadamard(held) if "hada_w1_a" in held else _kronecker(held)
        except (KeyError, RuntimeError, IndexError) as error:
            raise BadWeights(
                f"{file}: {module} holds {', '.join(sorted(held))}, which make no whole adapter; download it again"
            ) from error
        alpha = found.pop(f"{module}.alpha", None)
        scale = 1.0 if alpha is None or rank is None else float(alpha) / rank
        ends = ("lora_A", "lora_B") if "." in module else ("lora_down", "lora_up")
        found[f"{module}.{ends[0]}.weight"] = factors.down
        found[f"{module}.{ends[1]}.weight"] = factors.up * scale
        if "." not in module:  # trainers' names: readers of theirs expect an alpha, this one changes nothing
            found[f"{module}.alpha"] = torch.tensor(float(len(factors.down)))
    return found


def _hadamard(held: Mapping[str, Tensor]) -> tuple[Factors, int]:
    a1, b1, a2, b2 = (held[name].flatten(1) for name in HADAMARD)
    down = torch.einsum("ri,si->rsi", b1, b2).flatten(0, 1)
    up = torch.einsum("or,os->ors", a1, a2).flatten(1)
    return _smaller(Factors(down, up), lambda: (a1 @ b1) * (a2 @ b2)), len(b1)


def _kronecker(held: Mapping[str, Tensor]) -> tuple[Factors, int | None]:
    """The rank is None, and alpha without effect, where no factor was split."""
    w1 = held["lokr_w1"] if "lokr_w1" in held else held["lokr_w1_a"] @ held["lokr_w1_b"]
    if "lokr_w2" in held:
        w2 = held["lokr_w2"].flatten(1)
        rank = len(held["lokr_w1_b"]) if "lokr_w1_b" in held else None
        dense = torch.kron(w1, w2)
        return Factors(torch.eye(dense.shape[1]), dense), rank
    a2, b2 = held["lokr_w2_a"], held["lokr_w2_b"].flatten(1)
    factors = Factors(torch.kron(torch.eye(w1.shape[1]), b2), torch.kron(w1, a2))
    return _smaller(factors, lambda: torch.kron(w1, a2 @ b2)), len(b2)


def _smaller(factors: Factors, dense: Callable[[], Tensor]) -> Factors:
    rank, width = factors.down.shape
    return factors if rank <= width else Factors(torch.eye(width), dense())
