"""A reuse table: which block is computed at which step. Written by the recipe `harmonica`, obeyed by two caches."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..blocks import Span, stacks
from ..errors import BadInput
from ..moment import Step
from ._reuse import Due

MOST = 10_000
"""Steps or blocks of a table."""


@dataclass(frozen=True)
class ReuseTable:
    """`compute[step][block]` is 1 where the block is computed, 0 where it repeats what it added before."""

    network: str
    """Class of the network it was made for."""
    blocks: tuple[str, ...]
    """Dotted names of the blocks, in the order in which the network runs them."""
    compute: tuple[tuple[int, ...], ...]
    order: int = 0
    """Of the differences by which blocks are forecast that are not computed; 0 repeats what they added last."""

    @property
    def steps(self) -> int:
        return len(self.compute)

    @property
    def share(self) -> float:
        """Of the block evaluations that are computed, 0..1."""
        return sum(map(sum, self.compute)) / (self.steps * len(self.blocks))

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        part.replace(path)


def read_table(path: Path) -> ReuseTable:
    """The table of a file, checked."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput("table", f"table: {path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise BadInput("table", f"table: {path} is no JSON") from error
    if not isinstance(found, dict) or set(found) != {"network", "blocks", "compute", "order"}:
        raise _refuse(path, "needs network, blocks, compute and order, and nothing else")
    network, blocks, compute, order = (found[name] for name in ("network", "blocks", "compute", "order"))
    if not isinstance(network, str) or not _are(str, blocks) or not isinstance(compute, list):
        raise _refuse(path, "needs a name, a list of names and a list of rows")
    if type(order) is not int or not 0 <= order <= 2:
        raise _refuse(path, "needs an order of 0, 1 or 2")
    if not 0 < len(blocks) <= MOST or not 0 < len(compute) <= MOST:
        raise _refuse(path, f"needs 1..{MOST} blocks and steps")
    for i, row in enumerate(compute):
        if not _are(int, row) or len(row) != len(blocks) or not set(row) <= {0, 1}:
            raise _refuse(path, f"needs {len(blocks)} numbers 0 or 1 in the row of step {i}")
    return ReuseTable(network, tuple(blocks), tuple(tuple(row) for row in compute), order)


def obeyed(file: str, net: nn.Module, order: int) -> Due:
    """Computes what the table of a file says; refused for another order, network or number of steps."""
    table, blocks = read_table(Path(file)), [block for stack in stacks(net) for block in stack]
    if table.network != type(net).__name__ or table.blocks != tuple(block.name for block in blocks):
        raise BadInput(
            "table",
            f"table: {file} is for the {len(table.blocks)} blocks of a {table.network}, the model has {len(blocks)} of "
            f"a {type(net).__name__}; make one for it with the recipe `harmonica`",
        )
    if table.order != order:
        use = f"taylorseer:order={table.order}" if table.order else "block-cache"
        raise BadInput(
            "table", f"table: {file} was learned for order {table.order}, not {order}; use it by {use}"
        )

    def due(step: Step, span: Span, last: int) -> bool:
        if step.steps != table.steps:
            raise BadInput(
                "table",
                f"table: {file} is for {table.steps} steps, the run has {step.steps}; give it as many",
            )
        return table.compute[step.index][span.index] == 1

    return due


def _are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _refuse(path: Path, words: str) -> BadInput:
    return BadInput("table", f"table: {path} {words}; make one with the recipe `harmonica`")
