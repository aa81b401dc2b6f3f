"""`sfumato models quantize`: a model folder written again with packed weights."""

from __future__ import annotations

import importlib
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Console
from .faults import refuse

if TYPE_CHECKING:
    from ..kernels.quant.formats import Format
    from ..pipelines.protocols import Convert, Model
    from ..pipelines.quantised import Written
    from .catalogue import Entry

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
        int | None, typer.Option("--bits", help="per weight; the method's own if not given", min=2, max=8)
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
            "--also", help="another part, as text_encoder or vae: its weights in 8 bits; repeat for more"
        ),
    ] = None,
    prompts: Annotated[
        int, typer.Option("--prompts", help="captions to calibrate on; 0 does without", min=0)
    ] = 8,
) -> None:
    """Write a model folder with packed weights. It opens like any other, without the original.

    Weights are read and written layer by layer. Methods that calibrate open the plain model first, as generate does.
    """
    from ..pipelines.converts.weight_only import WeightOnly
    from ..pipelines.quantised import quantise
    from .builder import find
    from .chosen import Technique

    folder, part = _network(place)
    technique = Technique.model_validate(method)
    entry = find(technique, "convert", "method")
    limit = None if budget is None else parse_size(budget)
    given = _settings(technique, entry, bits)
    if limit is not None and (known := _bits(entry, given)) is not None:
        _surely(limit, folder / part, known)
    given |= _measured(console, entry, given, folder / part, (limit, prompts))
    made = _make(entry, given)
    converts = {part: made, **{name: WeightOnly("int8") for name in also or () if name != part}}
    console.say(f"packing {', '.join(converts)}")
    said = str(technique) if bits is None else f"{technique} in {bits} bits"
    found = quantise(folder, Path(output).expanduser(), converts, said=said, budget=limit)
    data = {"folder": output, "method": said, "parts": [one._asdict() for one in found]}
    console.data(data, "\n".join([output, *(told(one) for one in found)]))


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


def _settings(technique: Any, entry: Entry, bits: int | None) -> dict[str, Any]:
    """What was given as text, checked; `--bits` is the setting of that name, or the format of so many bits."""
    from .builder import settings

    public = getattr(importlib.import_module(entry.module), entry.name)
    given = settings(entry, public, technique, "method")
    if bits is None:
        return given
    names = [setting.name for setting in entry.settings]
    if "bits" in names:
        return {**given, "bits": bits}
    if "format" in names:
        if bits == 7:
            raise refuse("bits", "7", "is no number of bits of weight-only; choose 2 to 6 or 8")
        return {"format": "nf4" if bits == 4 else f"int{bits}", **given}
    raise refuse("bits", str(bits), f"cannot be chosen for {entry.id}; leave --bits out")


def _bits(entry: Entry, given: dict[str, Any]) -> int | None:
    """Of a packed weight, where the method's settings tell them."""
    defaults = {setting.name: setting.default for setting in entry.settings}
    named = {"bits": None, "format": None} | defaults | given
    told = re.sub(r"^nf", "int", str(named["bits"] or named["format"]))
    found = re.fullmatch(r"(?:int)?(\d)", told)
    return int(found[1]) if found else None


def _surely(limit: int, home: Path, bits: int) -> None:
    """Refuse what can't be met even if every matrix were packed, before anything is calibrated or packed."""
    from ..pipelines.weights import read_headers, weight_files

    headers = [entry for _, entry in read_headers(weight_files(home).files).values()]
    matrices = [entry for entry in headers if len(entry.shape) > 1]
    rest = sum(entry.end - entry.start for entry in headers if len(entry.shape) < 2)
    least = rest + sum(math.prod(entry.shape) for entry in matrices) * bits // 8
    if limit < least:
        remedy = f"is less than {least:,}, which {home.name} takes at least in {bits} bits; fewer bits, or a larger one"
        raise refuse("budget", f"{limit:,} bytes", remedy)


def _measured(
    console: Console, entry: Entry, given: dict[str, Any], home: Path, asked: tuple[int | None, int]
) -> dict[str, Any]:
    """What a method must know of the model: what its layers are given, how much each matters."""
    from ..assets.recipes.measure import prompts as captions
    from ..pipelines.calibration import sensitivity, watch
    from ..pipelines.converts._packing import SMALLEST
    from ..pipelines.loading import open_model

    limit, count = asked
    wanted = {setting.name: setting.default is ... for setting in entry.settings}
    if "sensitivity" in wanted and limit is None:
        raise refuse("budget", "none", "was given; mixdq chooses formats by --budget")
    needed = wanted.get("seen", False) or "sensitivity" in wanted
    listens = "seen" in wanted and (entry.id != "mixdq" or given.get("inputs") == 8)
    if count == 0 and needed:
        raise refuse("prompts", "0", f"leaves nothing to calibrate {entry.id} on; give 1 or more")
    if count == 0 or not (needed or listens):
        return {}
    texts, model = captions(count, split="train"), open_model(home.parent)
    found: dict[str, Any] = {}
    steps = max(2, min(STEPS, model.defaults.steps))
    if "sensitivity" in wanted and limit is not None:
        found["budget"] = _room(model, home, limit)
    console.say(f"calibrating on {count} captions at {steps} steps")
    if listens:
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


def _formats() -> dict[str, Format]:
    from ..kernels.quant.formats import NAMED

    return {name: NAMED[name] for name in MIXED}


def _make(entry: Entry, given: dict[str, Any]) -> Convert:
    public: Any = getattr(importlib.import_module(entry.module), entry.name)
    lacking = [s.name for s in entry.settings if s.default is ... and s.name not in given]
    if lacking:
        raise refuse("method", entry.id, f"needs {', '.join(lacking)}; write {entry.id}:{lacking[0]}=...")
    try:
        made: Convert = public(**given)
    except ValueError as error:
        raise refuse("method", entry.id, f"cannot be used so: {error}") from error
    return made
