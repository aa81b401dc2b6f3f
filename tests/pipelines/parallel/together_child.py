"""Run by test_parallel in several processes: RANK SIZE FOLDER KIND. The first writes what it found as KIND.json.

KIND is `cfg` or `ulysses`, over the tiny networks named after it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from agreement import relative
from cached import OneByOne, run
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.parallel.branches import Spread
from sfumato.pipelines.parallel.group import Shape, Team, joined
from sfumato.pipelines.parallel.ring import ring
from sfumato.pipelines.parallel.tokens import shares
from sfumato.pipelines.parallel.ulysses import Ulysses
from tiny_nets import tiny
from tiny_unets import NAMES, tiny_unet

torch.set_num_threads(1)


def same_everywhere(team: Team, found: torch.Tensor) -> bool:
    return all(torch.equal(found, other) for other in team.gather(found))


def spread(name: str, team: Team) -> dict[str, Any]:
    model = tiny_unet(name) if name in NAMES else tiny(name)
    seen: list[int] = []
    model.denoise.net.register_forward_pre_hook(
        lambda net, args, given: seen.append(len(args[0] if args else next(iter(given.values())))),
        with_kwargs=True,
    )
    found = run(model, denoise=Spread(model.denoise, team))
    rows = sum(seen)
    return {
        "same": same_everywhere(team, found),
        "rows": rows,
        "alone": torch.equal(found, run(model, denoise=OneByOne(model.denoise))),
        "far": float(relative(found, run(model))),
    }


def cut(name: str, team: Team) -> dict[str, Any]:
    model, patch = tiny(name), Ulysses(team)
    try:
        found = run(model, patch)
    except BadInput as error:
        return {"refused": str(error)}
    again = run(model, patch, count=2, seed=3)
    return {
        "same": same_everywhere(team, found),
        "twice": torch.equal(found, run(model, patch)),
        "far": float(relative(found, run(model))),
        "far of two": float(relative(again, run(model, count=2, seed=3))),
    }


def rings(team: Team) -> list[float]:
    """Against torch: without a mask, with booleans for each key, with numbers for each pair and head."""
    rng = torch.Generator().manual_seed(0)
    tokens = 11
    q, k, v = (torch.randn(2, 3, tokens, 8, generator=rng) for _ in range(3))
    keys = torch.arange(tokens)[None, None, None] != 4
    pairs = torch.randn(2, 3, tokens, tokens, generator=rng)
    own = shares(tokens, team.size)
    found = []
    for bias in (None, keys, pairs):
        whole = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.4)
        mine = tuple(part.split(own, 2)[team.rank] for part in (q, k, v))
        part = ring(team, mine, own, bias, 0.4)  # type: ignore[arg-type]
        found.append(float(relative(part, whole.split(own, 2)[team.rank])))
    return found


def main() -> None:
    rank, size, home, kind, *names = sys.argv[1:]
    with joined(int(rank), Shape(1, int(size)), Path(home) / "meeting", timeout=120) as group:
        team = group.sequence
        found: dict[str, Any] = {name: (spread if kind == "cfg" else cut)(name, team) for name in names}
        if kind == "ulysses":
            found["ring"] = rings(team)
    if group.first:
        (Path(home) / f"{kind}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    with torch.no_grad():
        main()
