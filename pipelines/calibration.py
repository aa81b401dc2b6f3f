"""An opened model run on prompts, for converts that must know what its layers are given and how much each matters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ..kernels.quant.formats import Format
from ..kernels.quant.packed import Layer, layer_size, matrix, packable
from .converts._calibration import Seen, Sensitivity, recording
from .converts._layers import chosen
from .protocols import Model
from .stopping import poll
from .text_to_image import TextToImage

CONTENT = ("*attn2*", "*context*", "*add_*_proj*", "*to_add_out*", "*.ff.*", "*proj_mlp*")
"""Layers that a picture's content hangs on more than its finish: cross-attention, text, feed-forward (MixDQ, 3.3)."""


def watch(
    model: Model, prompts: Sequence[str], steps: int, *, seed: int = 0, size: int | None = None
) -> Seen:
    """What the layers of a model's network are given while it makes a picture of each prompt."""
    with recording(model.denoise.net, steps) as found:
        _runs(model, prompts, steps, seed, size)()
    return found.seen()


def measured_layers(net: nn.Module, *, smallest: int = 0) -> dict[str, Layer]:
    """Those whose formats `sensitivity` compares, by name."""
    found = {name: packable(layer) for name, layer in chosen(net, smallest=smallest)}
    return {name: layer for name, layer in found.items() if layer is not None}


def content_layers(names: Iterable[str], content: Sequence[str] = CONTENT) -> frozenset[str]:
    return frozenset(name for name in names if any(fnmatchcase(name, pattern) for pattern in content))


def sensitivity(
    model: Model,
    prompts: Sequence[str],
    steps: int,
    formats: Mapping[str, Format],
    *,
    smallest: int = 0,
    content: Sequence[str] = CONTENT,
    size: int | None = None,
    step: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    """What the final latents lose by each format in each layer alone; a run of each prompt per layer and format.

    Layers whose names fit `content` are judged by likeness, all others by noise; with no such names all are. A single
    network call would not do: guidance enlarges what tells its two conditions apart, and later steps mend some errors.
    `step` is told (done, total) after each layer.
    """
    run = _runs(model, prompts, steps, 0, size)
    plain = run()
    layers = measured_layers(model.denoise.net, smallest=smallest)
    losses: dict[str, dict[str, float]] = {}
    sizes: dict[str, dict[str, int]] = {}
    likeness = content_layers(layers, content)
    for done, (name, layer) in enumerate(layers.items()):
        losses[name], sizes[name] = {}, {}
        for title, form in formats.items():
            poll()
            held, layer.weight = layer.weight, _parameter(form, matrix(layer), layer.weight)
            try:
                ours = run()
            finally:
                layer.weight = held
            losses[name][title] = (_unlike if name in likeness else _noise)(ours, plain)
            sizes[name][title] = layer_size(layer, form)
        if step is not None:
            step(done + 1, len(layers))
    return Sensitivity(losses, sizes, likeness)


def _parameter(form: Format, w: Tensor, like: Tensor) -> nn.Parameter:
    back = form.unpack(form.pack(w), w.shape[1])
    return nn.Parameter(back.to(like.dtype).view(like.shape), requires_grad=False)


def _runs(
    model: Model, prompts: Sequence[str], steps: int, seed: int, size: int | None
) -> Callable[[], Tensor]:
    """Makes the final latents of all prompts, one after the other."""
    make = TextToImage(model)
    asked = [
        make.encode(prompt, steps=steps, seed=seed + i, width=size, height=size)
        for i, prompt in enumerate(prompts)
    ]
    return lambda: torch.cat([make.sample(one).float() for one in asked])


def _noise(ours: Tensor, plain: Tensor) -> float:
    """Noise over signal, the mean over the pictures."""
    noise, signal = (x.square().flatten(1).sum(1) for x in (ours - plain, plain))
    return float((noise / signal.clamp(min=1e-30)).mean())


def _unlike(ours: Tensor, plain: Tensor) -> float:
    """1 - SSIM of the statistics of each channel as a whole."""
    a, b = ours.flatten(2), plain.flatten(2)
    mean_a, mean_b = a.mean(2), b.mean(2)
    var_a, var_b = a.var(2, unbiased=False), b.var(2, unbiased=False)
    both = ((a - mean_a[..., None]) * (b - mean_b[..., None])).mean(2)
    span = (plain.amax() - plain.amin()).clamp(min=1e-12)
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    like = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    like = like / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(1 - like.mean())
