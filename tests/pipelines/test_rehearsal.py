"""What a run would take: own kernels are rehearsed like torch's, and an allocator holds more than is in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from sfumato.kernels.native.around import available
from sfumato.kernels.quant.int8 import PackedConv, PackedLinear, geometry_of, weight_of
from sfumato.pipelines.blocks import cut, spans, stacks
from sfumato.pipelines.converts.int8 import Int8
from sfumato.pipelines.converts.winograd import Winograd
from sfumato.pipelines.heap import LAST, Event, held
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.patches.block_cache import BlockCache
from sfumato.pipelines.patches.deepcache import DeepCache
from sfumato.pipelines.patches.first_block import FirstBlock
from sfumato.pipelines.patches.taylorseer import TaylorSeer
from sfumato.pipelines.protocols import Patch
from sfumato.pipelines.rehearsal import rehearse, sampling
from torch import nn

MB = 1 << 20
native = pytest.mark.skipif(available() is not None, reason=str(available()))


@native
@pytest.mark.parametrize(("tiled", "least"), [(0, 0.9), (Int8().tiled, 0.6)])
def test_networks_with_own_kernels_are_rehearsed(tmp_path: Path, tiled: int, least: float) -> None:
    model = open_model(tiny_models.stable_diffusion(tmp_path / "sd"))
    conds = [model.encode(["a red cube"], key="pos")]
    x, plain = torch.randn(1, *model.latent_shape(64, 64)), sampling(model, conds, 64, 64, 1)
    Winograd(channels=1)(Int8(tiled=tiled)(model.denoise.net))
    before = model.denoise(x, 0.5, *conds)[0].x0
    found, four = (sampling(model, conds, 64, 64, batch) for batch in (1, 4))
    assert found.work["bytewise"] > 0 and found.work["winograd"] > 0
    done = sum(found.work.get(kind, 0) for kind in ("bytewise", "winograd", "dense", "convolution"))
    assert least < done / (plain.work["convolution"] + plain.work["product"]) < least + 0.35
    assert 0.5 * plain.peak < found.peak < 6 * plain.peak and found.peak < four.peak < 6 * found.peak
    assert torch.equal(model.denoise(x, 0.5, *conds)[0].x0, before)


def test_onednns_kernels_give_shapes_on_meta() -> None:
    conv, linear = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Linear(8, 12)
    packed = PackedConv(weight_of(conv.weight), conv.bias, geometry_of(conv))
    flat = PackedLinear(weight_of(linear.weight), linear.bias)
    shapes: list[torch.Size] = []

    def act() -> None:
        shapes.append(packed(torch.empty(2, 8, 9, 14, device="meta")).shape)
        shapes.append(flat(torch.empty(2, 5, 8, device="meta")).shape)

    need = rehearse(act, (), processor=True)
    assert shapes == [(2, 12, 5, 7), (2, 5, 12)]
    assert need.work["bytewise"] == 2 * (2 * 12 * 5 * 7 * 8 * 9 + 2 * 5 * 8 * 12)


def test_a_heap_keeps_its_gaps() -> None:
    """One block in two is freed, and a larger one fits into no gap."""
    taken = [Event(block, MB) for block in range(8)]
    freed = [Event(block, 0) for block in range(0, 8, 2)]
    fits, larger = Event(9, MB), Event(9, 2 * MB)
    assert held([*taken, *freed, fits]) == pytest.approx(8 * MB, rel=0.001)
    assert held([*taken, *freed, larger]) == pytest.approx(10 * MB, rel=0.001)


def test_large_blocks_go_back_at_once() -> None:
    size = LAST + MB
    turns = [event for block in range(5) for event in (Event(block, size), Event(block, 0))]
    assert held(turns) == pytest.approx(size, rel=0.001)
    assert held([Event(0, size), Event(1, size), Event(0, 0), Event(2, 2 * size)]) > 2.99 * size


def test_the_top_goes_back_and_neighbours_join() -> None:
    taken = [Event(block, 30 * MB) for block in range(4)]
    freed = [Event(block, 0) for block in (3, 1, 2)]
    assert held([*taken, *freed, Event(9, 80 * MB)]) == pytest.approx(120 * MB, rel=0.001)


@pytest.mark.parametrize(
    ("name", "patch", "kept"),
    [
        ("flux", BlockCache(interval=3), 1),
        ("flux", TaylorSeer(order=2, interval=2), 3),
        ("flux", FirstBlock(), 0),  # 0: its spans are longer than blocks
        ("sd", DeepCache(order=0), 0),
    ],
)
def test_what_a_cache_remembers_is_counted(name: str, patch: Patch, kept: int, tmp_path: Path) -> None:
    """Above the plain call it is what the blocks added, as often as that is kept; nothing where it is off."""
    make = {"flux": tiny_models.flux, "sd": tiny_models.stable_diffusion}[name]
    model = open_model(make(tmp_path / name))
    conds = [model.encode([text], key=key) for key, text in (("pos", "a red cube"), ("neg", ""))]

    def peak(batch: int, *patches: Patch, steps: int = 6) -> int:
        return sampling(model, conds, 256, 256, batch, patches=patches, steps=steps).peak

    plain, found = peak(4), peak(4, patch)
    assert plain < found and peak(4, patch, steps=1) <= found
    off: Patch = BlockCache(interval=1) if name == "flux" else DeepCache(interval=1)
    assert peak(4, off, steps=1) == plain
    assert 1.5 < (peak(8, patch) - peak(8)) / (found - plain) < 3
    if kept:
        added = streams(model, conds, 4)
        assert 0.5 * kept * added < found - plain < 2 * kept * added


def streams(model: Any, conds: Any, batch: int) -> int:
    """Bytes that all blocks of one call add."""
    net, total = model.denoise.net, [0]

    def leaves(span: Any, before: Any, after: Any) -> Any:
        total[0] += sum(t.nbytes for t in after if t is not None)
        return after

    blocks = cut([[block] for stack in stacks(net) for block in stack])
    with spans(blocks, lambda span, before: False, leaves), torch.no_grad():
        model.denoise(torch.zeros(batch, *model.latent_shape(256, 256)), 0.5, *conds)
    return total[0]
