"""Train `still-life`: a flow-matching transformer in Flux's architecture with its text encoders.

x_t = (1 - t) z + t noise, the network learns noise - z (arXiv:2209.03003, eq. 1), t is logit-normal
(arXiv:2403.03206, section 3.1) and mostly late: with so few latents, what stands where is settled above t = 0.7.
A tenth of the captions is dropped for classifier-free guidance. Prompts are padded to a length that changes from batch
to batch, since Flux attends to padding without a mask. The sequence encoder learns to read before all else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel

from ..still_life.grammar import caption
from . import networks, reading, truth
from .bank import Bank, bank
from .captions import draw, tokenizer_for, wordings
from .fitting import Fit, best_device, fit
from .latents import encoded
from .learning.microdit import MicroDit
from .learning.repa import Repa
from .muon import Muon, muon_groups
from .passing import Passed, Prompt, forward
from .pool import Pool, crowded, pool
from .tasks import TASKS
from .text import tokenize

BATCH = 64
GPU_BATCH = 256
LATE = 1.0
"""Mean of the times' logit, whose deviation is 1."""
EVEN = 0.1
"""Share of the times drawn evenly instead."""
PLAIN = ("shared", "embedding", "relative_attention", "x_embedder", "norm_out", "proj_out.weight", "final")


class Flow(nn.Module):
    """The trainable parts together: transformer, sequence encoder, pooled encoder, and a projector if it is aligned."""

    def __init__(self, tokenizer: CLIPTokenizer, *, aligned: bool = False) -> None:
        super().__init__()
        start, end, vocab = tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)
        self.transformer: FluxTransformer2DModel = networks.flow_transformer()
        self.sequence: T5EncoderModel = networks.t5(vocab, end, end)
        self.pooled: CLIPTextModel = networks.clip(vocab, start, end, width=networks.POOLED_WIDTH, layers=1)
        width = self.transformer.config.num_attention_heads * self.transformer.config.attention_head_dim
        layers = nn.Linear(width, width), nn.SiLU(), nn.Linear(width, truth.WIDTH)
        self.projector = nn.Sequential(*layers if aligned else ())

    def begin(self, folder: Path) -> None:
        """Take over the weights of an earlier model's folder."""
        parts = {
            "transformer": (self.transformer, FluxTransformer2DModel),
            "text_encoder_2": (self.sequence, T5EncoderModel),
            "text_encoder": (self.pooled, CLIPTextModel),
        }
        for name, (part, kind) in parts.items():
            part.load_state_dict(kind.from_pretrained(folder / name, dtype=torch.float32).state_dict())

    def forward(
        self, x: Tensor, t: Tensor, ids: Tensor, context: Sequence[Tensor] = (), keep: Tensor | None = None
    ) -> Passed:
        """Velocity for packed latents x [B,L,64] at times t [B], given token ids [B,T] and clean pictures [B,L,64].

        A context picture's tokens follow x with its number (1 and up) as the first coordinate of their positions.
        `keep` are the indices of x's tokens that the later blocks see.
        """
        side, own = int(x.shape[1] ** 0.5), x.shape[1]
        positions = torch.cat([grid(side, side, k) for k in range(1 + len(context))]).to(x.device)
        prompt = Prompt(self.sequence(ids)[0], self.pooled(ids).pooler_output)
        if keep is not None:
            rest = torch.arange(own, own * (1 + len(context)), device=x.device)
            keep, own = torch.cat([keep, rest]), len(keep)
        passed = forward(self.transformer, torch.cat([x, *context], 1), t, prompt, positions, keep)
        return Passed(passed.v[:, :own], passed.hidden[:, :own])


def grid(rows: int, columns: int, picture: int = 0) -> Tensor:
    """Flux's image positions [rows * columns, 3]: (picture, row, column)."""
    r, c = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.full_like(r, picture), r, c], -1).view(-1, 3).float()


def times(batch: int, rng: torch.Generator) -> Tensor:
    """Times [B] to train at."""
    t = (LATE + torch.randn(batch, generator=rng, device=rng.device)).sigmoid()
    even = torch.rand(2, batch, generator=rng, device=rng.device)
    return torch.where(even[0] < EVEN, even[1], t)


