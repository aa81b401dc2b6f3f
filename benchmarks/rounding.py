"""What rounding takes from the linear layers of a network, on inputs of runs that nobody calibrated on.

The error is that of a layer's products beside full precision's, in percent of their norm: the median layer, the least
and the greatest. *Heavy* are the layers whose inputs have the heaviest tails (kurtosis), a quarter of all. Scales of
`ptq4dm` are also compared by the pictures.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import quality
import torch
from harness import Options, Row, finish, machine, row
from sfumato.assets.recipes.measure import prompts
from sfumato.kernels.quant.floats import MiniFloat
from sfumato.kernels.quant.packed import QuantLinear
from sfumato.kernels.quant.stored import held_bytes
from sfumato.pipelines.calibration import watch
from sfumato.pipelines.converts._calibration import Seen
from sfumato.pipelines.converts.lorc import Lorc
from sfumato.pipelines.converts.minifloat import Minifloat
from sfumato.pipelines.converts.noisyquant import NoisyQuant
from sfumato.pipelines.converts.ptq4dm import Ptq4dm
from sfumato.pipelines.converts.squeeze import Squeeze
from sfumato.pipelines.converts.weight_only import WeightOnly
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.protocols import Model
from sfumato.pipelines.text_to_image import TextToImage
from torch import nn

CALIBRATION = 8
"""Prompts that are calibrated on."""
HELD_OUT = 4
"""Prompts whose inputs are measured."""
ONE_STEP = 0.01
"""A spread of steps so narrow that a single one counts."""
EVERY_STEP = 1e3
RANKS = (0, 4, 8, 16, 32, 64)
Convert = Callable[[nn.Module], nn.Module]


def of_weights(seen: Seen) -> Iterator[tuple[str, Convert]]:
    """Methods that leave activations alone."""
    yield from ((f"lorc, rank {rank}", Lorc(rank=rank)) for rank in RANKS)
    for bits in (3, 4):
        yield f"squeeze {bits}", Squeeze(bits, seen=seen)
        yield f"squeeze {bits} without outliers", Squeeze(bits, outliers=0, sensitive=0, seen=seen)
    for bits in (4, 6, 8):
        yield f"minifloat {bits}", Minifloat(bits, seen=seen)
    names = ("int3", "int4", "nf4", "e2m1", "int6", "e2m3", "e3m2", "int8", "e4m3", "e5m2")
    yield from ((name, WeightOnly(name)) for name in names)


def noises(seen: Seen) -> Iterator[tuple[str, Convert]]:
    """Activations in few bits, with the fixed noise and without: where nothing was seen there is none."""
    for bits in (6, 4):
        yield f"noisyquant {bits}", NoisyQuant(seen, bits)
        yield f"noisyquant {bits} without noise", NoisyQuant(Seen(seen.steps, {}), bits)


def scales(seen: Seen) -> Iterator[tuple[str, Convert]]:
    """Scales fixed beforehand, by the steps that they are taken from."""
    yield "ptq4dm", Ptq4dm(seen)
    yield "ptq4dm, all steps alike", Ptq4dm(seen, spread=EVERY_STEP)
    for name, mean in (("noisiest", 1.0), ("middle", 0.5), ("cleanest", 0.0)):
        yield f"ptq4dm, the {name} step alone", Ptq4dm(seen, mean, ONE_STEP)


def errors(net: nn.Module, convert: Convert, held_out: Seen) -> dict[str, float]:
    """Percent, by the name of each linear layer that was packed."""
    ours, found = convert(copy.deepcopy(net)), {}
    with torch.no_grad():
        for name, layer in ours.named_modules():
            if isinstance(layer, QuantLinear) and name in held_out.layers:
                x = held_out.layers[name].rows.float()[None]
                plain = net.get_submodule(name)(x)
                found[name] = 100 * float((layer(x) - plain).norm() / plain.norm())
    return found


def heavy(held_out: Seen, names: Sequence[str]) -> list[str]:
    """The quarter of the layers whose inputs have the greatest kurtosis."""

    def kurtosis(name: str) -> float:
        x = held_out.layers[name].rows.float()
        off = x - x.mean()
        return float(off.pow(4).mean() / off.square().mean().square())

    return sorted(names, key=kurtosis, reverse=True)[: max(len(names) // 4, 1)]


def told(name: str, found: Mapping[str, float], heavies: Sequence[str] = ()) -> list[Row]:
    rows = [row(f"{name}: error", list(found.values()), "%")]
    if heavies:
        rows.append(row(f"{name}: error of heavy layers", [found[n] for n in heavies], "%"))
    return rows


def measure(model: Model, given: Options) -> list[Row]:
    net, rows = model.denoise.net, []
    texts = prompts(CALIBRATION + HELD_OUT, split="train")
    seen = watch(model, texts[:CALIBRATION], given.steps)
    held_out = watch(model, texts[CALIBRATION:], given.steps, seed=100)
    whole = held_bytes(net)
    for name, convert in of_weights(seen):
        rows += told(name, errors(net, convert, held_out))
        packed = convert(copy.deepcopy(net))
        rows.append(row(f"{name}: bytes / full precision's", [held_bytes(packed) / whole], "x"))
        if isinstance(convert, Minifloat):
            chosen = [isinstance(m.form, MiniFloat) for m in packed.modules() if isinstance(m, QuantLinear)]
            rows.append(row(f"{name}: linear layers that take floats", [sum(chosen) / len(chosen)], "share"))
    for name, convert in noises(seen):
        found = errors(net, convert, held_out)
        rows += told(name, found, heavy(held_out, list(found)))
    full = quality.pictures(TextToImage(model), given.repeats, given.steps)
    for name, convert in scales(seen):
        rows += told(name, errors(net, convert, held_out))
        model.denoise.net = convert(copy.deepcopy(net))
        made = quality.pictures(TextToImage(model), given.repeats, given.steps)
        rows += quality.rows(name, made, full, judged=False)
        model.denoise.net = net
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--model", default="still-life-unet", help="built-in model or folder (default still-life-unet)"
    )
    parser.add_argument("--repeats", type=int, default=20, help="captions (default 20)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (default 20)")
    parser.add_argument("--dry", action="store_true", help="print, write no result")
    arguments = parser.parse_args()
    given = Options(arguments.model, arguments.repeats, arguments.steps, "cpu", arguments.dry)
    about, model = machine(), open_model(given.model)
    name = Path(given.model).name
    finish(f"rounding-{name}", f"Rounding, layer by layer, {name}", measure(model, given), about, given)


if __name__ == "__main__":
    main()
