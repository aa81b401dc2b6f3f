"""Networks whose weights lie in a single file or in another folder than their config."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadInput, BadWeights
from ..families._parts import BUILD_ERRORS, check_counts, load_net, quiet
from ..weights import read_tensors
from .layouts import TRANSLATE, Tensors
from .scaled import plain, scaled_layers

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class FolderSupply:
    """A network of the parts folder."""

    home: Path
    files: tuple[Path, ...]

    def __call__(self, kind: str, dtype: torch.dtype) -> nn.Module:
        return load_net(self.home, kind, dtype, torch.device("cpu")).net


@dataclass(frozen=True)
class FileSupply:
    """A network in a single safetensors file."""

    file: Path
    home: Path
    """Where its config.json is."""
    prefix: str
    naming: str
    config: Mapping[str, Any]

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.file,)

    def __call__(self, kind: str, dtype: torch.dtype) -> nn.Module:
        cls, blank = _blank(self, kind)
        tensors = _translated(self, _read(self.file, self.prefix, dtype), kind)
        with quiet():
            try:
                if kind.startswith("transformers."):
                    return _transformers(self, cls, tensors, dtype)
                check_fit(self, blank.state_dict(), tensors, shapes=True)
                config = str(self.home)
                net: nn.Module = cls.from_single_file(
                    tensors, config=config, local_files_only=True, torch_dtype=dtype
                )
            except BUILD_ERRORS as error:
                raise _unfit(self, error) from error
        return net


@dataclass(frozen=True)
class GgufSupply:
    """A network in a GGUF file: its weights stay packed, and are unpacked layer by layer as it runs."""

    file: Path
    home: Path
    prefix: str
    naming: str
    config: Mapping[str, Any]

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.file,)

    def __call__(self, kind: str, dtype: torch.dtype) -> nn.Module:
        import diffusers
        from diffusers.models.model_loading_utils import load_gguf_checkpoint

        cls, blank = _blank(self, kind)
        with quiet():
            try:
                held = load_gguf_checkpoint(str(self.file))
                own = {n.removeprefix(self.prefix): t for n, t in held.items() if n.startswith(self.prefix)}
                tensors = _translated(self, own, kind)
                check_fit(self, blank.state_dict(), tensors, shapes=False)
                net: nn.Module = cls.from_single_file(
                    tensors,
                    config=str(self.home),
                    local_files_only=True,
                    torch_dtype=dtype,
                    quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=dtype),
                )
            except BUILD_ERRORS as error:
                raise _unfit(self, error) from error
        return net


def check_gguf_package(file: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise BadInput(
            "model", f"{file}: GGUF files need the gguf package; install it: pip install 'sfumato[gguf]'"
        )


def _unfit(supply: FileSupply | GgufSupply, error: Exception) -> BadWeights:
    if isinstance(error, BadWeights):
        return error
    reason = " ".join(str(error).split())[:200]
    return BadWeights(
        f"{supply.home}: the weights do not fit the config ({reason}); give --parts of the same model"
    )


def _blank(supply: FileSupply | GgufSupply, kind: str) -> tuple[Any, nn.Module]:
    """The class, and the network without weights; a config far larger than the file is refused."""
    library, _, name = kind.partition(".")
    cls = getattr(importlib.import_module(library), name)
    held = sum(
        math.prod(tensor.shape)
        for n, tensor in read_tensors(supply.file).items()
        if n.startswith(supply.prefix)
    )
    check_counts(supply.config, supply.home)
    with quiet(), torch.device("meta"):
        try:
            if library == "transformers":
                blank: nn.Module = cls(cls.config_class.from_dict(dict(supply.config)))
            else:
                blank = cls.from_config(dict(supply.config))
        except BUILD_ERRORS as error:
            raise _unfit(supply, error) from error
    needed = sum(weight.numel() for weight in blank.parameters())
    if needed > 2 * held + 1_000_000:
        raise BadWeights(
            f"{supply.home}: the config wants {needed:,} weights, the file holds {held:,}; "
            "give --parts of the same model"
        )
    return cls, blank


def _read(file: Path, prefix: str, dtype: torch.dtype) -> Tensors:
    """The tensors under a prefix, without it. What is stored in 8 bits cannot be computed with, so it is widened."""
    from safetensors import safe_open

    layers = scaled_layers(file)
    found: Tensors = {}
    with safe_open(str(file), framework="pt", device="cpu") as stream:
        for name in stream.keys():  # noqa: SIM118 (no mapping)
            if name.startswith(prefix):
                tensor: Tensor = stream.get_tensor(name)
                found[name.removeprefix(prefix)] = tensor.to(dtype) if tensor.dtype in FLOAT8 else tensor
    own = {n.removeprefix(prefix): spec for n, spec in layers.items() if n.startswith(prefix)}
    return plain(found, own, dtype) if layers else found


def _translated(supply: FileSupply | GgufSupply, tensors: Tensors, kind: str) -> Tensors:
    try:
        return TRANSLATE[supply.naming](tensors, supply.config, kind.endswith("WithProjection"))
    except BUILD_ERRORS as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise BadWeights(
            f"{supply.home}: its tensors are not those of a {kind.partition('.')[2]} ({reason}); "
            "copy or download the file again"
        ) from error


def check_fit(
    supply: FileSupply | GgufSupply, wanted: Mapping[str, Tensor], tensors: Tensors, *, shapes: bool
) -> None:
    """All names and no others; shapes of packed tensors are checked when they are unpacked."""
    for what, names in (
        ("lacks", set(wanted) - set(tensors)),
        ("has, beyond the config,", set(tensors) - set(wanted)),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise BadWeights(
                f"{supply.home}: the file {what} {min(names)}{more}; give --parts of the same model"
            )
    for name in wanted if shapes else ():
        if wanted[name].shape != tensors[name].shape:
            raise BadWeights(
                f"{supply.home}: tensor {name} has the shape {list(tensors[name].shape)}, the config wants "
                f"{list(wanted[name].shape)}; give --parts of the same model"
            )


def _transformers(supply: FileSupply, cls: Any, tensors: Tensors, dtype: torch.dtype) -> nn.Module:
    """A text encoder, by the same steps as from a folder."""
    net, report = cls.from_pretrained(
        None,
        config=cls.config_class.from_dict(dict(supply.config)),
        state_dict=tensors,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        attn_implementation="sdpa",
        local_files_only=True,
    )
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys", "error_msgs"):
        if report[what]:
            first = min(str(item) for item in report[what])
            raise BadWeights(
                f"{supply.home}: {what.replace('_', ' ')}: {first[:120]}; give --parts of the same model"
            )
    found: nn.Module = net
    return found
