"""LoRA files as factors per module of a network: names of diffusers, peft, kohya's trainers and LyCORIS.

Only safetensors are read, after the checks of `weights.py`. Names that are not the network's own go through the
converters of diffusers. Scales (alpha / rank) are multiplied into the factors, module by module.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..doors.recognise import identify
from ..errors import BadInput, BadWeights
from ..stopping import poll
from ..weights import REMEDY, UNSAFE, read_header, read_json, read_metadata
from ._lora_names import Row, converted, module_of, rows_of
from ._lycoris import as_lora

FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""Names of a LoRA's weights in a folder of diffusers or peft."""
UNREAD = (
    *("dora_scale", "lora_mid.weight", "hada_t1", "hada_t2", "lokr_t2", "diff", "diff_b", "w_norm", "b_norm"),
    *("oft_blocks", "oft_diag", "bias"),
)
"""How tensors end that other kinds of adapters have."""

ORIGINS = {"sd15": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL", "sd3": "SD 3", "flux-dev": "FLUX.1"}


class Pair(NamedTuple):
    """What is added to a module's weight is up @ down, the scale included."""

    down: Tensor
    """[r, in] or [r, in, kernel...]"""
    up: Tensor
    """[out, r] or [out, r, 1...]"""
    magnitude: Tensor | None = None
    """DoRA's norms (arXiv:2402.09353)."""


class LoraFile(NamedTuple):
    path: Path
    made_for: str
    """As SDXL; empty if nothing says so."""
    parts: Mapping[str, Mapping[str, Pair]]
    """Part -> dotted name of a module in it -> factors."""
    unused: tuple[str, ...]
    """Modules in the file that the model does not have."""


def read_lora(path: Path, nets: Mapping[str, nn.Module], main: str) -> LoraFile:
    """What a file does to these networks. `main` names the one that unprefixed names mean."""
    file, config = _find(path)
    made_for = _made_for(file)
    state = as_lora(_readable(_load(file), file), file)
    first = _baked(state) if main == "unet" else state
    rows = rows_of(first, main)
    if rows is None or any(module_of(nets, part, name) is None for part, name, _, _ in rows):
        rows = rows_of(converted(_baked(first, dotted=True), nets[main], file, _origin(made_for)), main)
    if rows is None:
        raise BadWeights(
            f"{file}: its tensors have names of no known kind of LoRA, as {next(iter(state), '')!r}"
        )
    return _gathered(file, made_for, rows, nets, config)


def _find(path: Path) -> tuple[Path, Mapping[str, Any]]:
    """The weights, and the settings that peft or diffusers saved with them."""
    if path.is_dir():
        file = next((path / name for name in FILES if (path / name).is_file()), None)
        if file is None:
            raise BadWeights(f"{path}: holds neither {' nor '.join(FILES)}; give the LoRA's file")
        beside = path / "adapter_config.json"
        if beside.is_file():
            return file, read_json(beside)
        path = file
    if path.suffix in UNSAFE:
        raise BadWeights(
            f"{path}: can run code when it is opened, so it is refused; {REMEDY.format(file=path)}"
        )
    if not path.is_file():
        raise BadInput("loras", f"loras: there is no file {path}")
    read_header(path)
    saved = read_metadata(path).get("lora_adapter_metadata", "{}")
    try:
        config = json.loads(saved)
    except ValueError as error:
        raise BadWeights(f"{path}: lora_adapter_metadata is not JSON; download it again") from error
    return path, config if isinstance(config, dict) else {}


def _load(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


def _made_for(file: Path) -> str:
    """By names and shapes, else by what its trainer wrote."""
    told, found = read_metadata(file), identify(read_header(file)).architecture
    said = told.get("modelspec.architecture") or told.get("ss_base_model_version") or ""
    return ORIGINS.get(found or "", found or "") or " ".join(said.split())[:60]


def _readable(state: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Without tensors of other kinds of adapters, as long as they say nothing."""
    found = {}
    for name, tensor in state.items():
        if not name.endswith(tuple(f".{end}" for end in UNREAD)):
            found[name] = tensor
        elif bool(tensor.any()):
            raise BadWeights(
                f"{file}: {name} belongs to a kind of adapter that is not supported; LoRA, LoCon, LoHa and LoKr are, "
                "and DoRA in the names of diffusers"
            )
    return found


def _baked(state: Mapping[str, Tensor], *, dotted: bool = False) -> dict[str, Tensor]:
    """alpha / rank multiplied into the upper factors. `dotted` leaves trainers' names, whose readers want an alpha."""
    found = dict(state)
    for name in state:
        module, _, end = name.rpartition(".")
        if end != "alpha" or (dotted and "." not in module):
            continue
        for down, up in (("lora_down", "lora_up"), ("lora_A", "lora_B"), ("lora.down", "lora.up")):
            lower, upper = f"{module}.{down}.weight", f"{module}.{up}.weight"
            if lower in found and upper in found:
                scale = float(found.pop(name)) / len(found[lower])
                found[upper] = found[upper].float() * scale
                break
    return found


def _origin(made_for: str) -> str:
    return f"a LoRA for {made_for}" if made_for else "this LoRA"


def _gathered(
    file: Path,
    made_for: str,
    rows: list[Row],
    nets: Mapping[str, nn.Module],
    config: Mapping[str, Any],
) -> LoraFile:
    held: dict[tuple[str, str], dict[str, Tensor]] = {}
    for part, module, role, tensor in rows:
        held.setdefault((part, module), {})[role] = tensor
    parts: dict[str, dict[str, Pair]] = {}
    unused = []
    for (part, name), factors in held.items():
        poll()
        own = module_of(nets, part, name)
        if own is None:
            unused.append(f"{part}.{name}")
            continue
        if not {"down", "up"} <= set(factors):
            raise BadWeights(f"{file}: {part}.{name} has one factor of two; download it again")
        scale = _saved_scale(config, part, name, len(factors["down"]), file)
        pair = Pair(factors["down"], factors["up"].float() * scale, factors.get("magnitude"))
        parts.setdefault(part, {})[own] = _fitted(
            pair, nets[part].get_submodule(own), f"{part}.{own}", file, made_for
        )
    if not parts:
        kinds = ", ".join(sorted({type(net).__name__ for net in nets.values()}))
        raise BadWeights(f"{file}: {_origin(made_for)}; none of its modules is in this model ({kinds})")
    return LoraFile(file, made_for, parts, tuple(unused))


def _saved_scale(config: Mapping[str, Any], part: str, module: str, rank: int, file: Path) -> float:
    """alpha / rank as peft saved it; diffusers puts the part's name before each setting. 1 if nothing was saved."""
    own = {name.removeprefix(f"{part}."): value for name, value in config.items()}
    if "lora_alpha" not in own:
        return 1.0
    patterns = own.get("alpha_pattern")
    special = (
        {key.lstrip("^"): value for key, value in patterns.items()} if isinstance(patterns, dict) else {}
    )
    found = next((key for key in special if f".{module}".endswith(f".{key}")), None)
    alpha = own["lora_alpha"] if found is None else special[found]
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise BadWeights(f"{file}: lora_alpha of {part}.{module} is {str(alpha)[:40]!r}, not a number")
    return float(alpha) / math.sqrt(rank) if own.get("use_rslora") else float(alpha) / rank


def _fitted(pair: Pair, module: nn.Module, name: str, file: Path, made_for: str) -> Pair:
    """The factors in the shape of the module's own weight."""
    shape = _shape(module)
    down, up = pair.down.flatten(1), pair.up.flatten(1)
    if (
        shape is None
        or (len(up), down.shape[1]) != (shape[0], math.prod(shape[1:]))
        or up.shape[1] != len(down)
    ):
        raise BadWeights(
            f"{file}: {_origin(made_for)}; it has {list(up.shape)} @ {list(down.shape)} for {name}, "
            f"this model's weight is {None if shape is None else list(shape)}"
        )
    if pair.magnitude is not None and pair.magnitude.numel() != shape[0]:
        raise BadWeights(f"{file}: {name} has {pair.magnitude.numel()} norms for {shape[0]} rows")
    if not bool(torch.isfinite(down).all()) or not bool(torch.isfinite(up).all()):
        raise BadWeights(f"{file}: {name} holds NaN or infinity; download it again")
    ones = [1] * (len(shape) - 2)
    return Pair(down.reshape(-1, *shape[1:]), up.reshape(*up.shape, *ones), pair.magnitude)


def _shape(module: nn.Module) -> tuple[int, ...] | None:
    """Of the weight of the module under an adapter, should it have one already; packed weights say their own."""
    base = module
    while "base_layer" in dict(base.named_children()):
        base = base.get_submodule("base_layer")
    if isinstance(base, nn.Linear):
        return base.out_features, base.in_features
    if isinstance(base, nn.Conv2d):
        return base.out_channels, base.in_channels // base.groups, *base.kernel_size
    weight = dict(base.named_parameters(recurse=False)).get("weight")
    return None if weight is None else tuple(weight.shape)
