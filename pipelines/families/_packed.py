"""Networks whose checkpoint holds packed weights: opened without the plain ones, which never exist."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.quant.packed import packable, rounds
from ...kernels.quant.stored import restored
from ...kernels.steady import steady
from ..errors import BadWeights
from ..packed_header import layers_of
from ..weight_writer import read_tensor
from ..weights import read_headers, read_json


def load_packed(home: Path, file: Path, kind: str, dtype: torch.dtype) -> nn.Module:
    """The network of a folder whose one weight file is packed."""
    net, layers = blank(home, kind, dtype), layers_of(file)
    tensors = _tensors(file)
    wide = net._keep_in_fp32_modules or ()
    for name, spec in layers.items():
        own = {
            key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.rpartition(".")[0] == name
        }
        own.pop("bias", None)
        try:
            layer = packable(net.get_submodule(name))
            if layer is None:
                raise ValueError("no layer of this kind can be packed")
            new = restored(layer, spec, own)
        except (AttributeError, ValueError, TypeError, RuntimeError) as error:
            raise BadWeights(
                f"{home}: {name}: {str(error)[:160]}; make or download the folder again"
            ) from error
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, new)
        for key in own:
            del tensors[f"{name}.{key}"]
    kept = {
        name: t.to(torch.float32 if set(wide) & set(name.split(".")) else dtype)
        if t.is_floating_point()
        else t
        for name, t in tensors.items()
    }
    fill(net, kept, home)
    return steady(net) if rounds(net) else net


def _tensors(file: Path) -> dict[str, Tensor]:
    return {name: read_tensor(path, entry) for name, (path, entry) in read_headers([file]).items()}


def fill(net: nn.Module, tensors: Mapping[str, Tensor], home: Path) -> None:
    """Give a network that is on meta these tensors for its own: all that it has, and no others."""
    try:
        report = net.load_state_dict(dict(tensors), strict=False, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-200:]
        raise BadWeights(f"{home}: the weights do not fit config.json ({reason})") from error
    if type(net).__module__.startswith("transformers"):
        tie: Any = net
        tie.tie_weights()
    lacking = [name for name, t in (*net.named_parameters(), *net.named_buffers()) if t.is_meta]
    for what, names in (("lack", lacking), ("have, beyond config.json,", report.unexpected_keys)):
        if names:
            raise BadWeights(f"{home}: the weight files {what} {names[0]}; make or download the folder again")


def blank(home: Path, kind: str, dtype: torch.dtype = torch.float32) -> Any:
    """The network of a config without weights, on meta but for buffers that no file holds."""
    from accelerate import init_empty_weights

    from ._parts import BUILD_ERRORS, check_counts, quiet

    library, _, name = kind.partition(".")
    cls, config = getattr(importlib.import_module(library), name), read_json(home / "config.json")
    check_counts(config, home)
    with quiet(), _default(dtype), init_empty_weights(include_buffers=False):
        try:
            if library != "transformers":
                return cls.from_config(config)
            told = cls.config_class.from_dict(config)
            told._attn_implementation = "sdpa" if cls._supports_sdpa else "eager"
            return cls(told)
        except BUILD_ERRORS as error:
            raise BadWeights(f"{home}: config.json makes no {name} ({str(error)[:160]})") from error


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """Buffers that are computed as the network is built have its precision, as when it is opened plain."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
