"""Weights that come and go: the same bits, never more than the budget, undone without a trace."""

import mmap
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sfumato.kernels.mapped import Mapped, Place, Scratch, alignment, let_go, room_like, runs
from sfumato.kernels.offload import Rest, Stored, offload, offloaded, restore
from sfumato.kernels.residence import Pool
from sfumato.kernels.route import Unit
from sfumato.kernels.units import units_of
from sfumato.pipelines.weights import read_header
from torch import nn

CPU = torch.device("cpu")
WIDTH = 64
LAYER = 4 * (WIDTH * WIDTH + WIDTH)
"""Bytes of one layer in float32."""


def stack(layers: int = 8) -> nn.Module:
    torch.manual_seed(0)
    parts = [part for _ in range(layers) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*parts).requires_grad_(False)


def x() -> torch.Tensor:
    return torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))


def file_of(net: nn.Module, folder: Path) -> dict[str, Stored]:
    file = folder / "net.safetensors"
    save_file(net.state_dict(), file)
    return {
        name: Stored(file, Place(t.start, torch.float32, t.shape)) for name, t in read_header(file).items()
    }


@pytest.mark.parametrize("layers", [2, 3, 5, 8, 20])
@pytest.mark.parametrize("where", ["file", "scratch", "host"])
def test_the_same_bits_within_the_budget(layers: int, where: str, tmp_path: Path) -> None:
    net = stack()
    wanted = [net(x()), net(2 * x()), net(3 * x())]
    weights = [weight.clone() for weight in net.parameters()]
    stored = file_of(net, tmp_path) if where == "file" else {}
    pool = Pool(layers * LAYER, CPU)
    done = offload(net, pool, Rest(CPU, stored=stored, scratch=tmp_path if where != "host" else None))
    assert done.moved == 8 * LAYER and done.stays == 0
    assert torch.equal(net(x()), wanted[0]) and torch.equal(net(2 * x()), wanted[1])
    assert torch.equal(net(3 * x()), wanted[2])
    fewest = 8 if layers >= 8 else 8 + 2 * (8 - layers)
    assert fewest <= pool.tally.loads <= 3 * 8 + 2  # a call may end with loads for the next
    assert 0 < pool.tally.peak <= pool.budget
    assert restore(net) is net and offloaded(net) is None
    assert not net._forward_hooks and not net._forward_pre_hooks
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), weights, strict=True))
    assert torch.equal(net(x()), wanted[0])


def test_layers_that_fit_stay(tmp_path: Path) -> None:
    net = stack(16)
    pool = Pool(8 * LAYER, CPU)
    offload(net, pool, Rest(CPU, scratch=tmp_path))
    for _ in range(4):
        net(x())
    assert pool.tally.loads <= 16 + 3 * 11  # six of the eight places are for layers that stay


def test_weights_at_rest_are_not_there() -> None:
    net = stack()
    offload(net, Pool(3 * LAYER, CPU), Rest(CPU))
    first = net[0]
    assert first.weight.isnan().all() and first.weight.shape == (WIDTH, WIDTH)
    assert first.weight.untyped_storage().nbytes() == 4
    assert net(x()).isfinite().all()


def test_stored_in_another_precision(tmp_path: Path) -> None:
    wide, narrow = stack(), stack().bfloat16()
    stored = file_of(wide, tmp_path)
    wanted = narrow(x().bfloat16())
    offload(wide, Pool(3 * LAYER, CPU), Rest(CPU, torch.bfloat16, stored=stored, trusted=True))
    assert torch.equal(wide(x().bfloat16()), wanted)
    assert next(restore(wide).parameters()).dtype == torch.bfloat16


def test_what_the_file_no_longer_says_is_kept(tmp_path: Path) -> None:
    net = stack()
    stored = file_of(net, tmp_path)
    net[2].weight.mul_(2)
    wanted = net(x())
    offload(net, Pool(3 * LAYER, CPU), Rest(CPU, stored=stored, scratch=tmp_path))
    assert torch.equal(net(x()), wanted)


