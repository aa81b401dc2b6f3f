"""wan: Wan 2.1 and 2.2: a transformer on a flow path over whole clips, prompts through UMT5.

A WanPipeline or WanImageToVideoPipeline folder. Of two transformers (2.2) the second takes over where the noise falls
below `boundary_ratio`. From a picture: its latents beside those of x and CLIP's view of it (2.1), its latents alone
(2.2), or its latents in place of the first frame (2.2 of 5 B). A last picture may be given where the network allows it.
One guidance scale serves both transformers. Times are those of the UniPC that published folders name.
Licence of the published weights: Apache 2.0.

Embeds: `text` [B,L,D]; from a picture `beside` [B,K,f,h,w] (mask of known frames and latents) or `first` [B,C,1,h,w],
and `seen` [B,V,P,D] (CLIP on V pictures).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor, nn

from ...pipelines.card import read_card
from ...pipelines.errors import BadInput
from ...pipelines.families._common import Text, flow_schedule
from ...pipelines.families._denoiser import NetDenoiser
from ...pipelines.families._opened import Opened, open_parts
from ...pipelines.families._schedules import BothEnds
from ...pipelines.paths import flow
from ...pipelines.protocols import Defaults, Limits, Model
from ..protocols import Lengths, Span
from ._clips import ClipCheckpoint, ClipCodec
from ._wan_pictures import Pictures
from ._wan_times import SolverSteps

TOKENS = 512
PICTURED = "WanImageToVideoPipeline"


@dataclass(frozen=True)
class Wan:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("WanPipeline", PICTURED)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        opened = open_parts(folder, dtype, device)
        encoder = opened.net("text_encoder")
        vae, net = opened.net("vae"), opened.net("transformer")
        codec = ClipCodec(
            vae,
            channels=vae.config.z_dim,
            factor=vae.config.scale_factor_spatial,
            every=vae.config.scale_factor_temporal,
            mean=vae.config.latents_mean,
            std=vae.config.latents_std,
        )
        solver = opened.scheduler.get("_class_name") == "UniPCMultistepScheduler"
        shift = flow_schedule(opened.scheduler, folder)[0].shift
        own = SolverSteps(shift) if solver else BothEnds(shift)
        multiple = codec.factor * net.config.patch_size[1]
        card, words = read_card(folder, codec.channels), Text(opened.pipe.tokenizer, TOKENS)
        pictured = type(opened.pipe).__name__ == PICTURED
        pictures = Pictures.of(opened, codec, net.config) if pictured else None
        width, height, frames, fps = (1280, 704, 121, 24) if codec.factor == 16 else (832, 480, 81, 16)

        def embed(prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
            # not the pipeline's encode_prompt: that of pictures fails where ftfy is not installed
            ids, mask = (part.to(device) for part in words.ids([prompt_clean(prompt) for prompt in prompts]))
            return {"text": encoder(ids, mask)[0] * mask.unsqueeze(-1)}

        call = partial(_velocity, whole=solver, tokenwise=bool(opened.pipe.config.expand_timesteps))
        return ClipCheckpoint(
            name=card.name or folder.name,
            family="wan",
            denoise=NetDenoiser(_staged(opened), flow(), dtype, "flow", call),
            limits=Limits(multiple, multiple, 2048, words.limit),
            defaults=card.over(Defaults(width, height, 50, 5.0, "unipc" if solver else "ddim", "flow-shift")),
            codec=codec,
            text=words,
            embed=embed,
            schedule_id="flow-shift",
            spaced=lambda shape: own,
            parts=opened.parts,
            card=card,
            lengths=Lengths(codec.every, frames, fps),
            span=Span(frames, fps),
            needs=pictures.needs if pictures else (),
            accepts=pictures.accepts if pictures else (),
            joined=pictures,
        )


class _Stages(nn.Module):
    """The network of noisy times and, below `boundary`, that of clean ones."""

    def __init__(self, high: nn.Module, low: nn.Module, boundary: float) -> None:
        super().__init__()
        self.high, self.low, self.boundary = high, low, boundary


def _staged(opened: Opened) -> nn.Module:
    high, boundary = opened.net("transformer"), opened.pipe.config.boundary_ratio
    return high if boundary is None else _Stages(high, opened.net("transformer_2"), float(boundary))


def _velocity(
    net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor], whole: bool, tokenwise: bool
) -> Tensor:
    """eps - x0 [N,C,f,h,w] at x. `whole`: times are whole training steps. `tokenwise`: each token has its own."""
    step = float(int(1000 * t)) if whole else 1000 * t
    if isinstance(net, _Stages):
        net = net.high if step >= 1000 * net.boundary else net.low
    first, beside, seen = (embeds.get(name) for name in ("first", "beside", "seen"))
    for known in (first, beside):
        if known is not None and known.shape[3:] != x.shape[3:]:
            raise BadInput("pictures", "the picture must have the size of the clip; resize or crop it")
    steps = torch.full((len(x),), step, device=x.device)
    noisy = x if beside is None else torch.cat([x, beside], dim=1)
    if tokenwise:
        steps = torch.full_like(x[:, 0, :, ::2, ::2], step, dtype=torch.float32)
        if first is not None:
            steps[:, 0] = 0
            noisy = torch.cat([first, x[:, :, 1:]], dim=2)
        steps = steps.flatten(1)
    v: Tensor = net(
        hidden_states=noisy,
        timestep=steps,
        encoder_hidden_states=embeds["text"],
        # two pictures are two rows to the network
        encoder_hidden_states_image=None if seen is None else seen.flatten(0, 1),
        return_dict=False,
    )[0]
    if first is None:
        return v
    # the first frame is known: x0 there is the picture
    return torch.cat([(x[:, :, :1] - first) / t, v[:, :, 1:]], dim=2)
