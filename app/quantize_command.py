"""`sfumato models quantize`: a model folder written again with packed weights."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Console
from .faults import refuse

if TYPE_CHECKING:
    from ..kernels.quant.formats import Format
    from ..pipelines.protocols import Model
    from ..pipelines.quantised import Written
    from .quantize_methods import Method

NETWORKS = ("transformer", "unet", "prior", "decoder")
"""What the network that denoises is called in an index, the first that is there."""
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
STEPS = 8
"""Of each calibration run, or the model's own if they are fewer."""
MIXED = ("int2", "int3", "int4", "int5", "int6", "int8")
"""Formats among which mixdq chooses."""
TRIED = 4
"""Captions on which it tries each of them in each layer, at most."""


def models_quantize(
    console: Console,
    place: Annotated[str, typer.Argument(help="built-in or remembered model, or a folder", metavar="MODEL")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="the folder to write; must not exist", metavar="FOLDER")
    ],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="weight-only, minifloat, dgq, lorc, squeeze, svdquant, noisyquant, ptq4dm or mixdq, as NAME or "
            "NAME:key=value,key=value",
        ),
    ] = "weight-only",
    bits: Annotated[
        int | None,
        typer.Option(
            "--bits",
            help="of the weights, where the method leaves a choice; its own if not given",
            min=2,
            max=8,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", help="bytes that the network may take, as 4GB; mixdq chooses by it", metavar="SIZE"
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--also",
            help="another part, as vae, in 8 bits or by this method; may repeat",
            metavar="PART[=METHOD]",
        ),
    ] = None,
    prompts: Annotated[
        int, typer.Option("--prompts", help="captions to calibrate on; 0 does without", min=0)
    ] = 8,
) -> None:
    """Write a model folder with packed weights. It opens like any other, without the original.

    Weights are read and written layer by layer. Methods that calibrate open the plain model first, as generate does.
    """
    from ..pipelines.quantised import check, quantise

    folder, part = _network(place)
    each = _methods(part, method, bits, also or [])
    limit = None if budget is None else parse_size(budget)
    check(folder, target := Path(output).expanduser(), each)
    _surely(limit, folder / part, each[part].bits)
    measured = _measured(console, each[part], folder / part, (limit, prompts))
    converts = {name: one.made(measured if name == part else {}) for name, one in each.items()}
    console.say(f"packing {', '.join(each)}")
    said = {name: str(one) for name, one in each.items()}
    found = quantise(folder, target, converts, said=said, budget=limit)
    data = {"folder": output, "method": said[part], "parts": [one._asdict() for one in found]}
    console.data(data, "\n".join([output, *map(told, found)]))


def _methods(part: str, text: str, bits: int | None, also: list[str]) -> dict[str, Method]:
    """By parts, the network first. The others' is 8 bits where none is named."""
    from .quantize_methods import method_of

    found = {part: method_of(text, bits)}
    for other in also:
        name, equals, told = other.partition("=")
        if name in found:
            why = "is the network itself, which --method packs" if name == part else "is named twice"
            raise refuse("also", name, f"{why}; leave it out")
        found[name] = method_of(told if equals else "weight-only:format=int8", field="also")
        if found[name].needs:
            raise refuse("also", other, "must be calibrated, which the network alone can be; another method")
    return found


def _network(place: str) -> tuple[Path, str]:
    """A model's folder, and the name of the network in it."""
    from ..pipelines.loading import find_model
    from ..pipelines.quantised import networks
    from .registry import locate

    folder = find_model(locate(place).place)
    if not folder.is_dir():
        raise refuse("model", place, "is a single file; a folder in diffusers layout can be quantised")
    part = next((name for name in NETWORKS if name in networks(folder)), None)
    if part is None:
        raise refuse("model", place, f"has no {' or '.join(NETWORKS)}")
    return folder, part


def told(one: Written) -> str:
    formats = ", ".join(f"{count} {name}" for name, count in one.formats.items())
    return f"  {one.part}: {one.before:,} to {one.after:,} bytes; layers: {formats or 'none'}"