def test_shared_weights_stay() -> None:
    net = stack(4)
    net[2].weight = net[0].weight
    wanted = net(x())
    done = offload(net, Pool(2 * LAYER, CPU), Rest(CPU))
    assert done.moved == 2 * LAYER and torch.equal(net(x()), wanted)


def test_an_exception_leaves_it_usable(tmp_path: Path) -> None:
    net = stack()
    wanted = net(x())
    offload(net, Pool(3 * LAYER, CPU), Rest(CPU, scratch=tmp_path))
    with pytest.raises(RuntimeError, match="shapes"):
        net(torch.zeros(3, WIDTH + 1))
    for _ in range(3):
        assert torch.equal(net(x()), wanted)


def test_two_networks_share_a_budget(tmp_path: Path) -> None:
    one, two = stack(), stack().double()
    wanted = one(x()), two(x().double())
    pool = Pool(6 * LAYER, CPU)
    offload(one, pool, Rest(CPU, scratch=tmp_path))
    offload(two, pool, Rest(CPU, scratch=tmp_path))
    for _ in range(2):
        assert torch.equal(one(x()), wanted[0]) and torch.equal(two(x().double()), wanted[1])
    assert pool.tally.peak <= pool.budget
    pool.clear()
    assert pool.held == 0


def test_several_threads(tmp_path: Path) -> None:
    net = stack()
    wanted, found = net(x()), []
    offload(net, Pool(4 * LAYER, CPU), Rest(CPU, scratch=tmp_path))
    threads = [
        threading.Thread(target=lambda: found.extend(net(x()) for _ in range(20)), daemon=True)
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 60 and all(torch.equal(out, wanted) for out in found)


def test_a_failing_load_is_told() -> None:
    class Broken:
        nbytes = 8

        def load(self) -> None:
            raise OSError("the disk is gone")

        def drop(self) -> None:
            pass

    pool = Pool(8, CPU)
    unit = Unit("broken", Broken(), 8)
    route = pool.join([unit])
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            pool.enter(unit, route)
    assert pool.held == 0


def test_too_small_and_twice() -> None:
    net = stack()
    with pytest.raises(ValueError, match="a budget of 100 bytes is below the 16,640 of its largest layer"):
        offload(net, Pool(100, CPU), Rest(CPU))
    offload(net, Pool(2 * LAYER, CPU), Rest(CPU, by="First"))
    with pytest.raises(ValueError, match="First and Second both need the slot 'placement': drop one"):
        offload(net, Pool(2 * LAYER, CPU), Rest(CPU, by="Second"))


def test_units() -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), nn.Linear(8, 8), nn.Linear(1, 1))
    names = lambda bucket: [name for name, _ in units_of(net, bucket)[0]]  # noqa: E731
    assert names(600) == ["0", "1"]
    assert names(300) == ["0.0", "0.1", "1", "2"]
    assert [name for _, name in units_of(net, 600)[1]] == ["2.weight", "2.bias"]


