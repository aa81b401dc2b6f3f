"""An opened model run on prompts, for converts that must know what its layers are given and how much each matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from ..kernels.quant.formats import Format
from ..kernels.quant.packed import layer_size, matrix, packable
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
        _run(model, prompts, steps, seed, size)
    return found.seen()


def sensitivity(
    model: Model,
    prompts: Sequence[str],
    steps: int,
    formats: Mapping[str, Format],
    *,
    skip: Sequence[str] = (),
    smallest: int = 0,
    content: Sequence[str] = CONTENT,
    size: int | None = None,
) -> Sensitivity:
    """What the network's output loses by each format in each layer alone; one network call per layer and format.

    The calls are those of the first, the middle and the last step of each prompt. Layers whose names fit `content` are
    judged by likeness, all others by noise; with no such names all are.
    """
    net, calls = model.denoise.net, _calls(model, prompts, steps, 0, size)
    plain = [_output(net(*args, **kwargs)) for args, kwargs in calls]
    losses: dict[str, dict[str, float]] = {}
    sizes: dict[str, dict[str, int]] = {}
    likeness = set()
    for name, found in chosen(net, skip=skip, smallest=smallest):
        layer = packable(found)
        if layer is None:
            continue
        if any(fnmatchcase(name, pattern) for pattern in content):
            likeness.add(name)
        losses[name], sizes[name] = {}, {}
        for title, form in formats.items():
            poll()
            w = matrix(layer)
            held, layer.weight = layer.weight, _parameter(form, w, layer.weight)
            try:
                ours = [_output(net(*args, **kwargs)) for args, kwargs in calls]
            finally:
                layer.weight = held
            judge = _unlike if name in likeness else _noise
            losses[name][title] = sum(map(judge, ours, plain)) / len(plain)
            sizes[name][title] = layer_size(layer, form)
    return Sensitivity(losses, sizes, frozenset(likeness))


def _parameter(form: Format, w: Tensor, like: Tensor) -> nn.Parameter:
    back = form.unpack(form.pack(w), w.shape[1])
    return nn.Parameter(back.to(like.dtype).view(like.shape), requires_grad=False)


def _run(model: Model, prompts: Sequence[str], steps: int, seed: int, size: int | None) -> None:
    make = TextToImage(model)
    for i, prompt in enumerate(prompts):
        make.sample(make.encode(prompt, steps=steps, seed=seed + i, width=size, height=size), None)


def _calls(
    model: Model, prompts: Sequence[str], steps: int, seed: int, size: int | None
) -> list[tuple[Any, Any]]:
    """Arguments of some network calls."""
    heard: list[tuple[Any, Any]] = []
    net = model.denoise.net
    hook = net.register_forward_pre_hook(
        lambda _, args, kwargs: heard.append((args, kwargs)), with_kwargs=True
    )
    found = []
    try:
        for i, prompt in enumerate(prompts):
            heard.clear()
            _run(model, [prompt], steps, seed + i, size)
            found += [heard[at] for at in sorted({0, len(heard) // 2, len(heard) - 1})]
    finally:
        hook.remove()
    return found


def _output(out: Any) -> Tensor:
    found: Tensor = out[0] if isinstance(out, tuple) else out if isinstance(out, Tensor) else out.sample
    return found.detach().float()


def _noise(ours: Tensor, plain: Tensor) -> float:
    """Noise over signal."""
    return float((ours - plain).square().sum() / plain.square().sum().clamp(min=1e-30))


def _unlike(ours: Tensor, plain: Tensor) -> float:
    """1 - SSIM of the statistics of each channel or token as a whole: outputs may be tokens, which have no windows."""
    a, b = ours.flatten(2), plain.flatten(2)
    mean_a, mean_b = a.mean(2), b.mean(2)
    var_a, var_b = a.var(2, unbiased=False), b.var(2, unbiased=False)
    both = ((a - mean_a[..., None]) * (b - mean_b[..., None])).mean(2)
    span = (plain.amax() - plain.amin()).clamp(min=1e-12)
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    like = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    like = like / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(1 - like.mean())