def parse_size(text: str) -> int:
    """4GB, 1.5 GiB, 300000."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS:
        raise refuse("budget", text, "is no size; write it as 4GB, 1.5GiB or a number of bytes")
    return round(float(match[1]) * UNITS[match[2].upper()])


def _surely(limit: int | None, home: Path, bits: int | None) -> None:
    """Refuse what can't be met even if every matrix were packed, before anything is calibrated or packed."""
    from ..pipelines.weights import read_headers, weight_files

    if limit is None or bits is None:
        return
    headers = [entry for _, entry in read_headers(weight_files(home).files).values()]
    matrices = [entry for entry in headers if len(entry.shape) > 1]
    rest = sum(entry.end - entry.start for entry in headers if len(entry.shape) < 2)
    least = rest + sum(math.prod(entry.shape) for entry in matrices) * bits // 8
    if limit < least:
        remedy = f"is less than {least:,}, which {home.name} takes at least in {bits} bits; fewer bits, or a larger one"
        raise refuse("budget", f"{limit:,} bytes", remedy)


def _measured(console: Console, method: Method, home: Path, asked: tuple[int | None, int]) -> dict[str, Any]:
    """What a method must know of the model: what its layers are given, how much each matters."""
    from ..assets.recipes.measure import prompts as captions
    from ..pipelines.calibration import sensitivity, watch
    from ..pipelines.converts._packing import SMALLEST
    from ..pipelines.loading import open_model

    limit, count = asked
    if method.weighs and limit is None:
        raise refuse("budget", "none", "was given; mixdq chooses formats by --budget")
    if count == 0 and method.needs:
        raise refuse("prompts", "0", f"leaves nothing to calibrate {method.entry.id} on; give 1 or more")
    if count == 0 or not (method.needs or method.listens):
        return {}
    texts, model = captions(count, split="train"), open_model(home.parent)
    found: dict[str, Any] = {}
    steps = max(2, min(STEPS, model.defaults.steps))
    if method.weighs and limit is not None:
        found["budget"] = _room(model, home, limit)
        _check_share(model, method, found["budget"])
    console.say(f"calibrating on {count} captions at {steps} steps")
    if method.listens:
        found["seen"] = watch(model, texts, steps)
    if "budget" in found:
        with console.progress("layers") as step:
            found["sensitivity"] = sensitivity(
                model, texts[:TRIED], steps, _formats(), smallest=SMALLEST, step=step
            )
    return found


def _room(model: Model, home: Path, limit: int) -> float:
    """Bytes of the budget that the layers with formats of their own may take; refused if they can't do with it."""
    from ..kernels.quant.packed import layer_size, matrix_shape
    from ..pipelines.calibration import measured_layers
    from ..pipelines.converts._packing import SMALLEST
    from ..pipelines.weights import read_headers, weight_files

    headers = read_headers(weight_files(home).files)
    whole = sum(entry.end - entry.start for _, entry in headers.values())
    net: Any = model.denoise.net
    width = whole / sum(weight.numel() for weight in net.parameters())
    layers = measured_layers(net, smallest=SMALLEST).values()
    rest = whole - width * sum(rows * count for rows, count in map(matrix_shape, layers))
    least = sum(min(layer_size(layer, form) for form in _formats().values()) for layer in layers)
    if limit < rest + least:
        raise refuse(
            "budget",
            f"{limit:,} bytes",
            f"is less than the {least:,} of the smallest formats and {rest:,.0f} of what stays as it is",
        )
    return limit - rest


def _check_share(model: Model, method: Method, budget: float) -> None:
    """Refuse a share that leaves some layers less than their smallest formats, which no measuring would change."""
    from torch import nn

    from ..kernels.quant.packed import layer_size
    from ..pipelines.calibration import content_layers, measured_layers
    from ..pipelines.converts._calibration import Sensitivity
    from ..pipelines.converts._packing import SMALLEST

    if method.given.get("share", -1.0) < 0:
        return
    layers, formats = measured_layers(model.denoise.net, smallest=SMALLEST), _formats()
    sizes = {
        name: {title: layer_size(layer, form) for title, form in formats.items()}
        for name, layer in layers.items()
    }
    losses = {name: dict.fromkeys(formats, 0.0) for name in layers}
    alike = Sensitivity(losses, sizes, content_layers(layers))
    try:
        method.made({"sensitivity": alike, "budget": budget})(nn.Module())
    except ValueError as error:
        raise refuse("method", str(method), str(error)) from error


def _formats() -> dict[str, Format]:
    from ..kernels.quant.formats import NAMED

    return {name: NAMED[name] for name in MIXED}
