"""Train `still-life`: a flow-matching transformer in Flux's architecture with its text encoders.

x_t = (1 - t) z + t noise, the network learns noise - z (arXiv:2209.03003, eq. 1), t is logit-normal
(arXiv:2403.03206, section 3.1). A tenth of the captions is dropped for classifier-free guidance. Prompts are padded to
a length that changes from batch to batch, since Flux attends to padding without a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel

from ..still_life.grammar import caption
from . import networks, truth
from .bank import Bank, bank
from .fitting import Fit, best_device, fit
from .latents import encoded
from .learning.microdit import MicroDit
from .learning.repa import Repa
from .muon import Muon, muon_groups
from .passing import Passed, Prompt, forward
from .pool import Pool, pool
from .tasks import TASKS
from .text import learn, tokenize

BATCH = 64
GPU_BATCH = 256
DROP = 0.1
WORDINGS = 8
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


def draw(known: Tensor, empty: Tensor, batch: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Scenes [batch] and one wording of each [batch, T]; a share `DROP` of the wordings is empty.

    Four times as many are drawn and sorted by length, and one quarter is taken, so that texts of one batch are about
    equally long. They are padded to the longest, in multiples of 8, and in every fourth batch in full.
    """
    place, many = rng.device, 4 * batch
    index = torch.randint(len(known), (many,), generator=rng, device=place)
    ids = known[index, torch.randint(known.shape[1], (many,), generator=rng, device=place)].long()
    used = (ids != empty[-1]).sum(1) + 1
    at = torch.randint(4, (), generator=rng, device=place) * batch
    chosen = used.argsort()[at : at + batch]
    index, ids, used = index[chosen], ids[chosen], used[chosen]
    dropped = torch.rand(batch, generator=rng, device=place) < DROP
    ids = torch.where(dropped[:, None], empty, ids)
    if torch.rand((), generator=rng, device=place) < 0.25:
        return index, ids
    return index, ids[:, : int(-(-used.amax() // 8) * 8)]


def stock_for(
    work: Path, data: Pool, tokenizer: CLIPTokenizer, place: torch.device, *, every_task: bool
) -> Bank:
    """What a run trains on: the whole mixture, or text to image alone."""
    vae = AutoencoderKL.from_pretrained(work / "vae")
    if every_task:
        return bank(work, vae, tokenizer, data.scenes, place)
    z = encoded(work, vae, data, "train").to(place)
    return Bank({"rgb": z}, {"text-to-image": wordings(work, tokenizer, data).to(place)})


def train(
    work: Path,
    *,
    minutes: float,
    every_task: bool,
    scenes: int = 16384,
    repa: Repa | None = None,
    microdit: MicroDit | None = None,
    run: str = "flow-run",
) -> Flow:
    """Train on `work`'s pool and autoencoder; the averaged weights are returned and stay in `work/<run>`.

    Text to image alone, or with `every_task` the whole mixture of `tasks.py`. An earlier run goes on.
    """
    data, place = pool(work, scenes), best_device()
    tokenizer = tokenizer_for(work, data)
    empty = tokenize(tokenizer, [""], networks.TEXT_TOKENS)[0].to(place)
    stock = stock_for(work, data, tokenizer, place, every_task=every_task)
    forms = truth.truth(work, data).to(place) if repa else None
    batch = BATCH if place.type == "cpu" else GPU_BATCH
    shares = torch.tensor([TASKS[name].share for name in stock.ids])
    torch.manual_seed(1)
    model = Flow(tokenizer, aligned=repa is not None).to(place)

    def loss(step: int, rng: torch.Generator) -> dict[str, Tensor]:
        name = list(stock.ids)[
            int(torch.multinomial(shares, 1, generator=torch.Generator().manual_seed(step)))
        ]
        task = TASKS[name]
        index, ids = draw(stock.ids[name], empty, batch, rng)
        clean = pack(stock.latents[task.target][index].float())
        context = [pack(stock.latents[picture][index].float()) for picture in task.context]
        noise = torch.randn(clean.shape, generator=rng, device=place)
        t = torch.randn(batch, generator=rng, device=place).sigmoid()
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
    tokenizer = tokenizer_for(work, pool(work, scenes))
    clean = pack(encoded(work, AutoencoderKL.from_pretrained(work / "vae"), seen, "test").float())
    ids = tokenize(tokenizer, [caption(s, seed=i) for i, s in enumerate(seen.scenes)], networks.TEXT_TOKENS)
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(clean.shape, generator=rng)
    t = torch.linspace(0.02, 0.98, len(clean))[torch.randperm(len(clean), generator=rng)]
    v = model(torch.lerp(clean, noise, t.view(-1, 1, 1)), t, ids).v
    return float((v - (noise - clean)).square().mean())
