"""Stopping where no loop of ours runs: every text encoder polls before its call, and loading before each part."""

from __future__ import annotations

import pytest
import tiny_models
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.stopping import Stopped, poll, stoppable
from sfumato.pipelines.text_to_image import TextToImage


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.flux(tmp_path_factory.mktemp("models") / "flux")


class After:
    """True from the n-th question on."""

    def __init__(self, answers: int) -> None:
        self.left = answers

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_nobody_asks_outside():
    with stoppable(lambda: True):
        with pytest.raises(Stopped):
            poll()
        with stoppable(lambda: False):
            poll()
    poll()


def test_two_encoders_are_two_calls(folder):
    model = open_model(folder)
    calls: list[str] = []
    for name in ("text_encoder", "text_encoder_2"):
        net = model.parts[name].net
        net.register_forward_hook(lambda *_, name=name: calls.append(name))
    asked = 0
    for answers in range(20):
        calls.clear()
        try:
            with stoppable(After(answers)):
                TextToImage(model).encode("a cube", negative="metal")
        except Stopped:
            asked += 1
            assert len(calls) <= answers
            continue
        break
    assert set(calls) == {"text_encoder", "text_encoder_2"}
    assert asked >= len(calls), "between any two calls there is a question"


def test_loading_asks_before_each_part(folder):
    reached = 0
    for answers in range(20):
        try:
            with stoppable(After(answers)):
                open_model(folder)
        except Stopped:
            reached += 1
            continue
        break
    assert reached == 4, "transformer, autoencoder and two text encoders"


def test_a_stop_leaves_nothing_behind(folder):
    model = open_model(folder)
    make = TextToImage(model)
    before = make("a cube", width=64, height=64, steps=1, seed=1).pixels
    with pytest.raises(Stopped), stoppable(lambda: True):
        make("a cube", width=64, height=64, steps=1, seed=1)
    assert make("a cube", width=64, height=64, steps=1, seed=1).pixels.equal(before)
