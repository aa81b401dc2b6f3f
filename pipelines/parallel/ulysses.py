"""ulysses: each process has a share of the tokens, and in attention a share of the heads.

Paper: arXiv:2309.14509 (DeepSpeed-Ulysses), section 3; arXiv:2310.01889 (ring attention), section 3
Use: `--parallel ulysses=2` on the command line; from Python the patch `Ulysses`, in each process
Cost: two exchanges per attention, in which a process sends its share of the tokens; each process holds the whole model
Tasks: image, video

From the first block of a stack to its last, a process holds N / P of the N tokens. At an attention, one all-to-all
turns "all heads of my tokens" into "all tokens of my heads", a second one turns the answer back. Where there are fewer
heads than processes, keys and values go round in a ring instead, and each process keeps its queries. Attention to words
is computed where its queries are.

Tokens and heads need not divide evenly: the first processes have one more. Sums go over other tokens first than in one
process, so results agree within rounding, not to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks import Block, stacks
from ..errors import NoSite
from ..sites import Attend, Layer, attention, calls, inputs
from .group import Team
from .ring import ring
from .tokens import CROSS, PICTURE, SIDES, TEXT, Cut, shares


def check_cut(net: nn.Module) -> None:
    """Refuse networks that can't be cut."""
    for stack in stacks(net):
        for block in stack:
            kind = type(block.module).__name__
            if kind not in SIDES:
                raise NoSite(f"the tokens of {kind} can't be cut over processes; use cfg in place of ulysses")


@dataclass(frozen=True)
class Ulysses:
    """A patch: the tokens of every condition are shared out over the team. Others would see a part of the tokens."""

    team: Team

    @contextmanager
    def __call__(self, net: nn.Module) -> Iterator[None]:
        check_cut(net)
        with ExitStack() as stack:
            for blocks in stacks(net):
                region = _Region(self.team, blocks)
                for block in blocks:
                    stack.enter_context(inputs(block.module, region.change(block)))
                    stack.enter_context(calls(block.module, region.answer(block)))
                    stack.enter_context(attention(block.module, region.compute))
            yield


@dataclass
class _Region:
    """One stack, while the network runs through it."""

    team: Team
    blocks: tuple[Block, ...]
    cut: Cut | None = None
    orders: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    def change(self, block: Block) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
        """The block's arguments, cut; its streams are cut already unless it is the first."""
        sides = SIDES[type(block.module).__name__]

        def change(given: Mapping[str, Any]) -> Mapping[str, Any]:
            found: dict[str, Any] = {}
            if block is self.blocks[0]:
                streams = [given.get(name) for name in block.streams]
                self.cut = Cut.of(block, streams, self.team.size, self.team.rank)
                for place, (name, whole) in enumerate(zip(block.streams, streams, strict=True)):
                    if whole is not None:
                        found[name] = self.cut.take(whole, self._of(block, place), 1)
            assert self.cut is not None
            for name, side in sides.items():
                if given.get(name) is not None:
                    found[name] = self.cut.side(given[name], side)
            return found

        return change

    def answer(self, block: Block) -> Callable[[Mapping[str, Any], Callable[[], Any]], Any]:
        """What the block gives back; whole again after the last."""

        def answer(given: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
            out = compute()
            if block is not self.blocks[-1]:
                return out
            parts = out if isinstance(out, tuple) else (out,)
            whole = tuple(
                part if part is None else self._gathered(part, self._of(block, place))
                for place, part in enumerate(parts)
            )
            self.cut = None
            return whole if isinstance(out, tuple) else whole[0]

        return answer

    def compute(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        """One attention of a block."""
        cut = self.cut
        of = None if cut is None or layer.kind == "cross" else cut.meant(q.shape[2])
        if cut is None or of is None or k.shape[2] != q.shape[2] or self._is_cross(layer):
            return attend(q, k, v)
        if not attend.whole:
            raise NoSite("causal attention can't be cut over processes; use cfg in place of ulysses")
        if k.shape[1] != q.shape[1]:  # grouped heads
            k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
        bias = self._bias(attend.bias, cut, of)
        if q.shape[1] < self.team.size:
            return ring(self.team, (q, k, v), cut.locals(of), bias, attend.scale)
        return self._by_heads((q, k, v), cut.locals(of), bias, attend.scale)

    def _by_heads(
        self, qkv: tuple[Tensor, Tensor, Tensor], tokens: list[int], bias: Tensor | None, scale: float | None
    ) -> Tensor:
        batch, heads, own, width = qkv[0].shape
        each, me = shares(heads, self.team.size), self.team.rank
        sent = list(torch.stack(qkv).split(each, 2))
        came = self.team.exchange(sent, [(3, batch, each[me], count, width) for count in tokens])
        q, k, v = torch.cat(came, 3)
        if bias is not None and bias.shape[1] > 1:
            bias = bias.split(each, 1)[me]
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
        back = self.team.exchange(list(out.split(tokens, 2)), [(batch, count, own, width) for count in each])
        return torch.cat(back, 1)

    def _bias(self, bias: Tensor | None, cut: Cut, of: str) -> Tensor | None:
        """The bias [B,1 or heads,1 or N,N] with its keys, and queries if it tells them apart, in the order gathered."""
        if bias is None:
            return None
        while bias.ndim < 4:
            bias = bias[None]
        for axis in (1, 2):  # expanded to so many heads or queries, all the same
            if bias.stride(axis) == 0:
                bias = bias.narrow(axis, 0, 1)
        place = (of, *cut.lengths.items(), bias.device)
        if place not in self.orders:
            self.orders[place] = cut.order(of).to(bias.device)
        order = self.orders[place]
        if bias.shape[3] != len(order) or bias.shape[2] not in (1, len(order)):
            raise NoSite(
                f"a mask of {list(bias.shape)} over {len(order)} tokens can't be cut over processes; use cfg"
            )
        bias = bias.index_select(3, order)
        return bias if bias.shape[2] == 1 else bias.index_select(2, order)

    def _gathered(self, own: Tensor, of: str) -> Tensor:
        assert self.cut is not None
        tokens = self.cut.locals(of)
        padded = own.new_zeros(own.shape[0], max(tokens), *own.shape[2:])
        padded[:, : own.shape[1]] = own
        found = self.team.gather(padded)
        return torch.cat([part[:, :count] for part, count in zip(found, tokens, strict=True)], 1)

    def _of(self, block: Block, place: int) -> str:
        return PICTURE if place == block.hidden else TEXT

    def _is_cross(self, layer: Layer) -> bool:
        return f"{type(self.blocks[0].module).__name__}.{layer.name}" in CROSS
