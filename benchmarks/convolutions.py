"""3 x 3 convolutions of a UNet in 8 bits on a processor: as they are, and by Winograd's tiles.

Shapes of Stable Diffusion 1.5 at 512 x 512, two pictures, with the norm and gate before and the sum after, as in its
residual blocks. *GOP/s* counts the products of the plain convolution for both. Errors are relative, of the convolution
alone.
"""

from __future__ import annotations

import argparse
from typing import cast

import harness
import torch
from harness import Row
from sfumato.kernels.native.around import After, Norm, available, normed
from sfumato.kernels.quant.layers import Int8Conv2d, int8
from torch import nn

SHAPES = ((320, 320, 64), (960, 320, 64), (640, 640, 32), (1920, 640, 32), (1280, 1280, 16), (1280, 1280, 8))
"""Inputs, outputs, side."""


def measured(inputs: int, outputs: int, side: int, repeats: int) -> list[Row]:
    torch.manual_seed(0)
    layer = nn.Conv2d(inputs, outputs, 3, padding=1).requires_grad_(False)
    x = torch.randn(2, inputs, side, side).contiguous(memory_format=torch.channels_last)
    norm = Norm(32, torch.ones(inputs), torch.zeros(inputs), 1e-5)
    residual, shift = torch.randn(2, side, side, outputs), torch.randn(2, outputs)
    after = After(shift=shift, residual=residual)
    tiled = {"as it is": 0, "by tiles": layer.weight.numel()}
    forms = {name: cast("Int8Conv2d", int8(layer, tiled=most)) for name, most in tiled.items()}
    runs = {name: lambda form=form: form.after(x, after, norm) for name, form in forms.items()}
    wanted = layer(normed(x, norm))
    errors = {
        n: float((form.after(x, norm=norm) - wanted).norm() / wanted.norm()) for n, form in forms.items()
    }
    taken, shape = harness.interleave(runs, repeats=repeats), f"{inputs} to {outputs} at {side} x {side}"
    work = 2e-9 * 2 * side * side * 9 * inputs * outputs
    rows = [harness.row(f"{shape}, {name}", [work / t for t in taken[name]], "GOP/s") for name in forms]
    rows += [harness.row(f"{shape}, {name}: error", [100 * error], "%") for name, error in errors.items()]
    ratio = harness.ratios(taken["as it is"], taken["by tiles"])
    return [*rows, harness.row(f"{shape}: as it is / by tiles", ratio, "x")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=9, help="rounds that count (default 9)")
    given = parser.parse_args()
    if (lacking := available()) is not None:
        parser.error(lacking)
    about = harness.machine()
    rows = [row for shape in SHAPES for row in measured(*shape, given.repeats)]
    for line in rows:
        print(line)
    print(harness.write("convolutions", "3 x 3 convolutions in 8 bits on a processor", rows, about))


if __name__ == "__main__":
    main()
