"""The loop: progress, cancel, checkpoints, exact resume (also after SIGKILL), branches, and errors."""

from __future__ import annotations

import importlib.util
import itertools
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sfumato.pipelines.checkpoint import Checkpoint
from sfumato.pipelines.errors import NotFinite
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loop import Cancelled, Control, Mismatch
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.pipeline import Pipeline
from sfumato.pipelines.samplers.ddim import Ddim
from sfumato.pipelines.samplers.dpmpp_2m import dpmpp_2m
from sfumato.pipelines.samplers.dpmpp_2m_sde import Dpmpp2mSde
from sfumato.pipelines.samplers.euler_ancestral import EulerAncestral
from sfumato.pipelines.samplers.heun import heun
from sfumato.pipelines.samplers.lcm import lcm
from sfumato.pipelines.samplers.tcd import Tcd
from sfumato.pipelines.samplers.unipc import Unipc
from toys import ToyDenoiser, biases, paths

CHILD = Path(__file__).with_name("killed_child.py")
SAMPLERS = {
    "ddim": Ddim(),
    "ddim_eta": Ddim(0.8),
    "euler_ancestral": EulerAncestral(),
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": Dpmpp2mSde(),
    "unipc2": Unipc(2),
    "unipc3": Unipc(3),
    "lcm": lcm,
    "tcd": Tcd(0.5),
}
TS = [1.0, 0.85, 0.7, 0.5, 0.3, 0.1, 0.0]


def go(sampler, control=None, *, conds=None, seed=4, path="flow", ts=TS):
    noise = SeededNoise.batch(seed, 2, (4, 5, 5))
    pipeline = Pipeline(ToyDenoiser(paths()[path]), sampler, Cfg(2.0))
    return pipeline(noise(), conds or biases(), ts, noise=noise, control=control)


def checkpoints(sampler, **options):
    kept = []
    result = go(sampler, Control(on_checkpoint=kept.append, fingerprint="a"), **options)
    return result, kept


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("step", [1, 3, 5])
def test_resume_from_a_file_gives_the_same_bits(name, step, tmp_path):
    whole, kept = checkpoints(SAMPLERS[name])
    kept[step - 1].save(tmp_path / "c.safetensors")
    loaded = Checkpoint.load(tmp_path / "c.safetensors")
    assert loaded.step == step and loaded.ts == tuple(TS)
    assert torch.equal(go(SAMPLERS[name], Control(fingerprint="a", resume=loaded)), whole)
    assert torch.equal(go(SAMPLERS[name]), whole), "watching a run changed it"


def test_resume_after_sigkill(tmp_path):
    file = tmp_path / "run.safetensors"
    killed = subprocess.run([sys.executable, str(CHILD), str(file), "kill"], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == [file.name], (
        "a killed run leaves its checkpoint and nothing else"
    )
    assert Checkpoint.load(file).step == 4
    spec = importlib.util.spec_from_file_location("killed_child", CHILD)
    child = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(child)
    whole = child.sample(Control())
    resumed = child.sample(Control(fingerprint="run", resume=Checkpoint.load(file)))
    assert torch.equal(resumed, whole)


def test_checkpoint_file_keeps_everything(tmp_path):
    _, kept = checkpoints(Unipc(3))
    before = kept[3]
    before.save(tmp_path / "c")
    after = Checkpoint.load(tmp_path / "c")
    assert torch.equal(after.state.x, before.state.x)
    assert len(after.state.memory) == 4 and all(map(torch.equal, after.state.memory, before.state.memory))
    assert after.state.times == before.state.times and after.ts == before.ts
    assert torch.equal(after.noise, before.noise) and after.fingerprint == "a"


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    _, kept = checkpoints(Ddim())
    kept[0].save(tmp_path / "c")

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("sfumato.pipelines.checkpoint.os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        kept[1].save(tmp_path / "c")
    assert Checkpoint.load(tmp_path / "c").step == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_another_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "c")
    with pytest.raises(ValueError, match="is not a 'sfumato checkpoint 1' file"):
        Checkpoint.load(tmp_path / "c")


def test_resume_of_another_run_names_both():
    _, kept = checkpoints(Ddim())
    with pytest.raises(Mismatch, match="belongs to 'a', this run is 'b'"):
        go(Ddim(), Control(fingerprint="b", resume=kept[1]))
    with pytest.raises(Mismatch, match="times differ"):
        go(Ddim(), Control(fingerprint="a", resume=kept[1]), ts=[1.0, 0.5, 0.0])


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "unipc2"])
def test_branch(name):
    sampler = SAMPLERS[name]
    whole, kept = checkpoints(sampler)
    same = kept[2].branch("b")
    assert torch.equal(go(sampler, Control(fingerprint="b", resume=same)), whole)
    other = go(sampler, Control(fingerprint="b", resume=same), conds=biases(0.9, -0.1))
    assert not torch.equal(other, whole) and torch.isfinite(other).all()
    fresh = kept[2].branch("b", keep_memory=False)
    assert fresh.state.memory == () and not torch.equal(
        go(sampler, Control(fingerprint="b", resume=fresh)), whole
    )
    finer = [*TS[:4], 0.4, 0.3, 0.2, 0.1, 0.0]
    more = go(sampler, Control(fingerprint="b", resume=kept[2].branch("b", ts=finer)), ts=finer)
    assert torch.isfinite(more).all() and not torch.equal(more, whole)
    with pytest.raises(ValueError, match="keeps the times already passed"):
        kept[2].branch("b", ts=[1.0, 0.5, 0.0])