def pack(z: Tensor) -> Tensor:
    """Latents [B,C,H,W] to tokens [B,(H/2)(W/2),4C] in Flux's order."""
    b, c, h, w = z.shape
    return z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def stock_for(
    work: Path, data: Pool, tokenizer: CLIPTokenizer, place: torch.device, *, every_task: bool
) -> Bank:
    """What a run trains on: the whole mixture, or text to image alone."""
    vae = AutoencoderKL.from_pretrained(work / "vae")
    if every_task:
        return bank(work, vae, tokenizer, data.scenes, place)
    z = encoded(work, vae, data, "crowded").to(place)
    return Bank({"rgb": z}, {"text-to-image": wordings(work, tokenizer, data).to(place)})


def train(
    work: Path,
    *,
    minutes: float,
    every_task: bool,
    scenes: int = 16384,
    repa: Repa | None = None,
    microdit: MicroDit | None = None,
    start: Path | None = None,
    run: str = "flow-run",
) -> Flow:
    """Train on `work`'s pool and autoencoder; the averaged weights are returned and stay in `work/<run>`.

    Text to image alone, or with `every_task` the whole mixture of `tasks.py`. An earlier run goes on; a new one begins
    with the weights in the folder `start`, if given.
    """
    data, place = crowded(work, scenes), best_device()
    tokenizer = tokenizer_for(work, data)
    nothing = tokenize(tokenizer, [""], networks.TEXT_TOKENS)[0].to(place)
    stock = stock_for(work, data, tokenizer, place, every_task=every_task)
    forms = truth.truth(work, data).to(place) if repa else None
    batch = BATCH if place.type == "cpu" else GPU_BATCH
    shares = torch.tensor([TASKS[name].share for name in stock.ids])
    torch.manual_seed(1)
    model = Flow(tokenizer, aligned=repa is not None).to(place)
    if start:
        model.begin(start)
    if not (work / run / "stable.pt").exists():
        reader = reading.Reader(model.sequence, lambda ids: model.sequence(ids)[0], networks.TEXT_WIDTH)
        reading.teach(
            reader.to(place), work, tokenizer, data, minutes=minutes, folder=work / f"{run}-reading"
        )

    def loss(step: int, rng: torch.Generator) -> dict[str, Tensor]:
        name = list(stock.ids)[
            int(torch.multinomial(shares, 1, generator=torch.Generator().manual_seed(step)))
        ]
        task = TASKS[name]
        index, _, ids, _ = draw(stock.ids[name], nothing, batch, rng)
        clean = pack(stock.latents[task.target][index].float())
        context = [pack(stock.latents[picture][index].float()) for picture in task.context]
        noise = torch.randn(clean.shape, generator=rng, device=place)
        t = times(batch, rng)
        keep = microdit(clean.shape[1], rng) if microdit else None
        v, hidden = model(torch.lerp(clean, noise, t.view(-1, 1, 1)), t, ids, context, keep)
        kept = slice(None) if keep is None else keep
        error = (v - (noise - clean)[:, kept]).square().mean((1, 2))
        terms = {"loss": error.mean(), "late": error[t > 0.7].mean(), "early": error[t < 0.3].mean()}
        if repa and forms is not None and task.target == "rgb":
            terms["align"] = repa(model.projector(hidden), forms[index % len(data)].float()[:, kept])
            terms["loss"] = terms["loss"] + terms["align"]
        return terms

    optimiser = Muon(muon_groups(model, plain=PLAIN), weight_decay=0.01)
    return fit(model, optimiser, loss, Fit(minutes, lr=2e-3, ema=0.999, warmup=100), work / run).cpu()


@torch.inference_mode()
def held_out_error(model: Flow, work: Path, *, scenes: int) -> float:
    """Mean squared error of the velocity on 256 held-out scenes, the same noise and times for every model."""
    seen = pool(work, 256, split="test", first_seed=1_000_000)
    tokenizer = tokenizer_for(work, crowded(work, scenes))
    clean = pack(encoded(work, AutoencoderKL.from_pretrained(work / "vae"), seen, "test").float())
    ids = tokenize(tokenizer, [caption(s, seed=i) for i, s in enumerate(seen.scenes)], networks.TEXT_TOKENS)
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(clean.shape, generator=rng)
    t = torch.linspace(0.02, 0.98, len(clean))[torch.randperm(len(clean), generator=rng)]
    v = model(torch.lerp(clean, noise, t.view(-1, 1, 1)), t, ids).v
    return float((v - (noise - clean)).square().mean())
