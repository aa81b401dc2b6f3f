"""The choice of an attention kernel inside networks of every family."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
import torch
from agreement import relative
from patched import traceless
from sfumato.app.builder import build
from sfumato.app.chosen import Technique
from sfumato.kernels.attention import choice, dispatch, int8
from sfumato.kernels.attention.call import Backend, Call, Preparation, nothing, unmasked
from sfumato.pipelines.errors import NoSite
from sfumato.pipelines.patches.attention import Attention
from sfumato.pipelines.protocols import Patch
from sfumato.pipelines.sites import attention, attention_modules
from tiny_nets import FAMILIES, Tiny, tiny
from tiny_unets import NAMES, tiny_unet
from torch import Tensor

NETWORKS = (*FAMILIES, *NAMES)
MASKED = ("sana", "lumina_next", "hunyuan_video")
"""All of their softmax attention has a mask, which only exact backends take."""


def opened(name: str) -> Tiny:
    return tiny(name) if name in FAMILIES else tiny_unet(name)


def called(model: Tiny, *patches: Patch, count: int = 1, seed: int = 0) -> Tensor:
    x, t = model.noise(seed, count), 0.6
    with ExitStack() as stack, torch.no_grad():
        for patch in patches:
            stack.enter_context(patch(model.denoise.net))
        return torch.cat([pred.x0 for pred in model.denoise(x, t, *model.conds)])


@pytest.mark.parametrize("name", NETWORKS)
def test_every_family(name: str) -> None:
    model = opened(name)
    net, plain = model.denoise.net, called(model)
    with traceless(net):
        assert torch.equal(called(model, Attention("sdpa")), plain)
        if not torch.cuda.is_available():
            assert relative(called(model, Attention()), plain) < 1e-5, "auto takes exact backends alone"
        if int8.available() is None:
            ours = called(model, Attention("native"))
            assert relative(ours, plain) < 1e-5
            assert torch.equal(called(model, Attention("native")), ours)
        dense = called(model, Attention("dense"))
        assert relative(dense, plain) < 1e-4
        assert torch.equal(called(model, Attention("dense")), dense)
        tiles = called(model, Attention("tiles"))
        assert relative(tiles, plain) < 1e-4, "few tokens are one tile, and that is kept"
        linear = called(model, Attention("linear"))
        assert bool(linear.isfinite().all())
        assert torch.equal(linear, plain) if name in MASKED else relative(linear, plain) > 1e-4
        two = called(model, Attention("dense"), count=2, seed=3)
        ones = [called(model, Attention("dense"), seed=s) for s in (3, 4)]
        assert relative(two, torch.stack(ones, 1).flatten(0, 1)) < 1e-4
        with pytest.raises(ZeroDivisionError), Attention("dense")(net):
            raise ZeroDivisionError
    assert torch.equal(called(model), plain)


@pytest.mark.skipif(int8.available() is not None, reason=str(int8.available()))
@pytest.mark.parametrize("name", ["flux", "pixart", "sd", "wan"])
def test_in_8_bits_and_what_it_can_not_serve(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choice, "_told", set())
    caplog.set_level(logging.WARNING, "sfumato")
    model = opened(name)
    plain, ours = called(model), called(model, Attention("int8"))
    assert 0 < relative(ours, plain) < 0.05
    masked = [text for text in caplog.messages if "takes no mask or bias" in text]
    assert len(masked) == (1 if name == "pixart" else 0), "its prompts are masked, and that is said once"
    assert torch.equal(called(model, Attention("int8", smallest=10**6)), plain)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> list[Preparation | None]:
    """Triton's kernels as backends for what Triton's interpreter takes, where there is no GPU; notes what they take."""
    pytest.importorskip("triton")
    seen: list[Preparation | None] = []

    def watched(backend: Backend) -> Backend:
        def prepared(call: Call, before: Preparation) -> Tensor:
            seen.append(before)
            assert backend.prepared is not None
            return backend.prepared(call, before)

        def run(call: Call) -> Tensor:
            seen.append(None)
            return backend.run(call)

        return backend._replace(lacking=nothing, refuses=unmasked, run=run, prepared=prepared)

    for name in ("triton-int8", "triton-fp8"):
        here = f"{name} here"
        monkeypatch.setitem(dispatch.BACKENDS, here, watched(dispatch.BACKENDS[name])._replace(name=here))
    return seen


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize(("name", "layers"), [("flux", (2, 2)), ("flux2", (2, 2)), ("qwen_image", (0, 0))])
def test_norm_and_positions_within_the_kernel(
    name: str, layers: tuple[int, int], interpreted: list[Preparation | None]
) -> None:
    """Layers of FLUX's form hand them over, text and picture each with its own norm; others run as ever."""
    model = opened(name)
    net = model.denoise.net
    norms = [part for part in net.modules() if isinstance(part, torch.nn.RMSNorm)]
    for at, part in enumerate(norms):  # each another
        part.weight.copy_(torch.linspace(-2, 2, part.weight.numel()).roll(at))
    plain = called(model, Attention("dense"))
    for backend, most in (("triton-int8 here", 0.02), ("triton-fp8 here", 0.05)):
        interpreted.clear()
        with traceless(net):
            ours = called(model, Attention(backend))
        assert 0 < relative(ours, plain) < most
        streams = [len(before.norms) for before in interpreted if before is not None]
        calls = len(interpreted) // max(1, sum(layers))
        assert (streams.count(2), streams.count(1)) == tuple(calls * n for n in layers)
        assert (None in interpreted) == (name == "qwen_image")


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_what_is_not_taken_with_its_norm_and_positions_is_computed_as_it_was(
    interpreted: list[Preparation | None],
) -> None:
    model = opened("flux")
    plain, net = called(model), model.denoise.net
    assert torch.equal(called(model, Attention("triton-int8 here", smallest=10**6)), plain)

    layer = net.single_transformer_blocks[0].attn
    x = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    for given in (
        {"attention_mask": (torch.arange(6) > 2).view(1, 1, 1, 6)},
        {"image_rotary_emb": None, "unknown": 1},
    ):
        with torch.no_grad():
            wanted = layer(x, **given)
            interpreted.clear()
            with Attention("triton-int8 here")(net):
                assert relative(layer(x, **given), wanted) < 0.05
            assert not any(interpreted), "a mask is not taken at all, the other without preparation"
    layer.norm_k = torch.nn.LayerNorm(16)
    assert relative(called(model, Attention("triton-int8 here")), called(model)) < 0.02
    assert None in interpreted and any(interpreted)