def test_branch_with_another_seed_changes_only_what_is_drawn_later():
    whole, kept = checkpoints(EulerAncestral())
    fresh = SeededNoise.batch(99, 2, (4, 5, 5))
    branch = kept[1].branch("b", noise=fresh)
    states = []
    out = go(EulerAncestral(), Control(fingerprint="b", resume=branch, on_step=states.append))
    assert states[0].step == 3 and not torch.equal(out, whole)
    assert torch.equal(branch.state.x, kept[1].state.x)


@pytest.mark.parametrize("calls", [0, 1, 3, 5, 6, 9])
def test_cancel_is_polled_before_every_network_call_and_can_go_on(calls):
    denoise = ToyDenoiser(paths()["flow"])

    def run(control=None, limit=None):
        noise = SeededNoise.batch(4, 2, (4, 5, 5))
        denoise.keys.clear()
        cancelled = None if limit is None else (lambda: len(denoise.keys) >= limit)
        control = replace(control or Control(), cancelled=cancelled)
        return Pipeline(denoise, heun, Cfg(2.0))(noise(), biases(), TS, noise=noise, control=control)

    whole = run()
    with pytest.raises(Cancelled) as stopped:
        run(limit=calls)
    assert len(denoise.keys) == calls, "a network call was made after the cancel"
    assert stopped.value.checkpoint.step == calls // 2  # heun: two calls a step
    assert torch.equal(run(Control(resume=stopped.value.checkpoint)), whole)


def test_cancel_within_a_stochastic_step_rewinds_the_noise():
    """A step that drew noise and was then cancelled draws the same again."""

    def greedy(predict, state, t, u, path, noise):
        drawn = noise()  # before the network call, where the cancel comes
        return replace_x(state, path.alpha(u) * predict(state.x, t).x0 + path.sigma(u) * drawn)

    def replace_x(state, x):
        return state._replace(x=x)

    whole, polls = go(greedy), []

    def cancelled():
        polls.append(1)
        return len(polls) > 6

    with pytest.raises(Cancelled) as stopped:
        go(greedy, Control(cancelled=cancelled))
    assert 0 < stopped.value.checkpoint.step < 6
    assert torch.equal(go(greedy, Control(resume=stopped.value.checkpoint)), whole)


def test_events():
    events = []
    shown = []

    def render(x0):
        shown.append(x0)
        return x0.mul(0).byte()

    result = go(Ddim(), Control(on_step=events.append, render=render))
    assert [e.step for e in events] == [1, 2, 3, 4, 5, 6] and {e.steps for e in events} == {6}
    assert [e.t for e in events] == TS[1:]
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(events))
    assert events[0].eta > 0 and events[-1].eta == 0
    assert torch.equal(events[-1].x, result) and torch.equal(events[-1].x0, result)
    assert shown == [], "a preview nobody asked for was computed"
    assert events[2].preview().dtype == torch.uint8 and len(shown) == 1
    with pytest.raises(ValueError, match="no preview"):
        replace(events[0], render=None).preview()


def test_checkpoints_come_every_k_steps_and_at_the_end():
    steps = []
    go(Ddim(), Control(on_checkpoint=lambda c: steps.append(c.step), checkpoint_every=4))
    assert steps == [4, 6]
    with pytest.raises(ValueError, match="checkpoint_every must be 1 or more, got 0"):
        Control(checkpoint_every=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_name_the_step(bad):
    class Broken(ToyDenoiser):
        def __call__(self, x, t, *conds):
            answers = super().__call__(x, t, *conds)
            return [p._replace(x0=p.x0 + bad) if t < 0.6 else p for p in answers]

    noise = SeededNoise.batch(4, 1, (4, 5, 5))
    kept = []
    with pytest.raises(NotFinite, match=r"step 4 of 6 \(t 0.5 to 0.3\) gave .* of 100"):
        Pipeline(Broken(paths()["flow"]), Ddim(), Cfg(1.0))(
            noise(), biases(), TS, noise=noise, control=Control(on_checkpoint=kept.append)
        )
    assert kept[-1].step == 3


def test_bad_times_and_missing_noise():
    for ts in ([1.0], [0.0, 1.0], [1.0, 1.0, 0.0], [float("nan"), 0.0]):
        with pytest.raises(ValueError, match="falling times"):
            go(Ddim(), ts=ts)
    x = torch.zeros(1, 4, 5, 5)
    with pytest.raises(ValueError, match="this sampler draws noise"):
        Pipeline(ToyDenoiser(paths()["flow"]), EulerAncestral(), Cfg(1.0))(x, biases(), TS)
    assert Pipeline(ToyDenoiser(paths()["flow"]), Ddim(), Cfg(1.0))(x, biases(), TS).shape == x.shape
