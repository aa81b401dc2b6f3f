"""Attention by its backends on this machine, and how its cost grows with tokens: dense, in tiles, linear.

The tokens of the growing rows lie in clusters that are runs, as frames of a clip do; tiles are searched at 95 % of the
weight, and at most eight of them are kept. On CUDA all backends that are installed take part, in half precision.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import harness
import torch
from sfumato.kernels.attention import linear, tiles
from sfumato.kernels.attention.call import Call, Preparation
from sfumato.kernels.attention.dense import sdpa
from sfumato.kernels.attention.dispatch import BACKENDS, attention, lacking, refused
from sfumato.kernels.quant.products import normed, turned
from torch import Tensor

SHAPES = ((2, 8, 4096, 40), (1, 24, 4096, 128))
TOKENS = (2048, 4096, 8192)
RUN = 256
MOST = 8


def made(shape: tuple[int, ...], device: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v; queries and keys share the centre of their run."""
    rng = torch.Generator().manual_seed(seed)
    batch, heads, tokens, features = shape
    centres = 2 * torch.randn(batch, heads, -(-tokens // RUN), features, generator=rng)
    near = centres.repeat_interleave(RUN, 2)[:, :, :tokens]
    q, k = (near + torch.randn(shape, generator=rng) for _ in range(2))
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return tuple(t.to(device, dtype) for t in (q, k, torch.randn(shape, generator=rng)))  # type: ignore[return-value]


def blocked(call: Call, rows: int = 256) -> Tensor:
    """Float32 by blocks of rows through matrix products: the form that torch's own kernel is compared with."""
    q, k, v = (t.flatten(0, 1) for t in call[:3])
    parts = [torch.bmm(torch.bmm(part * call.factor, k.mT).softmax(2), v) for part in q.split(rows, 1)]
    return torch.cat(parts, 1).view(call.q.shape)


def serves(name: str, call: Call) -> bool:
    return BACKENDS[name].chosen and lacking(name) is None and refused(call, name) is None


def by_backend(device: str, repeats: int) -> list[harness.Row]:
    rows = []
    for shape in SHAPES[: 1 if device == "cpu" else None]:
        call = Call(*made(shape, device))
        wanted = sdpa(call)
        names = [name for name in BACKENDS if serves(name, call)]
        runs: dict[str, Callable[[], Tensor]] = {n: partial(BACKENDS[n].run, call) for n in names}
        if device == "cpu":
            runs["blocks of rows"] = partial(blocked, call)
        taken = harness.interleave(runs, repeats=repeats)
        told = "x".join(map(str, shape))
        rows.append(harness.row(f"{told}, sdpa", [1e3 * s for s in taken["sdpa"]], "ms"))
        for name in [n for n in runs if n != "sdpa"]:
            error = float((runs[name]() - wanted).norm() / wanted.norm())
            ratio = harness.ratios(taken["sdpa"], taken[name])
            rows.append(harness.row(f"{told}, sdpa / {name} (error {100 * error:.2g} %)", ratio, "x"))
    return rows


def within(device: str, repeats: int) -> list[harness.Row]:
    """Norm and rotary positions by torch before the kernel, or within it, as FLUX's layers have them."""
    if lacking("triton-int8") is not None:
        return []
    from sfumato.kernels.triton.rows import Turn

    shape = SHAPES[-1]
    call, told = Call(*made(shape, device)), "x".join(map(str, shape))
    weight = torch.ones(shape[3], device=device, dtype=call.q.dtype)
    angle = torch.rand(shape[2], shape[3] // 2, device=device).repeat_interleave(2, 1)
    turn = Turn(angle.cos(), angle.sin())
    before = Preparation((shape[2],), ((weight, weight),), 1e-6, turn[:2])

    def ready() -> Call:
        q, k = (turned(normed(t, weight).float(), turn).to(t.dtype) for t in call[:2])
        return call._replace(q=q, k=k)

    rows = []
    for name in ("sdpa", *(n for n in ("triton-int8", "triton-fp8") if lacking(n) is None)):
        chosen = BACKENDS[name]
        runs: dict[str, Callable[[], Tensor]] = {"apart": lambda chosen=chosen: chosen.run(ready())}
        if chosen.prepared is not None:
            runs["within"] = partial(chosen.prepared, call, before)
        taken = harness.interleave(runs, repeats=repeats)
        for place, times in taken.items():
            what = f"{told}, norm and positions {place}, {name}"
            rows.append(harness.row(what, [1e3 * s for s in times], "ms"))
    return rows


def growing(device: str, repeats: int) -> list[harness.Row]:
    rows = []
    for tokens in TOKENS:
        q, k, v = made((1, 8, tokens, 64), device)
        masses = tiles.masses(q, k)
        kept = tiles.fewest(masses, 0.95, MOST)
        held = float((masses * kept).sum(3).mean())
        wanted = attention(q, k, v, backend="sdpa")
        runs: dict[str, Callable[[], Tensor]] = {
            "sdpa": partial(attention, q, k, v, backend="sdpa"),
            "tiles": partial(tiles.attend, q, k, v, kept),
            "linear": partial(linear.attend, q, k, v),
        }
        taken = harness.interleave(runs, repeats=repeats)
        error = float((tiles.attend(q, k, v, kept) - wanted).norm() / wanted.norm())
        share = f"{100 * float(kept.float().mean()):.0f} % of tiles, {100 * held:.0f} % of weight"
        rows += [
            harness.row(f"{tokens} tokens, {name}", [1e3 * s for s in taken[name]], "ms") for name in runs
        ]
        for name, more in (("tiles", f" ({share}, error {100 * error:.2g} %)"), ("linear", "")):
            ratio = harness.ratios(taken["sdpa"], taken[name])
            rows.append(harness.row(f"{tokens} tokens, sdpa / {name}{more}", ratio, "x"))
    return rows


def effect(rows: list[harness.Row], about: dict[str, Any]) -> None:
    """For the page of methods: how time grows from the fewest tokens to the most."""
    found = {row.what: row for row in rows}
    few, many = TOKENS[0], TOKENS[-1]
    told = []
    for name in ("tiles", "sdpa"):
        ends = [found[f"{tokens} tokens, {name}"].median for tokens in (few, many)]
        told.append(f"{ends[0]:.0f} to {ends[1]:.0f} ms ({ends[1] / ends[0]:.1f} times)")
    (gain,) = (row for row in rows if row.what.startswith(f"{many} tokens, sdpa / tiles"))
    harness.effect(
        "attn-tile",
        "7.4 to 7.8 times faster clips, with distillation to few steps",
        f"one layer from {few} to {many} tokens in clusters, at most {MOST} tiles: {told[0]}, dense {told[1]}; "
        f"{gain.what.partition('(')[2].removesuffix(')')}",
        about,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count (default 5)")
    given = parser.parse_args()
    about = harness.machine(given.device)
    rows = [row for part in (by_backend, within, growing) for row in part(given.device, given.repeats)]
    for line in rows:
        print(line)
    if given.device == "cpu":
        effect(rows, about)
    suffix = "" if given.device == "cpu" else "-cuda"
    print(harness.write(f"attention{suffix}", "Attention by backend", rows, about))


if __name__ == "__main__":
    main()
