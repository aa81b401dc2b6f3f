"""The choice of an attention kernel inside networks of every family."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from agreement import relative
from patched import traceless
from sfumato.app.builder import build
from sfumato.app.chosen import Technique
from sfumato.kernels.attention import choice, int8
from sfumato.pipelines.errors import NoSite
from sfumato.pipelines.patches.attention import Attention
from sfumato.pipelines.protocols import Patch
from sfumato.pipelines.sites import attention_modules
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
