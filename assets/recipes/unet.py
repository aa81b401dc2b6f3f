"""Train `still-life-unet`: an eps-prediction UNet in Stable Diffusion 1.5's layout, on text to image.

x_t = sqrt(a_t) z + sqrt(1 - a_t) noise on Stable Diffusion's scaled-linear schedule, the network learns the noise
(arXiv:2112.10752, eq. 2), each step weighted by min(SNR, 5) / SNR (arXiv:2303.09556). The text encoder is CLIP's
architecture; a tenth of the captions is dropped for classifier-free guidance.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from . import networks
from .fitting import Fit, best_device, fit
from .flow import draw, tokenizer_for, wordings
from .latents import encoded
from .muon import Muon, muon_groups
from .pool import pool
from .text import tokenize

BATCH = 64
SNR_CAP = 5.0
PLAIN = ("embedding", "conv_in", "conv_out")


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule; samples are not clipped and the last step ends on the data."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )


class Unet(nn.Module):
    """The trainable parts together: UNet and text encoder."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        start, end, vocab = tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)
        self.unet: UNet2DConditionModel = networks.unet()
        self.text: CLIPTextModel = networks.clip(vocab, start, end, width=networks.TEXT_WIDTH, layers=2)

    def forward(self, x: Tensor, step: Tensor, ids: Tensor) -> Tensor:
        """Noise in x [B,16,h,w] at train steps [B] given token ids [B,T]."""
        return self.unet(x, step, self.text(ids).last_hidden_state, return_dict=False)[0]


def train(work: Path, *, minutes: float, scenes: int = 16384) -> Unet:
    """Train on `work`'s pool and autoencoder; the averaged weights are returned and stay in `work/unet-run`."""
    data, place = pool(work, scenes), best_device()
    z = encoded(work, AutoencoderKL.from_pretrained(work / "vae"), data, "train").to(place)
    tokenizer = tokenizer_for(work, data)
    known = wordings(work, tokenizer, data).to(place)
    empty = tokenize(tokenizer, [""], networks.TEXT_TOKENS)[0].to(place)
    alphas = scheduler().alphas_cumprod.to(place)
    torch.manual_seed(3)
    model = Unet(tokenizer).to(place, memory_format=torch.channels_last)

    def loss(step: int, rng: torch.Generator) -> dict[str, Tensor]:
        index, ids = draw(known, empty, BATCH, rng)
        clean = z[index].float()
        noise = torch.randn(clean.shape, generator=rng, device=place)
        k = torch.randint(len(alphas), (BATCH,), generator=rng, device=place)
        a = alphas[k].view(-1, 1, 1, 1)
        error = (model(a.sqrt() * clean + (1 - a).sqrt() * noise, k, ids) - noise).square().mean((1, 2, 3))
        snr = alphas[k] / (1 - alphas[k])
        weight = snr.clamp(max=SNR_CAP) / snr
        return {"loss": (weight * error).mean(), "error": error.mean()}

    optimiser = Muon(muon_groups(model, plain=PLAIN), weight_decay=0.01)
    return fit(model, optimiser, loss, Fit(minutes, lr=2e-3, ema=0.999, warmup=200), work / "unet-run").cpu()