class Gated(nn.Module):
    """One layer through a module that is only a name, one whose weights are read without a call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.pool = nn.Module(), Pooling()
        self.inner.proj, self.inner.scale = nn.Linear(8, 8), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.inner.proj(x) * self.inner.scale)


class Pooling(nn.MultiheadAttention):
    def __init__(self) -> None:
        super().__init__(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x, x, x)[0]


@pytest.mark.parametrize("bucket", [10**6, 1000, 300, 1])
def test_units_are_called(bucket: int) -> None:
    torch.manual_seed(0)
    net, called = Gated(), set()
    found, stay = units_of(net, bucket)
    for name, module in found:
        module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
    net(torch.randn(2, 3, 8))
    assert called == {name for name, _ in found} <= {"inner.proj", "pool"}
    assert ("inner.scale" in [name for _, name in stay]) and (bucket > 1000 or called)


def test_single_numbers_rest_too(tmp_path: Path) -> None:
    net = nn.Sequential(nn.PReLU(), nn.Linear(WIDTH, WIDTH)).requires_grad_(False)
    net[0].weight = nn.Parameter(torch.tensor(0.3), requires_grad=False)
    net[1].register_buffer("scale", torch.tensor(3.0))
    wanted = net(x())
    for scratch in (None, tmp_path):
        offload(net, Pool(2 * LAYER, CPU), Rest(CPU, scratch=scratch))
        assert net[1].scale.shape == () and torch.equal(net(x()), wanted)
        assert restore(net)[1].scale == 3


def test_what_stays_begins_where_it_did(tmp_path: Path) -> None:
    """At an odd place in a file; a product may go another way elsewhere, to other last bits."""
    net, other = stack(1), stack(1)
    flat = torch.empty(WIDTH * WIDTH + 4)
    first = next(i for i in range(1, 4) if (flat.data_ptr() + 4 * i) % 64)
    net[0].weight.data = flat[first:][: WIDTH * WIDTH].view(WIDTH, WIDTH).copy_(other[0].weight)
    before = alignment(net[0].weight)
    done = offload(net, Pool(64 * 8 * 2 * LAYER, CPU), Rest(CPU, scratch=tmp_path))
    assert done.moved == 0 and alignment(net[0].weight) == before != 0
    assert torch.equal(net[0].weight, other[0].weight)


def test_mapped_and_scratch(tmp_path: Path) -> None:
    tensors = [torch.arange(7), torch.randn(3, 5), torch.zeros(0, 2), torch.ones(2, 2, dtype=torch.uint8)]
    scratch = Scratch(tmp_path)
    places = scratch.write(tensors)
    for tensor, place in zip(tensors, places, strict=True):
        assert torch.equal(scratch.mapped.tensor(place), tensor)
        scratch.mapped.fetch(place.start, place.start + place.nbytes)
        scratch.mapped.release(place.start, place.start + place.nbytes)
        assert torch.equal(scratch.mapped.tensor(place), tensor)
    assert not list(tmp_path.iterdir())
    file = tmp_path / "bytes"
    file.write_bytes(bytes(3) + torch.tensor([1.5, -2.0]).numpy().tobytes())
    assert Mapped(file).tensor(Place(3, torch.float32, (2,))).tolist() == [1.5, -2.0]  # at an odd place


@pytest.mark.parametrize("beyond", [0, 4, 16, 60])
def test_room_begins_where_it_is_to(beyond: int, tmp_path: Path) -> None:
    room = room_like(torch.zeros(3, 5), torch.float32, CPU, beyond)
    assert room.shape == (3, 5) and alignment(room) == beyond
    scratch = Scratch(tmp_path)
    (place,) = scratch.write([room.fill_(2)])
    assert alignment(scratch.mapped.tensor(place)) == beyond


def test_runs() -> None:
    at = lambda start, size: Place(start, torch.uint8, (size,))  # noqa: E731
    assert list(runs([at(100, 10), at(0, 50)], gap=50)) == [(0, 110)]
    assert list(runs([at(100, 10), at(0, 50)], gap=49)) == [(0, 50), (100, 110)]
    assert list(runs([])) == []


@pytest.mark.skipif(sys.platform != "linux", reason="says which pages are resident")
def test_mapped_weights_are_let_go_of_and_read_again(tmp_path: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    values = torch.arange(1 << 22, dtype=torch.float32)
    (tmp_path / "file").write_bytes(values.numpy().tobytes())
    mapped = Mapped(tmp_path / "file").tensor(Place(0, torch.float32, (1 << 22,)))
    elsewhere = values.clone()
    assert torch.equal(mapped, values)
    before = resident()
    let_go([mapped, elsewhere, values[:1]])
    assert before - resident() > 0.9 * mapped.nbytes
    assert torch.equal(mapped, values) and torch.equal(elsewhere, values)
