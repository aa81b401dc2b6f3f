"""What a call of a model needs, found by running it on torch's device `meta`: shapes without numbers.

Every tensor that would be made is counted while it would live, so the peak is that of the very code that will run, for
any family, size and batch, in a fraction of a second. Attention counts as the fused kernels compute it, without its
matrix of scores. What a backend keeps beside its operands is added where it is known: a convolution of oneDNN whose
input is not channels-last makes a copy of it, our own kernels tell what they would hold. On a processor the peak is
what the allocator would hold for these tensors (`heap.py`), which is more than they take.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..kernels.foretold import LISTENER
from .families._common import Checkpoint
from .heap import Event, held
from .moment import Step, stepping
from .protocols import Cond, Model, Patch

OWN = (
    *(".quant.packed", ".quant.layers", ".quant.fused", ".quant.winograd_int8"),
    *(".winograd", ".dense", ".steady"),
)
"""Layers of ours that go through torch on meta, or tell there what they would take."""

FILLING = 4
"""Steps after which caches that are in use remember what they can: three differences and what follows from them."""


class Need(NamedTuple):
    """What one call takes beside weights."""

    peak: int
    """Bytes at once, inputs included."""
    work: Mapping[str, float]
    """Multiplications and additions in `convolution`, `product` and `attention`, and in our own kernels' `bytewise`,
    `winograd` and `dense`; bytes written, as `moved`.
    """


@dataclass
class _Count:
    now: int = 0
    peak: int = 0
    work: Any = field(default_factory=Counter)
    known: dict[int, Any] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def told(self, kind: str, work: float, beside: int) -> None:
        """Of a kernel of ours."""
        self.work[kind] += work
        self.beside(beside)

    def beside(self, size: int) -> None:
        """Bytes that are held for a moment, and all that lives now with them."""
        self.peak = max(self.peak, self.now + size)
        if size:
            block = len(self.events)
            self.events += [Event(block, size), Event(block, 0)]


class _Counting(TorchDispatchMode):
    def __init__(self, count: _Count, copies: bool) -> None:
        super().__init__()
        self.count, self.copies = count, copies

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out, count = func(*args, **kwargs), self.count
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                count.work["moved"] += track(count, tensor)
        beside, packet = 0, func._overloadpacket
        kind = "convolution" if "convolution" in str(packet) else "product"
        if kind == "convolution" and self.copies:
            back = packet is torch.ops.aten.convolution_backward
            given, weight = (args[:2], args[2]) if back else (args[:1], args[1])
            beside = 0 if _channels_last(weight) else sum(x.nbytes for x in given if not _channels_last(x))
        if packet in flop_registry:
            count.work[kind] += flop_registry[packet](*args, **kwargs, out_val=out)
        count.beside(beside)
        return out


def _channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def track(count: _Count, tensor: Tensor) -> int:
    """Count a tensor's memory for as long as it lives; bytes that are new."""
    storage = tensor.untyped_storage()
    key, size = id(storage), storage.nbytes()
    if key in count.known:
        return 0

    block = len(count.events)

    def gone(_: object) -> None:
        count.now -= size
        count.known.pop(key, None)
        count.events.append(Event(block, 0))

    count.known[key] = weakref.ref(storage, gone)
    count.now += size
    count.events.append(Event(block, size))
    return size


class _Attended(torch.autograd.Function):
    """Keeps for the way back what the fused kernels keep."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        q, k, v, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class _Fused(TorchFunctionMode):
    """Attention without its scores; and what is asked of numbers that are not there is answered yes."""

    def __init__(self, count: _Count) -> None:
        super().__init__()
        self.count = count

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            q, k, v = named["query"], named["key"], named["value"]
            self.count.work["attention"] += 2.0 * q.numel() * k.shape[-2] * (1 + v.shape[-1] / q.shape[-1])
            return cast("Tensor", _Attended.apply(q, k, v))
        if func is Tensor.__bool__ and args[0].is_meta:
            return True
        return func(*args, **kwargs)


@contextmanager
def weightless(nets: Sequence[nn.Module]) -> Iterator[None]:
    """The networks on meta inside this block, without hooks; then as they were."""
    kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for module in (module for net in nets for module in net.modules()):
        own = vars(module)
        names = ("_parameters", "_buffers", "_forward_pre_hooks", "_forward_hooks")
        kept.append((own, {name: own[name] for name in names}))
        own["_parameters"] = {
            name: None if weight is None else nn.Parameter(_meta(weight), requires_grad=False)
            for name, weight in own["_parameters"].items()
        }
        own["_buffers"] = {name: None if b is None else _meta(b) for name, b in own["_buffers"].items()}
        own["_forward_pre_hooks"], own["_forward_hooks"] = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for own, before in kept:
            own.update(before)


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")


def rehearse(act: Callable[[], object], nets: Sequence[nn.Module], *, processor: bool) -> Need:
    """What act() takes, which calls these networks with inputs on meta; whether as a processor's torch would do it."""
    count = _Count()
    with torch.no_grad(), weightless(nets):
        for net in nets:
            for tensor in (*net.parameters(), *net.buffers()):
                count.known[id(tensor.untyped_storage())] = tensor
        token = LISTENER.set(count.told)
        try:
            with _plain(), _Fused(count), _Counting(count, processor):
                act()
        finally:
            LISTENER.reset(token)
    return Need(held(count.events) if processor else count.peak, dict(count.work))


def _plain() -> AbstractContextManager[object]:
    """Compiled blocks run as they were written. Without the compiler nothing can have been compiled."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def sampling(
    model: Model,
    conds: Sequence[Cond],
    width: int,
    height: int,
    batch: int,
    *,
    patches: Sequence[Patch] = (),
    steps: int = 1,
) -> Need:
    """One evaluation of the network for these conditions, which may be on meta or not.

    With patches it is the first few of a run of so many steps, until caches hold all that they ever will.
    """
    net = model.denoise.net
    _check(net)
    device = next((weight.device.type for weight in net.parameters()), "cpu")
    start, run = model.denoise.path.start, object()

    def act() -> None:
        x = torch.empty(batch, *model.latent_shape(width, height), device="meta")
        told = [Cond(cond.key, {name: _meta(value) for name, value in cond.embeds.items()}) for cond in conds]
        with ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch(net))
            for index in range(min(steps, FILLING) if patches else 1):
                with stepping(Step(index, steps, run)):
                    model.denoise(x, start * 0.5, *told)

    return rehearse(act, [net], processor=device == "cpu")


def _check(net: nn.Module) -> None:
    own = [type(layer).__module__ for layer in net.modules()]
    if any(".kernels." in name and not name.endswith(OWN) for name in own):
        raise TypeError("layers with kernels of their own look at numbers; they can't be rehearsed")


def decoding(model: Model, width: int, height: int) -> Need:
    """One picture out of its latents, as its autoencoder works now."""
    if not isinstance(model, Checkpoint):
        raise TypeError(f"{type(model).__name__} is no opened checkpoint")
    vae = model.codec.vae
    _check(vae)
    device = next((weight.device.type for weight in vae.parameters()), "cpu")

    def act() -> None:
        model.decode(torch.empty(1, *model.latent_shape(width, height), device="meta"))

    return rehearse(act, [vae], processor=device == "cpu")
