"""SwiftDiffusion: nothing before the step, the merged model after it, and the network as it was in the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import relative
from patched import broken, traceless
from safetensors.torch import save_file
from sfumato.kernels.offload import offloaded
from sfumato.pipelines.converts.compile import Compile
from sfumato.pipelines.converts.lora import Lora
from sfumato.pipelines.converts.svdquant import SvdQuant
from sfumato.pipelines.errors import BadInput, BadWeights
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.loop import Cancelled, Control
from sfumato.pipelines.loras import Loras
from sfumato.pipelines.patches import _incoming as incoming
from sfumato.pipelines.patches._incoming import Incoming
from sfumato.pipelines.patches.swiftdiffusion import SwiftDiffusion
from sfumato.pipelines.placement import offload_model
from sfumato.pipelines.protocols import Model
from sfumato.pipelines.samplers.heun import heun
from sfumato.pipelines.text_to_image import TextToImage
from torch import Tensor, nn

STEPS = 4
ENDS = ("to_q", "to_k", "to_out.0", "conv1", "proj_in", "norm_out.linear")


def lora_file(net: nn.Module, file: Path, seed: int, part: str = "unet", *, dora: bool = False) -> Path:
    """Random factors of rank 3 on many layers, convolutions too."""
    rng, state = torch.Generator().manual_seed(seed), {}
    for name, layer in net.named_modules():
        if not name.endswith(ENDS) or not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        if dora and isinstance(layer, nn.Conv2d):
            continue
        shape = layer.weight.shape
        down = torch.randn(3, *shape[1:], generator=rng) / shape[1:].numel() ** 0.5
        state[f"{part}.{name}.lora_A.weight"] = down
        state[f"{part}.{name}.lora_B.weight"] = torch.randn(
            shape[0], 3, *[1] * (len(shape) - 2), generator=rng
        )
        if dora:
            state[f"{part}.{name}.lora_magnitude_vector"] = 1.3 * layer.weight.detach().norm(dim=1)
    assert state
    save_file(state, file)
    return file


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("swift")
    net = open_model(tiny_models.stable_diffusion(home / "sd")).denoise.net
    lora_file(net, home / "ink.safetensors", 1)
    lora_file(net, home / "oil.safetensors", 2)
    lora_file(net, home / "dora.safetensors", 3, dora=True)
    return home


@pytest.fixture
def model(home: Path) -> Model:
    return open_model(home / "sd")


def ink(home: Path, weight: float = 0.7) -> tuple[tuple[str, float], ...]:
    return ((str(home / "ink.safetensors"), weight),)


def made(model: Model, *patches: Any, control: Control | None = None, **more: Any) -> Tensor:
    make = TextToImage(model, guidance=Cfg(4.0), patches=patches, **more)
    return make("a red cube", width=64, height=64, steps=STEPS, seed=3, control=control).latents


@contextmanager
def seen(net: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """The weight of a layer, call by call of the network."""
    found: list[Tensor] = []
    layer: Any = net.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda *_: found.append(layer.weight.clone()))
    try:
        yield found
    finally:
        handle.remove()


LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def test_before_the_step_and_after_it(model: Model, home: Path) -> None:
    """Closed form: W, then W + 0.7 up down; two of them, one after the other."""
    net: Any = model.denoise.net
    from safetensors.torch import load_file

    bare = net.get_submodule(LAYER).weight.detach().clone()
    wanted = bare.clone()
    for name, weight in (("ink", 0.7), ("oil", -0.4)):
        state = load_file(home / f"{name}.safetensors")
        up, down = (state[f"unet.{LAYER}.lora_{end}.weight"] for end in "BA")
        wanted += weight * up @ down
    loras = (*ink(home), (str(home / "oil.safetensors"), -0.4))
    with seen(net, LAYER) as weights:
        made(model, SwiftDiffusion(2, loras))
    assert len(weights) == STEPS
    assert all(torch.equal(weight, bare) for weight in weights[:2])
    assert all(relative(weight, wanted) < 1e-6 for weight in weights[2:])


@pytest.mark.parametrize("name", ["ink", "dora"])
def test_at_0_is_the_merged_model(model: Model, home: Path, name: str) -> None:
    file = str(home / f"{name}.safetensors")
    plain, late = made(model), made(model, SwiftDiffusion(0, ((file, 0.7),)))
    assert relative(late, plain) > 0.02
    merged = open_model(home / "sd")
    Lora(file, 0.7)(merged.denoise.net)
    assert relative(late, made(merged)) < 1e-5
    live = Loras(model)
    live.add("own", file)
    live.weigh({"own": 0.7})
    assert relative(late, made(model)) < 1e-4


def test_each_step_counts(model: Model, home: Path) -> None:
    """The earlier they join, the nearer to the model with them; never joined is the model without."""
    full = made(model, SwiftDiffusion(0, ink(home)))
    far = [relative(made(model, SwiftDiffusion(at, ink(home))), full) for at in (1, 2, 3)]
    assert 0 < far[0] < far[1] < far[2] < relative(made(model), full)


def test_neutral_repeated_and_gone(model: Model, home: Path) -> None:
    net, plain = model.denoise.net, made(model)
    late = SwiftDiffusion(1, ink(home))
    with traceless(net):
        for off in (SwiftDiffusion(), SwiftDiffusion(1, ink(home, 0.0)), SwiftDiffusion(None)):
            assert torch.equal(made(model, off), plain)
        felt = made(model, late)
        assert torch.equal(made(model, late), felt)
        two = TextToImage(model, guidance=Cfg(4.0), patches=(late,))(
            "a red cube", width=64, height=64, steps=STEPS, seed=3, count=2
        ).latents
        assert relative(two[:1], felt) < 1e-4
        with pytest.raises(ZeroDivisionError), late(net):
            raise ZeroDivisionError
        with broken(net), pytest.raises(ZeroDivisionError):
            made(model, SwiftDiffusion(0, ink(home)))
    assert torch.equal(made(model), plain)
    assert not [thread for thread in threading.enumerate() if "incoming" in thread.name]


def test_steps_not_calls_are_counted(model: Model, home: Path) -> None:
    """Heun evaluates twice in a step."""
    with seen(model.denoise.net, LAYER) as weights:
        made(model, SwiftDiffusion(2, ink(home)), sampler=heun)
    changed = [not torch.equal(weight, weights[0]) for weight in weights]
    assert changed == [False] * 4 + [True] * (len(changed) - 4)


def test_without_a_loop_they_act_at_once(model: Model, home: Path) -> None:
    net: Any = model.denoise.net
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 24)
    with torch.no_grad(), seen(net, LAYER) as weights, SwiftDiffusion(3, ink(home))(net):
        net(x, 500, text)
    assert relative(weights[0], net.get_submodule(LAYER).weight.detach()) > 0.1


def slow(monkeypatch: pytest.MonkeyPatch, until: threading.Event, looks: list[bool]) -> None:
    """Reading takes until the event; it polls as the reader of files does."""
    own = incoming.read_lora

    def waiting(*given: Any) -> Any:
        while not until.wait(0.01):
            incoming.poll()
        looks.append(True)
        return own(*given)

    monkeypatch.setattr(incoming, "read_lora", waiting)


def test_a_fixed_step_is_waited_for(model: Model, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long reading takes, the bits are the same."""
    late, until, looks = SwiftDiffusion(1, ink(home)), threading.Event(), []
    wanted = made(model, late)
    slow(monkeypatch, until, looks)
    timer = threading.Timer(0.5, until.set)
    timer.start()
    began = time.perf_counter()
    assert torch.equal(made(model, late), wanted)
    assert time.perf_counter() - began >= 0.4
    assert looks == [True]


