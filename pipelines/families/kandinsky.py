"""kandinsky: Kandinsky 2.2: a prior turns the prompt into a CLIP image embedding, a UNet on a VP path draws that.

A KandinskyV22CombinedPipeline folder, which holds both halves: they are published apart, and
`AutoPipelineForText2Image.from_pretrained(decoder).save_pretrained(folder)` of diffusers joins them. The prior runs
when a prompt is encoded: 25 steps, guidance 4, noise from the fixed seed 0, so that all pictures of a prompt share its
embedding.
A prompt to avoid is embedded alone (diffusers also steers the prior away from it); an empty one is a black picture.
Published folders name the DDPM sampler and threshold each estimate; DPM++ 2M without thresholds stands in for it.

Licence of the published weights: Apache-2.0.
Embeds: `image` [B,D].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor

from ..card import read_card
from ..errors import BadWeights
from ..paths import step_of
from ..protocols import Defaults, Limits, Model, Path
from ..weights import read_json
from ._codecs import VqCodec
from ._common import Checkpoint, Text
from ._denoiser import NetDenoiser
from ._parts import load_part, load_tokenizer
from ._unets import SCHEDULE, native_size, read_noise

HALVES = ("KandinskyV22Pipeline", "KandinskyV22PriorPipeline")
PARTS = {
    "unet": "diffusers.UNet2DConditionModel",
    "movq": "diffusers.VQModel",
    "prior_prior": "diffusers.PriorTransformer",
    "prior_text_encoder": "transformers.CLIPTextModelWithProjection",
    "prior_image_encoder": "transformers.CLIPVisionModelWithProjection",
}


@dataclass(frozen=True)
class Kandinsky:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("KandinskyV22CombinedPipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in (*self.pipelines, *HALVES)

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        if read_json(folder / "model_index.json")["_class_name"] in HALVES:
            raise BadWeights(
                f"{folder} holds one half of Kandinsky 2.2; join prior and decoder in a folder with diffusers: "
                "AutoPipelineForText2Image.from_pretrained(decoder).save_pretrained(folder)"
            )
        noise = read_noise(folder)
        tokenizer = load_tokenizer(folder, "prior_tokenizer")
        parts = {name: load_part(folder, name, kind, dtype, device) for name, kind in PARTS.items()}
        net, codec = parts["unet"].net, VqCodec(parts["movq"].net)
        prior = _Prior(_pipe(folder, {name: part.net for name, part in parts.items()}, tokenizer))
        words, card = (
            Text.for_clip(tokenizer, parts["prior_text_encoder"].net),
            read_card(folder, codec.channels),
        )
        width, height = native_size(net, codec.factor)
        multiple = 8 * codec.factor
        return Checkpoint(
            name=card.name or folder.name,
            family="kandinsky",
            denoise=NetDenoiser(net, noise.path, dtype, noise.kind, partial(_output, path=noise.path)),
            limits=Limits(multiple, multiple, 4096, words.limit),
            defaults=card.over(Defaults(width, height, 30, 4.0, "dpmpp-2m", SCHEDULE)),
            codec=codec,
            text=words,
            embed=prior,
            schedule_id=SCHEDULE,
            schedule_for=lambda width, height: noise.schedule,
            parts=parts,
            card=card,
        )


def _pipe(folder: Folder, nets: Mapping[str, Any], tokenizer: Any) -> Any:
    """The prior's pipeline. It needs no image processor to read prompts."""
    from diffusers import KandinskyV22PriorPipeline, UnCLIPScheduler

    pipe = KandinskyV22PriorPipeline(
        prior=nets["prior_prior"],
        image_encoder=nets["prior_image_encoder"],
        text_encoder=nets["prior_text_encoder"],
        tokenizer=tokenizer,
        scheduler=UnCLIPScheduler.from_config(
            read_json(folder / "prior_scheduler" / "scheduler_config.json")
        ),
        image_processor=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@dataclass(frozen=True)
class _Prior:
    pipe: Any

    def __call__(self, prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
        said = list(prompts)
        found: Tensor = self.pipe(
            said,
            num_inference_steps=25,
            guidance_scale=1.0 if negative else 4.0,
            generator=[torch.Generator().manual_seed(0) for _ in said],
        ).image_embeds
        if negative:
            empty = torch.tensor([not prompt for prompt in said], device=found.device)[:, None]
            found = torch.where(empty, self.pipe.get_zero_embed().to(found), found)
        return {"image": found}


def _output(net: Any, x: Tensor, t: float, embeds: Mapping[str, Tensor], path: Path) -> Tensor:
    """The noise [N,C,h,w] in x, without the variance that the UNet says beside it."""
    out: Tensor = net(
        x,
        torch.full((len(x),), step_of(path, t), device=x.device, dtype=torch.float32),
        encoder_hidden_states=None,
        added_cond_kwargs={"image_embeds": embeds["image"]},
        return_dict=False,
    )[0]
    return out[:, : x.shape[1]]
