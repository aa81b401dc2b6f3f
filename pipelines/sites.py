"""Named sites of a network: what a patch may change for the length of a `with` block, and leave as it was."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import NoSite


class Attend:
    """The attention that was there: q, k, v [B,heads,L,D] -> [B,heads,L,D], with its own mask and scale."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings

    @property
    def plain(self) -> bool:
        """Whether every query sees every key, none dropped by chance."""
        hidden = self._settings.get("attn_mask") is not None or self._settings.get("is_causal", False)
        return not hidden and not self._settings.get("dropout_p")

    @property
    def whole(self) -> bool:
        """Whether it is softmax(scale q k + bias) v and nothing else: not causal, none dropped by chance."""
        return not self._settings.get("is_causal", False) and not self._settings.get("dropout_p")

    @property
    def bias(self) -> Tensor | None:
        """Added to q k, or of booleans: True where a query sees a key."""
        bias: Tensor | None = self._settings.get("attn_mask")
        return bias

    @property
    def scale(self) -> float | None:
        """Factor on q k; None is one over the square root of D."""
        scale: float | None = self._settings.get("scale")
        return scale

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, **self._settings)


@dataclass(frozen=True)
class Layer:
    """Which attention is being computed."""

    index: int
    """0-based, in the order of the network's modules."""
    name: str
    """Dotted name of the module."""
    kind: str
    """self, cross (k and v from the condition), or joint (both streams in one sequence)."""


Compute = Callable[[Layer, Tensor, Tensor, Tensor, Attend], Tensor]
"""A replacement: (layer, q, k, v, attend) -> out."""

Change = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Arguments of a call by name -> those to give instead or besides."""

Answer = Callable[[Mapping[str, Any], Callable[[], Any]], Any]
"""(arguments of a call by name, the call itself) -> what is given back."""

_MISSING = object()
_SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


@contextmanager
def swap(owner: object, name: str, value: object) -> Iterator[None]:
    """Let owner.name be `value` inside the block. A method or class attribute is shadowed, then bare."""
    if not hasattr(owner, name):
        raise NoSite(f"{type(owner).__name__} has no site {name!r}")
    registered: Mapping[str, object] = dict(owner._modules) if isinstance(owner, nn.Module) else {}
    if name in registered and not isinstance(value, nn.Module):
        raise ValueError(
            f"site {name!r} of {type(owner).__name__} is a module: swap in a module, or its forward"
        )
    old = registered[name] if name in registered else vars(owner).get(name, _MISSING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if name not in registered:  # a new attribute, or a plain one that a module had taken the place of
            delattr(owner, name)
        if old is not _MISSING:
            setattr(owner, name, old)


@contextmanager
def inputs(net: nn.Module, change: Change) -> Iterator[None]:
    """Let every call of the network go in with the arguments that `change` names. The last patch changes first."""
    forward = net.forward
    named = inspect.signature(forward)

    @functools.wraps(forward)  # a second patch finds the same names
    def answered(*args: Any, **kwargs: Any) -> Any:
        given = named.bind(*args, **kwargs)
        given.arguments.update(change(given.arguments))
        return forward(*given.args, **given.kwargs)

    with swap(net, "forward", answered):
        yield


@contextmanager
def calls(module: nn.Module, answer: Answer) -> Iterator[None]:
    """Let every call of the module be answered by answer(arguments by name, what computes it)."""
    with swap(module, "forward", _uncompiled(by_name(module.forward, answer))):
        yield


def by_name(forward: Callable[..., Any], answer: Answer) -> Callable[..., Any]:
    """The function, its calls answered by answer(arguments by name, what computes it)."""
    named = inspect.signature(forward)

    @functools.wraps(forward)
    def answered(*args: Any, **kwargs: Any) -> Any:
        return answer(named.bind(*args, **kwargs).arguments, lambda: forward(*args, **kwargs))

    return answered


def attention_modules(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """The attention modules of a diffusers network, those with a processor, in order."""
    found = [(name, module) for name, module in net.named_modules() if hasattr(module, "processor")]
    if not found:
        raise NoSite(f"{type(net).__name__} has no site 'attention': no module with an attention processor")
    return found


def attention_layers(net: nn.Module) -> list[Layer]:
    return [Layer(index, name, _kind(module)) for index, (name, module) in enumerate(attention_modules(net))]


@contextmanager
def attention(net: nn.Module, compute: Compute) -> Iterator[None]:
    """Replace the attention of every layer: softmax(q k) v is computed by `compute`, projections stay.

    The layers' processors stay; only their call of `scaled_dot_product_attention` is answered otherwise.
    """
    with ExitStack() as stack:
        for layer in attention_layers(net):
            module = net.get_submodule(layer.name)
            stack.enter_context(swap(module, "forward", _answered(module, layer, compute)))
        yield


@contextmanager
def processors(net: nn.Module, make: Callable[[Layer, Any], Any]) -> Iterator[None]:
    """Replace every layer's processor by make(layer, processor); return the processor itself to leave it."""
    with ExitStack() as stack:
        for layer in attention_layers(net):
            module: Any = net.get_submodule(layer.name)
            stack.enter_context(swap(module, "processor", make(layer, module.processor)))
        yield


def _kind(module: nn.Module) -> str:
    if vars(module).get("added_kv_proj_dim") is not None:
        return "joint"
    return "cross" if vars(module).get("is_cross_attention") else "self"


def _answered(module: nn.Module, layer: Layer, compute: Compute) -> Callable[..., Any]:
    forward = module.forward

    def answered(*args: Any, **kwargs: Any) -> Any:
        with _Answer(layer, compute):
            return forward(*args, **kwargs)

    return _uncompiled(answered)


def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, kept out of compiled code, which would be compiled anew for each patch.

    Without the compiler, whose import takes seconds, nothing can have been compiled.
    """
    if "torch._dynamo" not in sys.modules:
        return function
    kept: Callable[..., Any] = torch.compiler.disable(function)
    return kept


class _Answer(TorchFunctionMode):
    """Hands calls of scaled_dot_product_attention to `compute`, in this thread and block only."""

    def __init__(self, layer: Layer, compute: Compute) -> None:
        super().__init__()
        self.layer = layer
        self.compute = compute

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        named = (
            dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False))
            | kwargs
        )
        q, k, v = (named.pop(part) for part in ("query", "key", "value"))
        return self.compute(self.layer, q, k, v, Attend(named))
