"""Networks on a processor, with random weights of real shapes: plain, exact, and in 8 bits.

`unet`, `unet-exact`: Stable Diffusion 1.5 at 512 x 512, a guided step. `dit`: DiT-XL/2 at 512 x 512, two pictures.
`vae`: the decoder of Stable Diffusion at 512 x 512. The peer, OpenVINO in float32 and with weights and activations in 8
bits by NNCF, takes part where both packages are installed (extra `peers`). Errors are relative to the plain network.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import harness
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet2DConditionModel
from networks import DIT
from sfumato.pipelines.converts.int8 import Int8
from sfumato.pipelines.converts.products import Products
from sfumato.pipelines.converts.winograd import Winograd
from sfumato.pipelines.doors.architectures import architecture
from sfumato.pipelines.patches.attention import Attention
from sfumato.pipelines.patches.int8_attention import Int8Attention
from sfumato.pipelines.protocols import Patch
from torch import Tensor, nn

Run = Callable[[], Tensor]
PATCHES: dict[str, Patch] = {"int8-attention": Int8Attention(), "attention": Attention("native")}


class Answering(nn.Module):
    """A network that takes tensors and gives one."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *given: Tensor) -> Tensor:
        out: Tensor = self.net(*given, return_dict=False)[0]
        return out


class Decoding(nn.Module):
    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.post_quant_conv(z))
        return out


def unet() -> nn.Module:
    config = dict(architecture("sd15").parts["unet"].config or {})
    return Answering(UNet2DConditionModel.from_config(config))


def dit() -> nn.Module:
    return Answering(DiTTransformer2DModel(**DIT))


def vae() -> nn.Module:
    return Decoding(AutoencoderKL.from_config(dict(architecture("sd15").parts["vae"].config or {})))


@dataclass(frozen=True)
class Case:
    title: str
    short: str
    make: Callable[[], nn.Module]
    given: tuple[Tensor, ...]
    ours: dict[str, tuple[str, ...]]
    """Names and what is done to the network."""
    peers: tuple[str, ...]
    bars: dict[tuple[str, str], str]
    """(peer, ours) -> what the ratio of their times should be."""


def cases() -> dict[str, Case]:
    rng = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 64, 64, generator=rng)
    text = torch.randn(2, 77, 768, generator=rng)
    guided = (latents, torch.tensor([500, 500]), text)
    exact = {"exact": ("products", "winograd", "attention")}
    whole = {"8 bits": ("int8", "winograd", "int8-attention")}
    fp32, int8 = "OpenVINO float32", "OpenVINO 8 bits"
    return {
        "unet": Case(
            "The UNet of SD 1.5 on a processor, in 8 bits",
            "UNet of SD 1.5",
            unet,
            guided,
            whole,
            (int8,),
            {(int8, "8 bits"): ">= 1.3"},
        ),
        "unet-exact": Case(  # apart, since all of them together take 20 GB
            "The UNet of SD 1.5 on a processor, exact",
            "UNet of SD 1.5",
            unet,
            guided,
            exact,
            (fp32,),
            {(fp32, "exact"): ">= 1.25"},
        ),
        "dit": Case(
            "DiT-XL/2 on a processor",
            "DiT-XL/2",
            dit,
            (latents, torch.tensor([500, 500]), torch.tensor([1, 1000])),
            exact | whole,
            (int8,),
            {(int8, "8 bits"): ">= 1.3"},
        ),
        "vae": Case(
            "The decoder of Stable Diffusion on a processor",
            "SD decoder",
            vae,
            (latents[:1],),
            {"exact": ("winograd",)},
            (fp32,),
            {(fp32, "exact"): ">= 1.3"},
        ),
    }


def network(case: Case) -> nn.Module:
    torch.manual_seed(0)
    return case.make().eval().requires_grad_(False).to(memory_format=torch.channels_last)


def run_of(case: Case, techniques: tuple[str, ...], stack: ExitStack) -> Run:
    net = network(case)
    for name in techniques:
        if name in PATCHES:
            stack.enter_context(PATCHES[name](net))
        else:
            {"int8": Int8(), "products": Products(), "winograd": Winograd()}[name](net)

    def run() -> Tensor:
        with torch.no_grad():
            out: Tensor = net(*case.given)
        return out

    return run


def openvino_of(case: Case, name: str, kept: Path, hint: Mapping[str, str]) -> Callable[..., Tensor]:
    """As its users make it: converted, in 8 bits quantised after training with one sample, compiled here."""
    import nncf
    import openvino

    file = kept / f"{case.make.__name__}-{name.split()[1]}.xml"
    if not file.exists():
        given = tuple(t.numpy() for t in case.given)
        model = openvino.convert_model(network(case), example_input=case.given)
        if name.endswith("8 bits"):
            kind = nncf.ModelType.TRANSFORMER if case.make is dit else None
            model = nncf.quantize(model, nncf.Dataset([given]), subset_size=1, model_type=kind)
        openvino.save_model(model, file, compress_to_fp16=False)
    compiled = openvino.Core().compile_model(file, "CPU", dict(hint))
    return lambda *given: torch.from_numpy(compiled(tuple(t.numpy() for t in given))[0])


def measured(case: Case, repeats: int, kept: Path) -> list[harness.Row]:
    stack, there = ExitStack(), all(importlib.util.find_spec(name) for name in ("openvino", "nncf"))
    runs: dict[str, Run] = {"plain": run_of(case, (), stack)}
    runs |= {name: run_of(case, techniques, stack) for name, techniques in case.ours.items()}
    for name in case.peers if there else ():
        # unless told otherwise it takes bfloat16 where the processor has it
        hint = {"INFERENCE_PRECISION_HINT": "f32"} if name.endswith("float32") else {}
        runs[name] = partial(openvino_of(case, name, kept, hint), *case.given)
    wanted = runs["plain"]()
    errors = {name: float((run() - wanted).norm() / wanted.norm()) for name, run in runs.items()}
    taken = harness.interleave(runs, repeats=repeats)
    rows = [harness.row(f"one call, {name}", taken[name], "s") for name in runs]
    rows += [
        harness.row(f"plain / {name}", harness.ratios(taken["plain"], taken[name]), "x")
        for name in [*runs][1:]
    ]
    for (peer, ours), bar in case.bars.items():
        if peer in runs:
            ratio = harness.ratios(taken[peer], taken[ours])
            rows.append(
                harness.row(f"{case.short}: {peer} / ours, {ours}", ratio, "x", bar=bar, headline=True)
            )
    return rows + [harness.row(f"relative error, {name}", [100 * errors[name]], "%") for name in [*runs][1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network", choices=cases(), help="which network")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument("--folder", type=Path, help="where the peer's converted networks are kept")
    given = parser.parse_args()
    about, case = harness.machine(), cases()[given.network]
    with tempfile.TemporaryDirectory() as work:
        rows = measured(case, given.repeats, given.folder or Path(work))
    for line in rows:
        print(line)
    print(harness.write(f"processors-{given.network}", case.title, rows, about))


if __name__ == "__main__":
    main()
