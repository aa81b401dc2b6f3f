"""Text to image: encode the prompts, take noise to clean latents, decode."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from .errors import BadInput
from .from_image import FromImage
from .guidance.cfg import Cfg
from .lookup import with_defaults
from .loop import Control
from .noise import SeededNoise
from .paths import begin
from .pipeline import Pipeline
from .protocols import Cond, Conds, Encoder, Guidance, Model, Patch, Sampler, Schedule, Wrap
from .sizes import check_count, check_size
from .stopping import poll

SEED_LIMIT = 2**63


class Timings(NamedTuple):
    """Seconds."""

    encode: float
    sample: float
    decode: float


class Encoded(NamedTuple):
    """A run before its first step: the prompts as conditions, and the numbers settled."""

    conds: Conds
    width: int
    height: int
    steps: int
    seeds: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Images:
    """What came out, and what it takes to know it again."""

    pixels: Tensor
    """[B,3,H,W] in 0..1, float32 on the CPU."""
    latents: Tensor
    """[B,C,h,w], as the sampler left them."""
    seeds: tuple[int, ...]
    timings: Timings
    dropped: tuple[str, ...]
    """Per prompt, the end that was too long for the model; empty text if nothing was cut."""

    @property
    def images(self) -> list[Image.Image]:
        return as_images(self.pixels)


def as_images(pixels: Tensor) -> list[Image.Image]:
    """[B,3,H,W] in 0..1 as pictures."""
    data = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(picture) for picture in data]


@dataclass(frozen=True)
class TextToImage:
    """What is None is the model's own default."""

    model: Model
    sampler: Sampler | None = None
    schedule: Schedule | None = None
    guidance: Guidance | None = None
    patches: tuple[Patch, ...] = ()
    wraps: tuple[Wrap, ...] = ()
    distilled: float | None = None
    """The guidance scale that a distilled net (FLUX.1 dev) takes as an input, 0 and up."""
    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    """What the model needs or accepts beside the prompt, [1,3,H,W] in 0..1 (a mask has one channel, 1 = repaint)."""
    start: FromImage | None = None
    """A picture to start from instead of noise; the result has its size."""
    encoder: Encoder | None = None
    """What encodes prompts in the model's stead, such as one that remembers them (remembered.py)."""

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative: str | Sequence[str] = "",
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        count: int = 1,
        control: Control | None = None,
    ) -> Images:
        """`count` images of each prompt, prompt by prompt. Image i has seed `seed` + i or seed[i] at any batch size."""
        began = time.perf_counter()
        run = self.encode(
            prompt, negative=negative, width=width, height=height, steps=steps, seed=seed, count=count
        )
        encoded = time.perf_counter()
        latents = self.sample(run, control)
        sampled = time.perf_counter()
        pixels = self.decode(latents)
        timings = Timings(encoded - began, sampled - encoded, time.perf_counter() - sampled)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        return Images(
            pixels, latents, run.seeds, timings, tuple(self.model.dropped(text) for text in prompts)
        )

    def encode(
        self,
        prompt: str | Sequence[str],
        *,
        negative: str | Sequence[str] = "",
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        count: int = 1,
    ) -> Encoded:
        """The first of the three parts of a call, for those who act between them."""
        prompts, negatives = _prompts(prompt, negative)
        width, height, steps = self._numbers(width, height, steps)
        seeds = _seeds(seed, count, len(prompts))
        return Encoded(self._conds(prompts, negatives, count), width, height, steps, seeds)

    def sample(self, run: Encoded, control: Control | None = None) -> Tensor:
        """The second: noise to clean latents [B,...]."""
        model, (conds, width, height, steps, seeds) = self.model, run
        guidance = self.guidance or Cfg(1.0 if conds.neg is None else model.defaults.guidance)
        sampler = self.sampler or with_defaults("samplers", model.defaults.sampler)
        ts = self._schedule(width, height)(steps, model.denoise.path)
        device = next((weight.device for weight in model.denoise.net.parameters()), torch.device("cpu"))
        noise = SeededNoise(seeds, model.latent_shape(width, height), device=device)
        if self.start is None:
            x, wraps = begin(model.denoise.path, noise(), ts[0]), self.wraps
        else:
            poll()
            x, ts, own = self.start(model, ts, noise())
            wraps = (*self.wraps, *own)
        pipeline = Pipeline(model.denoise, sampler, guidance, self.patches, wraps)
        return pipeline(x, conds, ts, noise=noise, control=control)

    def decode(self, latents: Tensor) -> Tensor:
        """The third: latents to pixels in 0..1 on the CPU, one image at a time, which bounds memory."""
        pixels = []
        for one in latents.split(1):
            poll()
            pixels.append(self.model.decode(one).float().cpu())
        whole = torch.cat(pixels)
        return self.start.kept(whole) if self.start else whole

    def _numbers(self, width: int | None, height: int | None, steps: int | None) -> tuple[int, int, int]:
        own = self.model.defaults
        if self.start is not None:
            for name, asked, found in zip(("width", "height"), (width, height), self.start.size, strict=True):
                if asked not in (None, found):
                    raise BadInput(
                        name, f"{name} = {asked}, the picture to start from has {found}; leave it out"
                    )
            width, height = self.start.size
        width, height = (
            width if width is not None else own.width,
            height if height is not None else own.height,
        )
        steps = own.steps if steps is None else steps
        check_size(width, height, self.model.limits)
        check_count("steps", steps)
        return width, height, steps

    def _conds(self, prompts: list[str], negatives: list[str], count: int) -> Conds:
        # Each condition is one call of every text encoder, and polls before it.
        pos = self.model.attach(self._encode(prompts, "pos", count), self.pictures)
        unguided = self.guidance is None and ("guidance" in pos.embeds or self.model.defaults.guidance == 1)
        if unguided:
            return Conds(pos)
        return Conds(pos, self.model.attach(self._encode(negatives, "neg", count), self.pictures))

    def _encode(self, prompts: list[str], key: str, count: int) -> Cond:
        """Embeds for `count` images of each prompt; one row serves all if there is one prompt."""
        poll()
        cond = (self.encoder or self.model.encode)(prompts, key=key)
        embeds = dict(cond.embeds)
        if self.distilled is not None:
            if "guidance" not in embeds:
                raise BadInput(
                    "distilled", f"{self.model.name} takes no embedded guidance; use guidance=Cfg(scale)"
                )
            embeds["guidance"] = torch.full_like(embeds["guidance"], self.distilled)
        if len(prompts) > 1:
            embeds = {
                name: value.repeat_interleave(count, dim=0) if len(value) == len(prompts) else value
                for name, value in embeds.items()
            }
        return Cond(key, embeds)

    def _schedule(self, width: int, height: int) -> Schedule:
        if self.schedule is not None:
            return self.schedule
        return self.model.default_schedule(width, height)


def _prompts(prompt: str | Sequence[str], negative: str | Sequence[str]) -> tuple[list[str], list[str]]:
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    negatives = [negative] if isinstance(negative, str) else list(negative)
    if len(negatives) not in (1, len(prompts)):
        raise BadInput(
            "negative", f"{len(negatives)} negative prompts for {len(prompts)} prompts; give one or as many"
        )
    return prompts, negatives


def _seeds(seed: int | Sequence[int], count: int, prompts: int) -> tuple[int, ...]:
    check_count("count", count)
    images = count * prompts
    if not isinstance(seed, int):
        if len(seed) != images:
            raise BadInput("seed", f"{len(seed)} seeds for {images} images; give one, or one for each image")
        return tuple(_seeds(one, 1, 1)[0] for one in seed)
    check_count("seed", seed, least=0)
    if seed + images > SEED_LIMIT:
        raise BadInput("seed", f"seed = {seed} is too large for {images} images; give less than 2**63")
    return tuple(range(seed, seed + images))
