"""Checkpoint folders with packed weights: written layer by layer from a plain folder, whose weights are never all read.

A convert gets one layer at a time, in a network that has no other, under its own name. So whatever a convert does layer
by layer streams, and memory holds one layer beside what is known of all.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..kernels.mapped import give_back
from ..kernels.quant.packed import Layer, QuantConv2d, QuantLinear, packable
from .errors import BadInput, BadWeights, SfumatoError
from .families._packed import blank
from .packed_header import KEY, VERSION, layers_of
from .protocols import Convert
from .stopping import poll
from .weight_writer import Writer, read_tensor, writing
from .weights import Tensor as Entry
from .weights import read_headers, read_json, weight_files

INDEX = "model_index.json"
OLDER = ("text_model.",)
"""Beginnings that names of tensors had in checkpoints of older libraries, which drop them as they open."""
Source = dict[str, tuple[Path, Entry]]


class Written(NamedTuple):
    part: str
    before: int
    """Bytes of the part's weights."""
    after: int
    layers: int
    """How many were packed."""
    formats: dict[str, int]
    """Format to number of layers."""


def check(folder: Path, output: Path, parts: Iterable[str]) -> None:
    """Refuse what can be known before anything is read: parts that are none, or packed already, and a taken output."""
    index = read_json(folder / INDEX)
    for part in parts:
        home = folder / part
        if not isinstance(index.get(part), list) or not (home / "config.json").is_file():
            raise BadInput(
                "parts", f"parts: {folder} has no network {part!r}; it has {', '.join(networks(folder))}"
            )
        if any(layers_of(file) for file in weight_files(home).files):
            raise BadInput("model", f"model: {home} is packed already; start from the plain weights")
    if output.exists():
        raise BadInput("output", f"output: {output} exists; remove it or choose another --output")


def quantise(
    folder: Path,
    output: Path,
    converts: Mapping[str, Convert],
    *,
    said: Mapping[str, str],
    budget: int | None = None,
) -> list[Written]:
    """Write a model folder again with the weights of some parts packed. It appears whole or not at all.

    `converts` is by the parts' names in the index; so is `said`, which goes into the files as the name of what was
    done. A first part larger than `budget` bytes is refused.
    """
    check(folder, output, converts)
    index = read_json(folder / INDEX)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        made = Path(scratch) / output.name
        shutil.copytree(folder, made, ignore=_weights_of(folder, converts))
        found = [
            _write(folder, made, part, f"{index[part][0]}.{index[part][1]}", (convert, said[part]))
            for part, convert in converts.items()
        ]
        if not found[0].layers:
            raise BadInput(
                "method",
                f"method: {said[found[0].part]} packs no layer of {folder}; see its settings smallest and skip",
            )
        if budget is not None and found[0].after > budget:
            raise BadInput(
                "budget",
                f"budget: {budget:,} bytes, and {found[0].part} would take {found[0].after:,}; fewer bits, or mixdq",
            )
        os.replace(made, output)
    return found


def networks(folder: Path) -> list[str]:
    """Parts with weights, by their names in the index."""
    index = read_json(folder / INDEX)
    return [
        name
        for name, value in index.items()
        if isinstance(value, list) and any((folder / name).glob("*.safetensors*"))
    ]


def _weights_of(folder: Path, parts: Mapping[str, Convert]) -> Callable[[str, list[str]], list[str]]:
    """What copying leaves out: weights that are written anew, and what was measured with the plain ones."""

    def ignored(home: str, names: list[str]) -> list[str]:
        place = Path(home).relative_to(folder).as_posix()
        weights = [n for n in names if n.endswith((".safetensors", ".safetensors.index.json"))]
        return weights if place in parts else [n for n in names if place == "." and n == "reuse.json"]

    return ignored


def _write(folder: Path, made: Path, part: str, kind: str, done: tuple[Convert, str]) -> Written:
    home, (convert, said) = folder / part, done
    files, _ = weight_files(home)
    net = blank(home, kind)
    source = _named(read_headers(files), net, home)
    target = made / part / f"{files[0].name.split('.')[0].partition('-')[0]}.safetensors"
    layers: dict[str, dict[str, Any]] = {}
    metadata = {"format": "pt", "sfumato": json.dumps({"method": said})}
    with writing(target, metadata) as writer:
        for name, layer in net.named_modules():
            poll()
            found = packable(layer) if f"{name}.weight" in source else None
            packed = None if found is None else _packed(name, found, source, convert)
            if packed is None:
                continue
            layers[name] = packed.spec()
            _add(writer, name, packed)
            give_back()
            for key in ("weight", "bias"):
                source.pop(f"{name}.{key}", None)
        for name, (file, entry) in source.items():
            writer.copy(name, file, entry)
        metadata[KEY] = json.dumps({"format_version": VERSION, "layers": layers})
    formats = [str(spec["format"]) for spec in layers.values()]
    before = sum(entry.end - entry.start for _, entry in read_headers(files).values())
    counts = {name: formats.count(name) for name in sorted(set(formats))}
    return Written(part, before, writer.size, len(layers), counts)


def _add(writer: Writer, name: str, layer: QuantLinear | QuantConv2d) -> None:
    for key, tensor in layer.tensors().items():
        writer.add(f"{name}.{key}", tensor)
    if layer.bias is not None:
        writer.add(f"{name}.bias", layer.bias)


def _packed(name: str, layer: Layer, source: Source, convert: Convert) -> QuantLinear | QuantConv2d | None:
    """What a convert makes of one layer; None if it leaves it."""
    for key in ("weight", "bias"):
        if f"{name}.{key}" in source:
            tensor = read_tensor(*source[f"{name}.{key}"])
            if not tensor.is_floating_point():
                return None
            setattr(layer, key, nn.Parameter(tensor, requires_grad=False))
    try:
        with torch.no_grad():
            new = convert(_alone(name, layer)).get_submodule(name)
    except SfumatoError:
        raise
    except ValueError as error:
        raise BadInput("method", f"method: {type(convert).__name__}: {error}") from error
    for key, held in list(layer.named_parameters(recurse=False)):
        setattr(layer, key, nn.Parameter(held.to("meta"), requires_grad=False))
    if isinstance(new, QuantLinear | QuantConv2d):
        return new
    if new is not layer:
        raise BadInput(
            "method",
            f"method: {type(convert).__name__} makes layers that no checkpoint holds; choose another",
        )
    return None


def _alone(name: str, layer: nn.Module) -> nn.Module:
    """A network of nothing but this layer, under its dotted name."""
    root = at = nn.Module()
    *outer, last = name.split(".")
    for piece in outer:
        inner = nn.Module()
        at.add_module(piece, inner)
        at = inner
    at.add_module(last, layer)
    return root


def _named(source: Source, net: nn.Module, home: Path) -> Source:
    """Tensors by the names that the network of today has for them."""
    wanted = set(net.state_dict())
    for prefix in ("", *OLDER):
        named = {name.removeprefix(prefix): found for name, found in source.items()}
        strange = sorted(set(named) - wanted)
        if not strange or all(name.endswith("position_ids") for name in strange):
            return {name: found for name, found in named.items() if name in wanted}
    raise BadWeights(
        f"{home}: {min(set(source) - wanted)} is no tensor of a {type(net).__name__} of today; "
        "open the folder with diffusers and save it again"
    )
