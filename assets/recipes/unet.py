"""Train `still-life-unet`: an eps-prediction UNet in Stable Diffusion 1.5's layout, text to image and inpainting.

x_t = sqrt(a_t) z + sqrt(1 - a_t) noise on Stable Diffusion's scaled-linear schedule, the network learns the noise
(arXiv:2112.10752, eq. 2). As in Stable Diffusion's inpainting checkpoints it sees, beside x_t, a mask and the latents
of the picture with a grey hole; for text to image the hole is the whole picture. An error of the noise counts by what
it costs the velocity (1 + 1 / SNR), up to a cap: unweighted, the late times, where the layout is settled, hardly
count. The text encoder is CLIP's architecture and learns to read before all else; a tenth of the captions is dropped
for classifier-free guidance.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from . import networks, reading
from .captions import draw, tokenizer_for, wordings
from .fitting import Fit, best_device, fit
from .latents import encoded, encoded_pictures
from .muon import Muon, muon_groups
from .pool import Pool, crowded
from .text import tokenize

BATCH = 64
HOLES = 0.3
"""Share of the batch that is inpainting; of the rest all is repainted."""
WEIGHT_CAP = 20.0
PLAIN = ("embedding", "conv_in", "conv_out")


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule; samples are not clipped, and steps begin at the last time, which is almost noise."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


class Unet(nn.Module):
    """The trainable parts together: UNet and text encoder."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        start, end, vocab = tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)
        self.unet: UNet2DConditionModel = networks.unet()
        self.text: CLIPTextModel = networks.clip(vocab, start, end, width=networks.TEXT_WIDTH, layers=2)

    def begin(self, folder: Path) -> None:
        """Take over the weights of an earlier model's folder."""
        for name, part, kind in (
            ("unet", self.unet, UNet2DConditionModel),
            ("text_encoder", self.text, CLIPTextModel),
        ):
            part.load_state_dict(kind.from_pretrained(folder / name, dtype=torch.float32).state_dict())

    def forward(self, x: Tensor, step: Tensor, ids: Tensor) -> Tensor:
        """Noise in x [B,33,h,w], latents with mask and hole beside them, at train steps [B] given token ids [B,T]."""
        return self.unet(x, step, self.text(ids).last_hidden_state, return_dict=False)[0]


class Holes(NamedTuple):
    """Of each scene one mask [N,1,h,w] in latent cells (1 = repaint), and latents [N,16,h,w] of the rest; float16."""

    masks: Tensor
    latents: Tensor


def hole(seed: int, side: int) -> Tensor:
    """A mask [1,side,side] of one rectangle or ellipse, mostly about the middle, where the things are."""
    dice = Random(f"hole {seed}")
    cx, cy = (dice.gauss(0.5, 0.18) * side for _ in range(2))
    rx, ry = (dice.uniform(0.12, 0.42) * side for _ in range(2))
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    u, v = (x - cx) / rx, (y - cy) / ry
    inside = u.abs().maximum(v.abs()) <= 1 if dice.random() < 0.5 else u**2 + v**2 <= 1
    return inside[None].float()


def holes(work: Path, vae: AutoencoderKL, data: Pool) -> Holes:
    """One hole in each of the pool's pictures, made once and kept on disk."""
    file = work / f"crowded-holes-{len(data)}.pt"
    if not file.exists():
        side, masks = data.images.shape[1], []

        def holed(index: Tensor) -> Tensor:
            here = torch.stack([hole(int(i), side) for i in index])
            masks.append(F.interpolate(here, scale_factor=1 / 8).half())
            return torch.where(here > 0, 0.5, data.batch(index))

        latents = encoded_pictures(vae, holed, len(data))
        torch.save(tuple(Holes(torch.cat(masks), latents)), file)
    return Holes(*torch.load(file, weights_only=True))


def train(work: Path, *, minutes: float, scenes: int = 16384, start: Path | None = None) -> Unet:
    """Train on `work`'s pool and autoencoder; the averaged weights are returned and stay in `work/unet-run`.

    An earlier run goes on; a new one begins with the weights in the folder `start`, if given.
    """
    data, place = crowded(work, scenes), best_device()
    vae = AutoencoderKL.from_pretrained(work / "vae")
    z = encoded(work, vae, data, "crowded").to(place)
    masks, rest = (part.to(place) for part in holes(work, vae, data))
    grey = encoded_pictures(vae, lambda index: torch.full((len(index), 3, *data.images.shape[1:3]), 0.5), 1)
    grey = grey.to(place).float()
    tokenizer = tokenizer_for(work, data)
    known = wordings(work, tokenizer, data).to(place)
    nothing = tokenize(tokenizer, [""], networks.TEXT_TOKENS)[0].to(place)
    alphas = scheduler().alphas_cumprod.to(place)
    torch.manual_seed(3)
    model = Unet(tokenizer).to(place, memory_format=torch.channels_last)
    if start:
        model.begin(start)
    if not (work / "unet-run" / "stable.pt").exists():
        reader = reading.Reader(
            model.text, lambda ids: model.text(ids).last_hidden_state, networks.TEXT_WIDTH
        )
        reading.teach(reader.to(place), work, tokenizer, data, minutes=minutes, folder=work / "unet-reading")

    def loss(step: int, rng: torch.Generator) -> dict[str, Tensor]:
        drawn = draw(known, nothing, BATCH, rng)
        clean = z[drawn.scene].float()
        noise = torch.randn(clean.shape, generator=rng, device=place)
        whole = (torch.rand(BATCH, generator=rng, device=place) >= HOLES).view(-1, 1, 1, 1)
        mask = torch.where(whole, 1.0, masks[drawn.scene].float())
        beside = torch.cat([mask, torch.where(whole, grey, rest[drawn.scene].float())], 1)
        k = torch.randint(len(alphas), (BATCH,), generator=rng, device=place)
        a = alphas[k].view(-1, 1, 1, 1)
        x = torch.cat([a.sqrt() * clean + (1 - a).sqrt() * noise, beside], 1)
        error = (model(x, k, drawn.ids) - noise).square().mean((1, 2, 3))
        weight = (1 / alphas[k]).clamp(max=WEIGHT_CAP)
        return {"loss": (weight * error).mean(), "error": error.mean()}

    optimiser = Muon(muon_groups(model, plain=PLAIN), weight_decay=0.01)
    return fit(model, optimiser, loss, Fit(minutes, lr=2e-3, ema=0.999, warmup=200), work / "unet-run").cpu()