def test_as_soon_as_ready(model: Model, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for before the last step; the step is told, and makes the same picture when it is given."""
    until, looks, joined = threading.Event(), [], []
    slow(monkeypatch, until, looks)

    def on_step(event: Any) -> None:
        if event.step == 2:
            until.set()
            while not looks:
                time.sleep(0.01)
            time.sleep(0.3)  # so that the rest is done too

    whenever = SwiftDiffusion(None, ink(home), lambda step, arrived: joined.append(step))
    found = made(model, whenever, control=Control(on_step=on_step))
    assert joined == [2]
    assert torch.equal(made(model, SwiftDiffusion(2, ink(home))), found)
    until.clear()
    timer = threading.Timer(0.5, until.set)
    timer.start()
    last = made(model, whenever)
    assert joined == [2, STEPS - 1]
    assert torch.equal(made(model, SwiftDiffusion(STEPS - 1, ink(home))), last)


def test_cancelled_while_loading(model: Model, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run stops at the step it waits before, the thread too; it goes on from there to the same bits."""
    late, until, looks = SwiftDiffusion(2, ink(home)), threading.Event(), []
    wanted = made(model, late)
    stop = threading.Event()
    with monkeypatch.context() as patch, traceless(model.denoise.net):
        slow(patch, until, looks)
        timer = threading.Timer(0.5, stop.set)
        timer.start()
        with pytest.raises(Cancelled) as cancelled:
            made(model, late, control=Control(cancelled=stop.is_set))
    assert cancelled.value.checkpoint.step == 2
    assert not looks
    assert not [thread for thread in threading.enumerate() if "incoming" in thread.name]
    assert torch.equal(made(model, late, control=Control(resume=cancelled.value.checkpoint)), wanted)


def test_every_kind_of_weight(home: Path) -> None:
    """Packed and offloaded layers get thin products; the same picture within what packing loses."""
    full = made(open_model(home / "sd"), SwiftDiffusion(1, ink(home)))
    lying = open_model(home / "sd")
    offload_model(lying, 200_000)
    assert offloaded(lying.denoise.net) is not None
    assert relative(made(lying, SwiftDiffusion(1, ink(home))), full) < 1e-4
    packed = open_model(home / "sd")
    SvdQuant(rank=2, inputs=0, bits=8, smallest=64)(packed.denoise.net)
    bare, late = made(packed), made(packed, SwiftDiffusion(1, ink(home)))
    assert relative(late, full) < 0.1 * relative(bare, full)
    assert torch.equal(made(packed), bare)
    with pytest.raises(BadInput, match=r"packed or offloaded, and DoRA rescales"):
        made(packed, SwiftDiffusion(1, ((str(home / "dora.safetensors"), 1.0),)))


def test_a_transformer(home: Path, tmp_path: Path) -> None:
    flux = open_model(tiny_models.flux(tmp_path / "flux"))
    file = lora_file(flux.denoise.net, tmp_path / "flux.safetensors", 4, "transformer")
    loras = ((str(file), 1.0),)
    full = made(flux, SwiftDiffusion(0, loras))
    Lora(str(file))(flux.denoise.net)
    assert relative(made(flux), full) < 1e-5


@pytest.mark.slow
def test_compiled_blocks_take_no_new_graphs(model: Model, home: Path) -> None:
    from torch._dynamo.utils import counters

    wanted = made(model, SwiftDiffusion(2, ink(home)))
    Compile("eager")(model.denoise.net)
    made(model)
    before = counters["stats"]["unique_graphs"]
    assert relative(made(model, SwiftDiffusion(2, ink(home))), wanted) < 1e-5
    assert counters["stats"]["unique_graphs"] == before


def test_refused(model: Model, home: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at must be 0 or more, got -1"):
        SwiftDiffusion(-1)
    with pytest.raises(ValueError, match="weight of a must be in"):
        SwiftDiffusion(1, (("a", 101.0),))
    with pytest.raises(RuntimeError, match="enter"):
        Incoming(model.denoise.net, ink(home)).wait()
    bad = tmp_path / "bad.safetensors"
    save_file({"unet.nothing.lora_A.weight": torch.ones(1, 1)}, bad)
    with traceless(model.denoise.net):
        with pytest.raises(BadInput, match="at = 4 must be below the 4 steps"):
            made(model, SwiftDiffusion(4, ink(home)))
        with pytest.raises(BadWeights):
            made(model, SwiftDiffusion(1, ((str(bad), 1.0),)))
        with pytest.raises(BadInput, match="there is no file"):
            made(model, SwiftDiffusion(1, ((str(tmp_path / "none.safetensors"), 1.0),)))
