"""Blocks compiled ahead of time: torch's answers at all sizes, patches seen, and code of others never opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import relative
from safetensors.torch import save_file
from sfumato.pipelines.converts import _ahead as ahead
from sfumato.pipelines.converts._ahead import Store, key
from sfumato.pipelines.converts._compiled import taken_off
from sfumato.pipelines.converts._repeated import regions
from sfumato.pipelines.converts.compile import Compile
from sfumato.pipelines.converts.lora import Lora
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.patches.attention import Attention
from sfumato.pipelines.patches.swiftdiffusion import SwiftDiffusion
from sfumato.pipelines.sites import swap
from tiny_nets import Tiny, tiny
from torch import Tensor

FAMILY = "pixart"


def called(model: Tiny, *patches: Any, larger: int = 0, batch: int = 1) -> Tensor:
    shape = (*model.shape[:-2], model.shape[-2] + larger, model.shape[-1] + larger)
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
    with ExitStack() as stack, torch.no_grad():
        for patch in patches:
            stack.enter_context(patch(model.denoise.net))
        return torch.cat([pred.x0 for pred in model.denoise(x, 0.6, model.conds[0])])


@contextmanager
def broken(net: Any) -> Iterator[None]:
    """Torch can't compute a block."""
    own = regions(net)[0]
    kind: Any = type(own.get_submodule("ff"))

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    with swap(kind, "forward", fail):
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """With what a family of transformers repeats."""
    store, model = Store(tmp_path_factory.mktemp("own") / "compiled"), tiny(FAMILY)
    made = store.make(
        model.denoise.net, lambda: called(model, larger=2, batch=2), lambda: called(model, larger=6)
    )
    assert [one.why for one in made] == [""], "one kind of block"
    return store


@pytest.mark.slow
def test_the_same_answers_at_all_sizes(store: Store) -> None:
    model = tiny(FAMILY)
    plain = [called(model, larger=larger, batch=batch) for larger, batch in ((0, 1), (4, 3), (6, 2))]
    assert Compile("ahead", store=store)(model.denoise.net) is model.denoise.net
    for wanted, (larger, batch) in zip(plain, ((0, 1), (4, 3), (6, 2)), strict=True):
        assert relative(called(model, larger=larger, batch=batch), wanted) < 1e-5
    with broken(model.denoise.net):  # all of it is compiled: nothing within a block is called
        assert relative(called(model), plain[0]) < 1e-5


@pytest.mark.slow
def test_weights_are_the_networks_own(store: Store) -> None:
    """Changed in place they act at once, also after compiling; other weights of the same shape share the code."""
    model, plain = tiny(FAMILY), tiny(FAMILY)
    Compile("ahead", store=store)(model.denoise.net)
    for net in (model.denoise.net, plain.denoise.net):
        with torch.no_grad():
            for weight in net.parameters():
                weight.mul_(1.1)
    assert relative(called(model), called(plain)) < 1e-5


@pytest.mark.slow
def test_what_acts_within_a_block_is_not_passed_by(store: Store, tmp_path: Path) -> None:
    model, plain = tiny(FAMILY), tiny(FAMILY)
    Compile("ahead", store=store)(model.denoise.net)
    name = next(n for n, m in plain.denoise.net.named_modules() if n.endswith("attn1.to_q"))
    width = len(plain.denoise.net.get_submodule(name).weight)
    factors = {end: torch.randn(*shape) for end, shape in (("A", (2, width)), ("B", (width, 2)))}
    file = tmp_path / "ink.safetensors"
    save_file({f"transformer.{name}.lora_{end}.weight": value for end, value in factors.items()}, file)
    before = called(model)
    for patch in (Attention("linear"), SwiftDiffusion(0, ((str(file), 1.0),))):
        wanted = called(plain, patch)
        assert relative(wanted, called(plain)) > 1e-3
        assert relative(called(model, patch), wanted) < 1e-5
        assert torch.equal(called(model), before)
    for one in (model, plain):
        Lora(str(file))(one.denoise.net)
    assert relative(called(model), called(plain)) < 1e-5
    assert relative(called(model), before) > 1e-3


@pytest.mark.slow
def test_code_that_others_could_have_written_is_refused(store: Store) -> None:
    model = tiny(FAMILY)
    file = next(store.folder.glob("*.pt2"))
    for place in (file, store.folder):
        mode = place.stat().st_mode
        place.chmod(mode | 0o022)
        try:
            with pytest.raises(BadInput, match="could have been written by others, and opening it runs code"):
                Compile("ahead", store=store)(model.denoise.net)
        finally:
            place.chmod(mode)
    assert os.stat(store.folder).st_mode & 0o077 == 0
    assert not any("forward" in vars(module) for module in model.denoise.net.modules())


@pytest.mark.slow
def test_it_can_be_taken_off(store: Store) -> None:
    """As before weights are offloaded, of which the code would know nothing."""
    net = Compile("ahead", store=store)(tiny(FAMILY).denoise.net)
    assert taken_off(net)
    assert not any("forward" in vars(module) for module in net.modules())


def test_a_name_says_what_it_was_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    net: Any = tiny(FAMILY).denoise.net
    first, second = regions(net)[:2]
    name = key(net, first)
    assert name == key(net, second) == key(tiny(FAMILY).denoise.net, first)
    other: Any = tiny("sana").denoise.net
    assert key(other, regions(other)[0]) != name
    half = tiny(FAMILY).denoise.net.half()
    assert key(half, regions(half)[0]) != name
    monkeypatch.setattr(ahead, "version", lambda package: "9.9")
    assert key(net, first) != name
    monkeypatch.undo()
    monkeypatch.setattr(ahead, "processor", lambda: "another")
    assert key(net, first) != name


def test_refused(tmp_path: Path) -> None:
    net = tiny(FAMILY).denoise.net
    with pytest.raises(ValueError, match="backend ahead needs a store"):
        Compile("ahead")(net)
    with pytest.raises(
        ValueError, match=r"nothing was compiled ahead for this network .* `sfumato models compile"
    ):
        Compile("ahead", store=Store(tmp_path))(net)
