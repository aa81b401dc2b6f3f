"""Train the shared autoencoder: reconstruction of rendered scenes with a light KL term.

The loss is squared error (what PSNR measures) plus a little absolute error for crisp edges. Latents are noised in
training by their own posterior, so that the decoder forgives a generator's small errors.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from . import networks
from .fitting import Fit, best_device, fit
from .muon import Muon, muon_groups
from .pool import Pool, pool

KL_WEIGHT = 2e-5
BATCH = 4
PLAIN = ("conv_in", "decoder.conv_out")


def psnr(vae: AutoencoderKL, data: Pool, count: int = 256) -> float:
    """Mean over images of the peak signal-to-noise ratio of a round trip, in dB."""
    values = []
    with torch.inference_mode():
        for at in range(0, count, 32):
            x = data.batch(torch.arange(at, min(at + 32, count)))
            y = vae.decode(vae.encode(x * 2 - 1).latent_dist.mean).sample.div(2).add(0.5).clamp(0, 1)
            y = y.mul(255).round().div(255)
            values.append(-10 * (x - y).square().mean((1, 2, 3)).log10())
    return float(torch.cat(values).mean())


def statistics(vae: AutoencoderKL, data: Pool, count: int = 512) -> tuple[float, float]:
    """Mean and standard deviation of the latents: the shift and the inverse scale of the saved model."""
    with torch.inference_mode():
        z = torch.cat(
            [
                vae.encode(data.batch(torch.arange(a, a + 32)) * 2 - 1).latent_dist.mean
                for a in range(0, count, 32)
            ]
        )
    return float(z.mean()), float(z.std())


def train(work: Path, *, minutes: float, scenes: int = 16384) -> AutoencoderKL:
    """Train and save to `work/vae` as a diffusers folder with `report.json` beside it."""
    data = pool(work, scenes)
    torch.manual_seed(0)
    place = best_device()
    vae = networks.vae().to(place, memory_format=torch.channels_last)
    optimiser = Muon(muon_groups(vae, plain=PLAIN), weight_decay=0.0)

    def loss(step: int, rng: torch.Generator) -> dict[str, Tensor]:
        index = torch.randint(len(data), (BATCH,), generator=rng, device=place)
        x = data.batch(index).mul_(2).sub_(1).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng, device=place)
        y = vae.decode(posterior.mean + posterior.std * noise).sample
        square, absolute = (y - x).square().mean(), (y - x).abs().mean()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return {"loss": square + 0.1 * absolute + KL_WEIGHT * kl, "square": square, "kl": kl}

    best = fit(vae, optimiser, loss, Fit(minutes, lr=2e-3, ema=0.998, warmup=100), work / "vae-run").cpu()
    held_out = pool(work, 256, split="test", first_seed=1_000_000)
    shift, std = statistics(best, data)
    best.register_to_config(scaling_factor=1 / std, shift_factor=shift)
    report = {"psnr_db": round(psnr(best, held_out), 2), "shift": shift, "std": std}
    best.to(memory_format=torch.contiguous_format).save_pretrained(work / "vae")
    (work / "vae" / "report.json").write_text(json.dumps(report) + "\n")
    print(report, flush=True)
    return best
