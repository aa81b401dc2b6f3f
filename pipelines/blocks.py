"""The site 'blocks': the stacks of repeated blocks of a transformer, and how a run of them is passed by.

A block takes one stream (the picture's tokens, or those joined with the text's) or two, and gives them back. A span
is a run of blocks in one stack. Who passes a span by says what its streams would have been; what stands between the
stacks of a network (joining the streams, a control network's sums) goes on as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .errors import NoSite
from .sites import Answer, calls

Streams = tuple[Tensor | None, ...]
"""Of one block, in the order in which it returns them; None where a last block drops the text."""

STACKS = ("transformer_blocks", "joint_transformer_blocks", "single_transformer_blocks", "blocks", "layers")
"""Names of the lists, in whichever order a network has them; refiners of the text are none."""

HIDDEN, TEXT = "hidden_states", "encoder_hidden_states"
ONE, PICTURE_FIRST, TEXT_FIRST = (HIDDEN,), (HIDDEN, TEXT), (TEXT, HIDDEN)
STREAMS: dict[str, tuple[str, ...]] = {
    "AuraFlowJointTransformerBlock": TEXT_FIRST,
    "AuraFlowSingleTransformerBlock": ONE,
    "BasicTransformerBlock": ONE,
    "CogVideoXBlock": PICTURE_FIRST,
    "CogView3PlusTransformerBlock": PICTURE_FIRST,
    "CogView4TransformerBlock": PICTURE_FIRST,
    "Flux2SingleTransformerBlock": ONE,
    "Flux2TransformerBlock": TEXT_FIRST,
    "FluxSingleTransformerBlock": TEXT_FIRST,
    "FluxTransformerBlock": TEXT_FIRST,
    "HunyuanDiTBlock": ONE,
    "HunyuanVideoSingleTransformerBlock": PICTURE_FIRST,
    "HunyuanVideoTransformerBlock": PICTURE_FIRST,
    "JointTransformerBlock": TEXT_FIRST,
    "LTXVideoTransformerBlock": ONE,
    "Lumina2TransformerBlock": ONE,
    "LuminaNextDiTBlock": ONE,
    "MochiTransformerBlock": PICTURE_FIRST,
    "QwenImageTransformerBlock": TEXT_FIRST,
    "SanaTransformerBlock": ONE,
    "WanTransformerBlock": ONE,
    "ZImageTransformerBlock": ("x",),
}
"""Block class of diffusers -> its arguments that are streams, in the order in which it returns them."""


@dataclass(frozen=True)
class Block:
    """One of the repeated blocks."""

    name: str
    """Dotted name in the network."""
    module: nn.Module = field(repr=False, compare=False)
    streams: tuple[str, ...]

    @property
    def hidden(self) -> int:
        """Which stream is the picture's."""
        return self.streams.index("x" if "x" in self.streams else HIDDEN)


@dataclass(frozen=True)
class Span:
    """A run of blocks that is computed, or passed by, as one."""

    index: int
    """0-based, in the order in which the network comes to it."""
    blocks: tuple[Block, ...]


Enters = Callable[[Span, Streams], bool]
"""(span, the streams before it) -> whether it is passed by."""
Leaves = Callable[[Span, Streams, Streams | None], Streams]
"""(span, the streams before it, those after it or None if it was passed by) -> what goes on."""


def stacks(net: nn.Module) -> list[tuple[Block, ...]]:
    """The network's stacks, in the order in which it runs through them."""
    found = []
    for name, child in net.named_children():
        if name not in STACKS or not isinstance(child, nn.ModuleList) or not len(child):
            continue
        blocks = []
        for number, module in enumerate(child):
            kind = type(module).__name__
            if kind not in STREAMS:
                raise NoSite(
                    f"{type(net).__name__} has no site 'blocks': nobody has said which streams {kind} returns"
                )
            blocks.append(Block(f"{name}.{number}", module, STREAMS[kind]))
        found.append(tuple(blocks))
    if not found:
        raise NoSite(f"{type(net).__name__} has no site 'blocks': no list of them called {', '.join(STACKS)}")
    return found


def cut(parts: Sequence[Sequence[Block]]) -> list[Span]:
    """Spans of these blocks, the empty ones left out."""
    return [Span(i, tuple(part)) for i, part in enumerate(part for part in parts if part)]


@contextmanager
def spans(found: Sequence[Span], enters: Enters, leaves: Leaves) -> Iterator[None]:
    """Ask `enters` before each span and `leaves` after it."""
    with ExitStack() as stack:
        for span in found:
            passage = _Passage(span, enters, leaves)
            for block in span.blocks:
                stack.enter_context(calls(block.module, passage.answer(block)))
        yield


class _Passage:
    """One span's way through the call at hand."""

    def __init__(self, span: Span, enters: Enters, leaves: Leaves) -> None:
        self.span = span
        self.enters = enters
        self.leaves = leaves
        self.before: Streams = ()
        self.passed_by = False

    def answer(self, block: Block) -> Answer:
        """What is given back in the place of the block's own answer."""
        first, last = block is self.span.blocks[0], block is self.span.blocks[-1]

        def answer(given: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
            streams: Streams = tuple(given.get(name) for name in block.streams)
            if first:
                self.before, self.passed_by = streams, self.enters(self.span, streams)
            after: Streams | None = None
            if not self.passed_by:
                out = compute()
                after = out if isinstance(out, tuple) else (out,)
            if last:
                before, self.before = self.before, ()
                after = self.leaves(self.span, before, after)
            kept = streams if after is None else after
            return kept if len(block.streams) > 1 else kept[0]

        return answer
