"""One network call against what this machine can do: the share of its matrix-multiply speed that the call reaches.

The roof is the best of a few square matrix products in the same number type, measured in the same rounds. The work of
a call is counted by torch's FlopCounterMode (multiply and add are two).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import Options, Row, finish, interleave, machine, options, row
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.protocols import Cond, Model
from torch.utils.flop_counter import FlopCounterMode

SIZES = (1024, 2048)
"""Sides of the square matrices."""
IMAGES = (1, 4)
"""Images in one call; guidance doubles them."""
PROMPTS = {"pos": "a large green cube, in snow", "neg": ""}
MIDDLE = 0.5
"""The time of the call; any would do."""


def one_call(model: Model, images: int, device: str) -> Callable[[], object]:
    """A guided evaluation of `images` images at the model's own size."""
    conds = [model.encode([text], key=key) for key, text in PROMPTS.items()]
    conds = [Cond(c.key, {name: value.to(device) for name, value in c.embeds.items()}) for c in conds]
    shape = (images, *model.latent_shape(model.defaults.width, model.defaults.height))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)

    def call() -> object:
        with torch.no_grad():
            return model.denoise(x, MIDDLE, *conds)

    return call


def product(side: int, device: str, dtype: torch.dtype) -> Callable[[], object]:
    a, b = (torch.randn(side, side).to(device, dtype) for _ in range(2))
    return lambda: a @ b


def count(call: Callable[[], object]) -> float:
    """Floating point operations of a call, in GFLOP."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def measure(model: Model, given: Options) -> list[Row]:
    dtype = next(model.denoise.net.parameters()).dtype
    calls = {str(n): one_call(model, n, given.device) for n in IMAGES}
    work = {name: count(call) for name, call in calls.items()}
    roofs = {f"roof {side}": product(side, given.device, dtype) for side in SIZES}
    seconds = interleave({**roofs, **calls}, repeats=given.repeats, warmup=2)
    speeds = [[2e-9 * side**3 / s for s in seconds[f"roof {side}"]] for side in SIZES]
    roof = [max(pair) for pair in zip(*speeds, strict=True)]
    name = str(dtype).removeprefix("torch.")
    rows = [row(f"{name} matrix product, best of {' and '.join(map(str, SIZES))}", roof, "GFLOP/s")]
    for images, taken in seconds.items():
        if images in calls:
            what = f"guided network call, {images} image{'s' if images != '1' else ''}"
            share = [100 * work[images] / s / best for s, best in zip(taken, roof, strict=True)]
            rows.append(row(f"{what} ({work[images]:.1f} GFLOP)", [1000 * s for s in taken], "ms"))
            rows.append(row(f"{what}, share of the roof", share, "%", headline=images == "1"))
    return rows


def main() -> None:
    given = options(__doc__ or "")
    about = machine(given.device)
    dtype = torch.bfloat16 if given.device.startswith("cuda") else torch.float32
    model = open_model(given.model, device=given.device, dtype=dtype)
    finish("network", f"Network of {given.model}", measure(model, given), about, given)


if __name__ == "__main__":
    main()
