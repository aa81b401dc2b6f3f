"""Train `still-life`: a flow-matching transformer in Flux's architecture with its text encoders, on text to image.

x_t = (1 - t) z + t noise, the network learns noise - z (arXiv:2209.03003, eq. 1), t is logit-normal
(arXiv:2403.03206, section 3.1). A tenth of the captions is dropped for classifier-free guidance. Prompts are padded to
a length that changes from batch to batch, since Flux attends to padding without a mask.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel

from ..still_life.grammar import caption
from . import networks
from .fitting import Fit, best_device, fit
from .latents import encoded
from .muon import Muon, muon_groups
from .pool import Pool, pool
from .text import learn, tokenize

BATCH = 64
DROP = 0.1
WORDINGS = 8
PLAIN = ("shared", "embedding", "relative_attention", "x_embedder", "norm_out", "proj_out.weight", "final")


class Flow(nn.Module):
    """The trainable parts together: transformer, sequence encoder, pooled encoder."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        start, end, vocab = tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)
        self.transformer: FluxTransformer2DModel = networks.flow_transformer()
        self.sequence: T5EncoderModel = networks.t5(vocab, end, end)
        self.pooled: CLIPTextModel = networks.clip(vocab, start, end, width=networks.POOLED_WIDTH, layers=1)

    def forward(self, x: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Velocity for packed latents x [B,L,64] at times t [B] given token ids [B,T]."""
        side = int(x.shape[1] ** 0.5)
        return self.transformer(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=self.sequence(ids)[0],
            pooled_projections=self.pooled(ids).pooler_output,
            txt_ids=torch.zeros(ids.shape[1], 3, device=x.device),
            img_ids=grid(side, side).to(x.device),
            return_dict=False,
        )[0]


def grid(rows: int, columns: int) -> Tensor:
    """Flux's image positions [rows * columns, 3]: (0, row, column)."""
    r, c = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(r), r, c], -1).view(-1, 3).float()


def pack(z: Tensor) -> Tensor:
    """Latents [B,C,H,W] to tokens [B,(H/2)(W/2),4C] in Flux's order."""
    b, c, h, w = z.shape
    return z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def tokenizer_for(work: Path, data: Pool) -> CLIPTokenizer:
    """The tokenizer in `work/tokenizer`, learned from the pool's captions if it is not there yet."""
    folder = work / "tokenizer"
    if not folder.exists():
        learn(caption(s, seed=i) for i, s in enumerate(data.scenes[:4096])).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def wordings(work: Path, tokenizer: CLIPTokenizer, data: Pool) -> Tensor:
    """Token ids [N, WORDINGS, TEXT_TOKENS] of several captions of each scene, int16, kept on disk."""
    file = work / f"wordings-{len(data)}.pt"
    if not file.exists():
        rows = []
        for i, scene in enumerate(data.scenes):
            captions = [caption(scene, seed=i * WORDINGS + k) for k in range(WORDINGS)]
            rows.append(tokenize(tokenizer, captions, networks.TEXT_TOKENS).short())
        torch.save(torch.stack(rows), file)
    return torch.load(file, weights_only=True)


def ids_for(known: Tensor, index: Tensor, empty: Tensor, rng: torch.Generator) -> Tensor:
    """One wording of each scene, a share `DROP` of them empty; padded to the longest, every fourth batch in full.

    Padded lengths are multiples of 8, so that a batch has few shapes.
    """
    place = rng.device
    pick = torch.randint(known.shape[1], (len(index),), generator=rng, device=place)
    ids = known[index, pick].long()
    dropped = torch.rand(len(index), generator=rng, device=place) < DROP
    ids = torch.where(dropped[:, None], empty, ids)
    if torch.rand((), generator=rng, device=place) < 0.25:
        return ids
    used = (ids != empty[-1]).sum(1).amax() + 1
    return ids[:, : int(-(-used // 8) * 8)]


def train(work: Path, *, minutes: float, scenes: int = 16384) -> Flow:
    """Train on `work`'s pool and autoencoder; the averaged weights are returned and stay in `work/flow-run`."""
    data, place = pool(work, scenes), best_device()
    z = encoded(work, AutoencoderKL.from_pretrained(work / "vae"), data, "train").to(place)
    tokenizer = tokenizer_for(work, data)
    known = wordings(work, tokenizer, data).to(place)
    empty = tokenize(tokenizer, [""], networks.TEXT_TOKENS)[0].to(place)
    torch.manual_seed(1)
    model = Flow(tokenizer).to(place)

    def loss(step: int, rng: torch.Generator) -> dict[str, Tensor]:
        index = torch.randint(len(data), (BATCH,), generator=rng, device=place)
        clean = pack(z[index].float())
        noise = torch.randn(clean.shape, generator=rng, device=place)
        t = torch.randn(BATCH, generator=rng, device=place).sigmoid()
        ids = ids_for(known, index, empty, rng)
        x = torch.lerp(clean, noise, t.view(-1, 1, 1))
        error = (model(x, t, ids) - (noise - clean)).square().mean((1, 2))
        return {"loss": error.mean(), "late": error[t > 0.7].mean(), "early": error[t < 0.3].mean()}

    optimiser = Muon(muon_groups(model, plain=PLAIN), weight_decay=0.01)
    settings = Fit(minutes, lr=1.5e-3, ema=0.999, warmup=200)
    return fit(model, optimiser, loss, settings, work / "flow-run").cpu()
