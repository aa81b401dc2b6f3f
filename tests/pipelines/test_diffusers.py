"""Agreement with diffusers' schedulers: the same network, noise and times give the same latents."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from sfumato.pipelines.loop import run
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.paths import flow, step_of, vp_from_config
from sfumato.pipelines.protocols import Pred
from sfumato.pipelines.samplers.ddim import Ddim
from sfumato.pipelines.samplers.dpmpp_2m import dpmpp_2m
from sfumato.pipelines.samplers.dpmpp_2m_sde import Dpmpp2mSde
from sfumato.pipelines.samplers.euler_ancestral import EulerAncestral
from sfumato.pipelines.samplers.heun import heun
from sfumato.pipelines.samplers.lcm import lcm
from sfumato.pipelines.samplers.tcd import Tcd
from sfumato.pipelines.samplers.unipc import Unipc
from sfumato.pipelines.schedules.custom import Custom
from sfumato.pipelines.schedules.exponential import Exponential
from sfumato.pipelines.schedules.flow_shift import FlowShift
from sfumato.pipelines.schedules.karras import Karras
from sfumato.pipelines.schedules.uniform import Uniform
from torch import nn
from toys import SD

SHAPE = (2, 4, 8, 8)
SEEDS = (7, 8)


class Net(nn.Module):
    """A small random convolutional network of the latents and the training step."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a, self.b = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)
        self.requires_grad_(False)

    def forward(self, x, step):
        h = self.a(x) + math.sin(step / 150)
        return self.b(torch.tanh(h)) + 0.5 * x


NET = Net()
NET64 = Net().double()


def theirs(scheduler, *, start=None, **step_options):
    """diffusers' loop; `generator` in the options stands for one generator per image."""
    generators = [torch.Generator().manual_seed(s) for s in SEEDS]
    x = torch.stack([torch.randn(SHAPE[1:], generator=g) for g in generators])
    x = x * (scheduler.init_noise_sigma if start is None else start)
    if step_options.get("generator"):
        step_options["generator"] = generators
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(NET(scaled, float(t)), t, x, **step_options).prev_sample
    return x


def eps_predict(path):
    def predict(x, t):
        a, s = path.alpha(t), path.sigma(t)
        eps = NET(x, step_of(path, t))
        return Pred((x - s * eps) / a, eps)

    return predict


def flow_predict(path):
    def predict(x, t):
        s = path.sigma(t)
        v = NET(x, 1000 * s)
        return Pred(x - s * v, x + (1 - s) * v)

    return predict


def ours(sampler, predict, ts, path, start=1.0):
    noise = SeededNoise(SEEDS, SHAPE[1:])
    return run(sampler, predict, start * noise(), ts, path, noise=noise)


def close(got, want, rel=1e-4):
    assert torch.isfinite(want).all()
    gap = float((got - want).abs().max() / want.abs().max())
    assert gap < rel, gap


@pytest.mark.parametrize(
    "spacing, steps", [("leading", 7), ("leading", 20), ("trailing", 1), ("trailing", 20)]
)
@pytest.mark.parametrize("to_one", [True, False])
def test_ddim(spacing, to_one, steps):
    """diffusers steps from t to t - N // steps, so for trailing the steps must divide N for the two to be one thing."""
    config = SD | {"set_alpha_to_one": to_one}
    scheduler = DDIMScheduler(**config, clip_sample=False, timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(steps)
    path = vp_from_config(config)
    close(ours(Ddim(), eps_predict(path), Uniform(spacing)(steps, path), path), theirs(scheduler))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 30, 1000])
def test_uniform_has_the_training_steps_of_ddim(spacing, steps):
    scheduler = DDIMScheduler(**SD, timestep_spacing=spacing, steps_offset=0)
    scheduler.set_timesteps(steps)
    path = vp_from_config(SD)
    ts = Uniform(spacing, offset=0)(steps, path)
    assert [round(t * 1000) - 1 for t in ts[:-1]] == scheduler.timesteps.tolist()


