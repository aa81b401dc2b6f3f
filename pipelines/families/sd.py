"""sd: Stable Diffusion 1.x and 2.x, and anything in their layout: a UNet on a VP path.

A StableDiffusionPipeline folder: UNet2DConditionModel (predicting eps, v or the sample), AutoencoderKL,
CLIPTextModel and its tokenizer. The noise table comes from the settings of whichever scheduler is named.

Embeds: `text` [B,L,D].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor, nn

from ..card import read_card
from ..errors import BadWeights
from ..paths import step_of, vp_from_config
from ..protocols import Cond, Defaults, Limits, Model, Path, Pred, Schedule
from ..schedules.uniform import Uniform
from ._common import Checkpoint, Codec, Text, alike, named_schedule, stacked
from ._parts import load_part, load_tokenizer, scheduler_config

SCHEDULE = "uniform"


@dataclass(frozen=True)
class Sd:
    """The family: recognises and loads."""

    pipelines: tuple[str, ...] = ("StableDiffusionPipeline",)

    def recognise(self, index: Mapping[str, Any]) -> bool:
        return index.get("_class_name") in self.pipelines

    def load(self, folder: Folder, dtype: torch.dtype, device: torch.device) -> Model:
        config = scheduler_config(folder)
        kind = str(config.get("prediction_type", "epsilon"))
        if kind not in _ESTIMATES:
            raise BadWeights(f"{folder}: prediction_type is {kind!r}; known are {', '.join(_ESTIMATES)}")
        path = _path(config, kind, folder)
        tokenizer = load_tokenizer(folder, "tokenizer")
        parts = {
            "unet": load_part(folder, "unet", "diffusers.UNet2DConditionModel", dtype, device),
            "text_encoder": load_part(folder, "text_encoder", "transformers.CLIPTextModel", dtype, device),
            "vae": load_part(folder, "vae", "diffusers.AutoencoderKL", dtype, device),
        }
        net, clip, codec = parts["unet"].net, parts["text_encoder"].net, Codec(parts["vae"].net)
        _check_fit(net, codec, folder)
        words, card = Text.for_clip(tokenizer, clip), read_card(folder, codec.channels)
        size = net.config.sample_size
        height, width = (int(n) * codec.factor for n in ([size, size] if isinstance(size, int) else size))
        defaults = card.over(Defaults(width, height, 30, 7.5, "dpmpp-2m", SCHEDULE))
        spacing = _spacing(config, folder)

        def schedule(width: int, height: int) -> Schedule:
            return spacing if defaults.schedule == SCHEDULE else named_schedule(defaults.schedule)

        return Checkpoint(
            name=card.name or folder.name,
            family="sd",
            denoise=_UnetDenoiser(net, path, dtype, kind),
            limits=Limits(codec.factor, codec.factor, 4096, words.limit),
            defaults=defaults,
            codec=codec,
            text=words,
            embed=_Encoder(words, clip),
            schedule_for=schedule,
            parts=parts,
            card=card,
        )


def _path(config: Mapping[str, Any], kind: str, folder: Folder) -> Path:
    if kind == "epsilon" and config.get("rescale_betas_zero_snr"):
        raise BadWeights(
            f"{folder}: prediction_type epsilon says nothing at zero SNR; set rescale_betas_zero_snr to false"
        )
    try:
        return vp_from_config(config)
    except (ValueError, TypeError) as error:
        raise BadWeights(f"{folder}: the scheduler's settings make no noise table ({error})") from error


def _spacing(config: Mapping[str, Any], folder: Folder) -> Uniform:
    """The checkpoint's own times; those from before the setting existed are leading."""
    try:
        return Uniform(config.get("timestep_spacing", "leading"), int(config.get("steps_offset", 0)))
    except (ValueError, TypeError) as error:
        raise BadWeights(f"{folder}: the scheduler's settings cannot be used ({error})") from error


def _check_fit(net: Any, codec: Codec, folder: Folder) -> None:
    if net.config.in_channels != codec.channels:
        raise BadWeights(
            f"{folder}: the UNet takes {net.config.in_channels} channels and the VAE makes {codec.channels}; "
            "inpainting and other extra-channel UNets are not supported"
        )
    if net.config.time_cond_proj_dim is not None:
        raise BadWeights(
            f"{folder}: UNets with an embedded guidance scale (LCM) are not supported; use the LoRA instead"
        )


@dataclass(frozen=True)
class _Encoder:
    words: Text
    clip: Any

    def __call__(self, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        ids, mask = self.words.ids(prompts)
        masked = self.clip.config.to_dict().get("use_attention_mask", False)
        device = self.clip.device
        return {"text": self.clip(ids.to(device), attention_mask=mask.to(device) if masked else None)[0]}


def _from_eps(x: Tensor, out: Tensor, a: float, s: float) -> Pred:
    return Pred((x - s * out) / a, out)


def _from_v(x: Tensor, out: Tensor, a: float, s: float) -> Pred:
    """v = alpha eps - sigma x0: finite at both ends."""
    return Pred(a * x - s * out, s * x + a * out)


def _from_sample(x: Tensor, out: Tensor, a: float, s: float) -> Pred:
    return Pred(out, (x - a * out) / s if s > 0 else torch.zeros_like(x))


_ESTIMATES: dict[str, Callable[[Tensor, Tensor, float, float], Pred]] = {
    "epsilon": _from_eps,
    "v_prediction": _from_v,
    "sample": _from_sample,
}


@dataclass(eq=False)
class _UnetDenoiser:
    net: nn.Module
    path: Path
    dtype: torch.dtype
    kind: str

    def __call__(self, x: Tensor, t: float, *conds: Cond) -> list[Pred]:
        a, s = self.path.alpha(t), self.path.sigma(t)
        found: dict[int, Pred] = {}
        for group in alike(conds):
            out = self._output(x, t, [conds[i] for i in group]).to(x.dtype)
            for i, part in zip(group, out.chunk(len(group)), strict=True):
                found[i] = _ESTIMATES[self.kind](x, part, a, s)
        return [found[i] for i in range(len(conds))]

    def _output(self, x: Tensor, t: float, conds: Sequence[Cond]) -> Tensor:
        """What the net itself predicts, [len(conds) * B, C, h, w]."""
        latents = x.to(self.dtype).repeat(len(conds), 1, 1, 1)
        steps = torch.full((len(latents),), step_of(self.path, t), device=x.device, dtype=torch.float32)
        text = stacked(conds, "text", len(x), self.dtype)
        out: Tensor = self.net(latents, steps, encoder_hidden_states=text, return_dict=False)[0]
        return out
