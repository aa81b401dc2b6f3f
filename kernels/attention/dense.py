"""Attention as it is written: the reference of every other form, and torch's own kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .call import HALVES, Backend, Call, for_halves, nothing, on_cuda


def reference(call: Call) -> Tensor:
    """softmax(scale q k^T + bias) v with sums in float32 or wider; holds all scores at once."""
    q, k, v = (t.float() if t.dtype in HALVES else t for t in call[:3])
    scores = call.factor * q @ k.mT
    if call.bias is not None:
        hidden = call.bias.dtype == torch.bool
        scores = scores.masked_fill(~call.bias, -torch.inf) if hidden else scores + call.bias
    return (scores.softmax(3) @ v).to(call.q.dtype)


def sdpa(call: Call) -> Tensor:
    return F.scaled_dot_product_attention(call.q, call.k, call.v, attn_mask=_fitting(call), scale=call.scale)


def cudnn(call: Call) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return sdpa(call)


def _fitting(call: Call) -> Tensor | None:
    bias = call.bias
    if bias is None:
        return None
    return torch.atleast_2d(bias if bias.dtype == torch.bool else bias.to(call.q.dtype))


def anything(call: Call) -> str | None:
    return None


def _narrow(call: Call) -> str | None:
    refused = for_halves(call)
    if refused is None and (call.q.shape[3] > 128 or call.q.shape[3] % 8):
        return f"needs up to 128 features, in eights, and there are {call.q.shape[3]}"
    return refused


def _with_cudnn() -> str | None:
    if lacking := on_cuda():
        return lacking
    return None if torch.backends.cudnn.is_available() else "needs cuDNN, which this torch is without"


DENSE = Backend("dense", nothing, anything, reference, chosen=False, any_width=True)
SDPA = Backend("sdpa", nothing, anything, sdpa, any_width=True)
CUDNN = Backend("cudnn", _with_cudnn, _narrow, cudnn)
