"""The UNet of Stable Diffusion 1.5 on a processor (random weights, 512 x 512, guided): plain, exact and in 8 bits.

The peer, OpenVINO with weights and activations in 8 bits by NNCF, takes part where both packages are installed; they
are no part of any extra. Errors are relative to the plain network's answer to the same input.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from contextlib import ExitStack

import harness
import torch
from diffusers import UNet2DConditionModel
from sfumato.pipelines.converts.int8 import Int8
from sfumato.pipelines.converts.winograd import Winograd
from sfumato.pipelines.doors.architectures import architecture
from sfumato.pipelines.patches.int8_attention import Int8Attention
from torch import Tensor

CELLS = 64
TOKENS, WIDTH = 77, 768
STEP = 500
Run = Callable[[], Tensor]


def network() -> UNet2DConditionModel:
    torch.manual_seed(0)
    config = dict(architecture("sd15").parts["unet"].config or {})
    net: UNet2DConditionModel = UNet2DConditionModel.from_config(config)
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Both halves of a guided step."""
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, CELLS, CELLS, generator=rng)
    return x, torch.tensor([STEP, STEP]), torch.randn(2, TOKENS, WIDTH, generator=rng)


def call(net: UNet2DConditionModel) -> Run:
    given = inputs()

    def run() -> Tensor:
        with torch.no_grad():
            out: Tensor = net(*given, return_dict=False)[0]
        return out

    return run


def attended(stack: ExitStack) -> Run:
    net = Int8()(network())
    stack.enter_context(Int8Attention()(net))
    return call(net)


def openvino_int8() -> Run:
    """As its users make it: converted, quantised after training with one sample, compiled for this processor."""
    import nncf
    import openvino

    given = inputs()
    model = openvino.convert_model(network(), example_input=given)
    model = nncf.quantize(model, nncf.Dataset([tuple(t.numpy() for t in given)]), subset_size=1)
    compiled = openvino.compile_model(model, "CPU")
    return lambda: torch.from_numpy(compiled(tuple(t.numpy() for t in given))[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument(
        "--without", nargs="*", default=[], help="candidates to leave out; all of them take 20 GB of memory"
    )
    given = parser.parse_args()
    about, stack = harness.machine(), ExitStack()
    makers: dict[str, Callable[[], Run]] = {
        "plain": lambda: call(network()),
        "winograd": lambda: call(Winograd()(network())),
        "int8": lambda: call(Int8()(network())),
        "int8, attention too": lambda: attended(stack),
    }
    if all(importlib.util.find_spec(name) for name in ("openvino", "nncf")):
        makers["OpenVINO int8"] = openvino_int8
    runs = {name: make() for name, make in makers.items() if name not in given.without}
    wanted = runs["plain"]()
    errors = {name: float((run() - wanted).norm() / wanted.norm()) for name, run in runs.items()}
    taken = harness.interleave(runs, repeats=given.repeats)
    rows = [harness.row(f"guided call, {name}", taken[name], "s") for name in runs]
    rows += [
        harness.row(f"plain / {name}", harness.ratios(taken["plain"], taken[name]), "x")
        for name in [*runs][1:]
    ]
    if {"OpenVINO int8", "int8, attention too"} <= runs.keys():
        ratio = harness.ratios(taken["OpenVINO int8"], taken["int8, attention too"])
        rows.append(harness.row("OpenVINO int8 / ours", ratio, "x", bar=">= 1.3", headline=True))
    rows += [harness.row(f"relative error, {name}", [100 * errors[name]], "%") for name in [*runs][1:]]
    for line in rows:
        print(line)
    print(harness.write("processors", "The UNet of SD 1.5 on a processor", rows, about))


if __name__ == "__main__":
    main()
