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

from ..still_life.scene import Scene
from . import networks
from .fitting import Fit, best_device, fit
from .muon import Muon, muon_groups
from .pool import Pool, pool
from .tasks import PICTURES, bundle

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


@torch.no_grad()
def whiten(vae: AutoencoderKL, data: Pool, count: int = 512) -> None:
    """Give every latent channel the same spread by rescaling the two convolutions around the latent, in place.

    Pictures decode as before; a generator then meets all channels at one noise level. `scaling_factor` is what is left.
    """
    count = min(count, len(data))
    pieces = [data.batch(torch.arange(a, min(a + 32, count))) * 2 - 1 for a in range(0, count, 32)]
    z = torch.cat([vae.encode(x).latent_dist.mean for x in pieces])
    spread = z.std((0, 2, 3))
    out, into, channels = vae.encoder.conv_out, vae.decoder.conv_in, len(spread)
    out.weight[:channels] /= spread.view(-1, 1, 1, 1)
    out.bias[:channels] /= spread
    out.bias[channels:] -= 2 * spread.log()
    into.weight *= spread.view(1, -1, 1, 1)
    z = z / spread.view(1, -1, 1, 1)
    vae.register_to_config(scaling_factor=1 / float(z.std()), shift_factor=float(z.mean()))


def other_pictures(scenes: list[Scene], seeds: list[int]) -> Tensor:
    """One of the tasks' other pictures of each scene: a depth map, line art, a picture with a hole ..."""
    pictures = bundle(scenes, seeds, device=best_device()).pictures
    names = [name for name in PICTURES if name != "rgb"]
    return torch.stack([pictures[names[seed % len(names)]][i] for i, seed in enumerate(seeds)])


def train(work: Path, *, minutes: float, every_task: bool, scenes: int = 16384) -> AutoencoderKL:
    """Train and save to `work/vae` as a diffusers folder with `report.json` beside it.

    With `every_task` half of a batch are the pictures of the other tasks.
    """
    data, place = pool(work, scenes), best_device()
    others = pool(work, scenes // 2, name="others", draw=other_pictures) if every_task else None
    torch.manual_seed(0)
    vae = networks.vae().to(place, memory_format=torch.channels_last)
    optimiser = Muon(muon_groups(vae, plain=PLAIN), weight_decay=0.0)

    def loss(step: int, rng: torch.Generator) -> dict[str, Tensor]:
        index = torch.randint(len(data), (BATCH,), generator=rng, device=place)
        images = data.batch(index)
        if others is not None:
            images[::2] = others.batch(index[::2] % len(others))
        x = images.mul_(2).sub_(1).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng, device=place)
        y = vae.decode(posterior.mean + posterior.std * noise).sample
        square, absolute = (y - x).square().mean(), (y - x).abs().mean()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return {"loss": square + 0.1 * absolute + KL_WEIGHT * kl, "square": square, "kl": kl}

    best = fit(vae, optimiser, loss, Fit(minutes, lr=2e-3, ema=0.998, warmup=100), work / "vae-run").cpu()
    held_out = pool(work, 256, split="test", first_seed=1_000_000)
    whiten(best, data)
    report = {"psnr_db": round(psnr(best, held_out), 2)}
    best.to(memory_format=torch.contiguous_format).save_pretrained(work / "vae")
    (work / "vae" / "report.json").write_text(json.dumps(report) + "\n")
    print(report, flush=True)
    return best