@pytest.mark.parametrize("taken", ["triton-int8 here", "sdpa"])
def test_auto_takes_it_with_norm_and_positions(
    taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interpreted: list[Preparation | None]
) -> None:
    monkeypatch.setattr(choice, "folder", lambda: tmp_path)
    monkeypatch.setattr(choice, "_known", {})
    monkeypatch.setattr(choice, "_measured", lambda backend, call: float(backend.name != taken))
    model = opened("flux")
    plain, ours = called(model), called(model, Attention(error=0.05))
    assert torch.equal(ours, plain) == (taken == "sdpa")
    assert relative(ours, plain) < 0.02 and bool(interpreted) == (taken != "sdpa")
    assert None not in interpreted


def test_between_two_techniques_each_sees_what_it_would(interpreted: list[Preparation | None]) -> None:
    """One that changes q, which was there before: q comes to it normed and turned."""
    model = opened("flux2")

    class Sharper:
        def __call__(self, net: torch.nn.Module) -> AbstractContextManager[None]:
            return attention(net, lambda layer, q, k, v, attend: attend(3 * q, k, v))

    ours = called(model, Sharper(), Attention("triton-int8 here"))
    assert relative(ours, called(model, Sharper())) < 0.02 < relative(ours, called(model))
    assert not any(interpreted)


def test_sites_by_kind_and_by_name() -> None:
    model = opened("sd")
    plain = called(model)
    whole, kinds = called(model, Attention("linear")), {}
    for site in ("self", "cross"):
        kinds[site] = called(model, Attention("linear", (site,)))
        assert relative(kinds[site], plain) > 1e-4 and relative(kinds[site], whole) > 1e-4
    names = tuple(name for name, _ in attention_modules(model.denoise.net) if "attn1" in name)
    assert names and torch.equal(called(model, Attention("linear", names)), kinds["self"])
    assert torch.equal(called(model, Attention("linear", ("*.attn1",))), kinds["self"])


@pytest.mark.parametrize("backend", ["linear", "sdpa", "auto"])
def test_sites_that_are_not_there_are_refused(backend: str) -> None:
    model = opened("sd")
    with pytest.raises(
        NoSite, match=r"sites nothing\*, joint fit no layer; there are cross and self, named down_"
    ):
        called(model, Attention(backend, ("nothing*", "joint")))
    called(model, Attention(backend, ("nothing*", "self")))


def test_auto_may_take_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if int8.available() is not None:
        pytest.skip(str(int8.available()))
    monkeypatch.setattr(choice, "folder", lambda: tmp_path)
    monkeypatch.setattr(choice, "_known", {})
    monkeypatch.setattr(choice, "_measured", lambda backend, call: float(backend.name != "int8"))
    model = opened("flux")
    assert torch.equal(called(model, Attention(error=0.1)), called(model, Attention("int8")))
    assert relative(called(model, Attention(error=0.01)), called(model)) < 1e-6


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backend": "fast"}, "backend must be auto or one of sdpa"),
        ({"error": -1}, "error must be 0 or more, got -1"),
        ({"smallest": 0}, "smallest must be 1 or more, got 0"),
    ],
)
def test_refused(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build(Technique(id="attention", settings=settings))


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is lacking without CUDA")
def test_a_backend_that_can_not_run_here_is_refused_before_the_first_step() -> None:
    with pytest.raises(ValueError, match=r"^attention by flash needs .*; take auto or sdpa"):
        called(opened("flux"), Attention("flash"))
    with pytest.raises(ValueError, match="has no site 'attention'"), Attention()(torch.nn.Linear(2, 2)):
        pass