def test_ddim_with_eta():
    scheduler = DDIMScheduler(**SD, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    path = vp_from_config(SD)
    close(
        ours(Ddim(0.7), eps_predict(path), Uniform()(10, path), path),
        theirs(scheduler, eta=0.7, generator=True),
    )


def test_ddim_in_double_precision():
    """With diffusers' table in double precision the two agree to rounding."""
    scheduler = DDIMScheduler(**SD, clip_sample=False, timestep_spacing="trailing")
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(10)
    path = vp_from_config(SD)
    start = SeededNoise(SEEDS, SHAPE[1:], dtype=torch.float64)()
    want = start
    for t in scheduler.timesteps:
        want = scheduler.step(NET64(want, float(t)), t, want).prev_sample

    def predict(x, t):
        eps = NET64(x, round(step_of(path, t)))
        return Pred((x - path.sigma(t) * eps) / path.alpha(t), eps)

    close(run(Ddim(), predict, start, Uniform()(10, path), path), want, 1e-8)


def test_ddim_with_zero_terminal_snr():
    config = SD | {"rescale_betas_zero_snr": True}
    scheduler = DDIMScheduler(
        **config, clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction"
    )
    scheduler.set_timesteps(5)
    path = vp_from_config(config)

    def predict(x, t):
        a, s = path.alpha(t), path.sigma(t)
        v = NET(x, step_of(path, t))
        return Pred(a * x - s * v, s * x + a * v)

    close(ours(Ddim(), predict, Uniform()(5, path), path), theirs(scheduler))


@pytest.mark.parametrize(
    "schedule, options",
    [
        (Uniform("leading"), {"timestep_spacing": "leading", "steps_offset": 1}),
        (Uniform("trailing"), {"timestep_spacing": "trailing"}),
        (Karras(), {"use_karras_sigmas": True}),
        (Exponential(), {"use_exponential_sigmas": True}),
    ],
    ids=["leading", "trailing", "karras", "exponential"],
)
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_euler_and_heun(name, schedule, options):
    """diffusers works on x / alpha; its start noise times alpha is ours."""
    make, sampler = {"euler": (EulerDiscreteScheduler, Ddim()), "heun": (HeunDiscreteScheduler, heun)}[name]
    scheduler = make(**SD, **options)
    scheduler.set_timesteps(8)
    path = vp_from_config(SD)
    ts = schedule(8, path)
    start = path.alpha(ts[0]) * float(scheduler.init_noise_sigma)
    close(ours(sampler, eps_predict(path), ts, path, start), theirs(scheduler))


def test_euler_ancestral():
    scheduler = EulerAncestralDiscreteScheduler(**SD, timestep_spacing="trailing")
    scheduler.set_timesteps(8)
    path = vp_from_config(SD)
    ts = Uniform()(8, path)
    start = path.alpha(ts[0]) * float(scheduler.init_noise_sigma)
    close(ours(EulerAncestral(), eps_predict(path), ts, path, start), theirs(scheduler, generator=True))


@pytest.mark.parametrize(
    "schedule, steps",
    [("trailing", 1), ("trailing", 6), ("trailing", 20), ("karras", 6), ("karras", 20), ("exponential", 12)],
)
@pytest.mark.parametrize("name", ["2m", "sde", "unipc2"])
def test_multistep_solvers(name, schedule, steps):
    """Karras: diffusers asks the network at rounded (2M) or truncated training steps, so ours is asked there too."""
    options = {"trailing": {"timestep_spacing": "trailing"}}.get(schedule, {f"use_{schedule}_sigmas": True})
    if name.startswith("unipc"):
        scheduler = UniPCMultistepScheduler(
            **SD, **options, solver_order=int(name[-1]), final_sigmas_type="zero"
        )
        sampler = Unipc(int(name[-1]))
    else:
        kind = {"2m": "dpmsolver++", "sde": "sde-dpmsolver++"}[name]
        scheduler = DPMSolverMultistepScheduler(**SD, **options, algorithm_type=kind)
        sampler = {"2m": dpmpp_2m, "sde": Dpmpp2mSde()}[name]
    scheduler.set_timesteps(steps)
    path = vp_from_config(SD)
    ts = {"trailing": Uniform(), "karras": Karras(), "exponential": Exponential()}[schedule](steps, path)
    asked = iter(scheduler.timesteps.tolist())

    def predict(x, t):
        step = next(asked)
        assert abs(step - step_of(path, t)) < 1.01
        eps = NET(x, step)
        return Pred((x - path.sigma(t) * eps) / path.alpha(t), eps)

    want = theirs(scheduler, generator=True) if name == "sde" else theirs(scheduler)
    close(ours(sampler, predict, ts, path), want, 2e-4)


@pytest.mark.parametrize("order", [2, 3])
def test_unipc_without_the_final_lowering(order):
    """All steps but the last, which is first order in both: diffusers' order 3 falls to 2 one step before."""
    scheduler = UniPCMultistepScheduler(
        **SD,
        timestep_spacing="trailing",
        solver_order=order,
        lower_order_final=False,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(10)
    path = vp_from_config(SD)
    ts = Uniform()(10, path)
    x = SeededNoise(SEEDS, SHAPE[1:])()
    for t in scheduler.timesteps[:-1]:
        x = scheduler.step(NET(x, float(t)), t, x).prev_sample
    close(ours(Unipc(order), eps_predict(path), ts[:-1], path), x, 2e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", ["2m", "sde", "unipc2"])
def test_multistep_solvers_on_flow(name, shift):
    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    if name == "unipc2":
        scheduler, sampler = UniPCMultistepScheduler(**options, final_sigmas_type="zero"), Unipc(2)
    elif name == "sde":
        scheduler, sampler = (
            DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **options),
            Dpmpp2mSde(),
        )
    else:
        scheduler, sampler = DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", **options), dpmpp_2m
    scheduler.set_timesteps(12)
    path = flow()
    ts = Custom(tuple(scheduler.sigmas.double().tolist()), "flow")(12, path)
    start = float(scheduler.init_noise_sigma)
    asked = iter(scheduler.timesteps.tolist())

    def predict(x, t):
        v = NET(x, next(asked))
        return Pred(x - t * v, x + (1 - t) * v)

    want = theirs(scheduler, generator=True) if name == "sde" else theirs(scheduler)
    close(ours(sampler, predict, ts, path, start), want, 2e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_euler(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(9)
    path = flow(shift)
    ts = Uniform("linspace")(9, path)
    torch.testing.assert_close(
        torch.tensor([path.sigma(t) for t in ts]), scheduler.sigmas, rtol=1e-5, atol=1e-6
    )
    close(ours(Ddim(), flow_predict(path), ts, path), theirs(scheduler, start=1.0))


def test_flow_match_euler_with_the_shift_of_a_resolution():
    """FLUX: even sigmas, shift exp(mu) with mu linear in the tokens."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, shift_terminal=0.02)
    tokens = 1536
    mu = 0.5 + (1.15 - 0.5) / (4096 - 256) * (tokens - 256)
    scheduler.set_timesteps(sigmas=[1 - i / 9 for i in range(9)], mu=mu)
    path = flow()
    ts = FlowShift(tokens=tokens, terminal=0.02)(9, path)
    torch.testing.assert_close(torch.tensor(ts), scheduler.sigmas, rtol=1e-5, atol=1e-6)
    close(ours(Ddim(), flow_predict(path), ts, path), theirs(scheduler, start=1.0))


@pytest.mark.parametrize("option, schedule", [("karras", Karras), ("exponential", Exponential)])
def test_flow_match_euler_with_sigma_schedules(option, schedule):
    scheduler = FlowMatchEulerDiscreteScheduler(**{f"use_{option}_sigmas": True})
    scheduler.set_timesteps(9)
    path = flow()
    ts = schedule()(9, path)
    torch.testing.assert_close(torch.tensor(ts), scheduler.sigmas, rtol=1e-5, atol=1e-6)


def test_flow_match_heun():
    scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(7)
    path = flow()
    sigmas = list(dict.fromkeys(scheduler.sigmas.double().tolist()))
    ts = Custom(tuple(sigmas), "flow")(len(sigmas) - 1, path)
    asked = iter(scheduler.timesteps.tolist())

    def predict(x, t):
        v = NET(x, next(asked))
        return Pred(x - t * v, x + (1 - t) * v)

    x = SeededNoise(SEEDS, SHAPE[1:])()
    for t in scheduler.timesteps:
        x = scheduler.step(NET(x, float(t)), t, x).prev_sample
    close(ours(heun, predict, ts, path), x)


def test_lcm():
    scheduler = LCMScheduler(**SD, clip_sample=False)
    scheduler.set_timesteps(4)
    path = vp_from_config(SD)
    ts = Custom(tuple(scheduler.timesteps.tolist()), "step")(4, path)
    close(ours(lcm, eps_predict(path), ts, path), theirs(scheduler, generator=True))


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_tcd(gamma):
    """diffusers ends at training step 0, whatever set_alpha_to_one says."""
    scheduler = TCDScheduler(**SD, clip_sample=False)
    scheduler.set_timesteps(4)
    path = vp_from_config(SD | {"set_alpha_to_one": False})
    ts = Custom(tuple(scheduler.timesteps.tolist()), "step")(4, path)
    close(ours(Tcd(gamma), eps_predict(path), ts, path), theirs(scheduler, eta=gamma, generator=True))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_the_tables_are_diffusers_own(schedule, zero_snr):
    config = SD | {"beta_schedule": schedule, "rescale_betas_zero_snr": zero_snr}
    table = DDIMScheduler(**config).alphas_cumprod.double()
    path = vp_from_config(config)
    got = torch.tensor([path.alpha((k + 1) / 1000) ** 2 for k in range(1000)], dtype=torch.float64)
    torch.testing.assert_close(got, table, rtol=1e-9, atol=1e-15)
