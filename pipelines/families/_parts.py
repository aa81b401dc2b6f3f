"""The parts of a checkpoint folder: networks, tokenizers, settings. Nothing is fetched or executed."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from ..errors import BadWeights
from ..packed_header import layers_of
from ..stopping import poll, polled
from ..weights import read_headers, read_json, weight_files
from ._packed import load_packed

BUILD_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    OSError,
    StrictDataclassError,
)
"""What diffusers and transformers raise, depending on which value of a config or file is wrong."""

COUNTS = re.compile(r"layers|depth|num_.*blocks|n_layer")
"""Settings that say how often something is built."""
MOST_LAYERS = 1000

TOKENIZERS = ("Tokenizer", "TokenizerFast", "TokenizersBackend")
"""How the names of tokenizer classes end."""


class Part(NamedTuple):
    net: nn.Module
    files: tuple[Path, ...]


class Supply(Protocol):
    """The weights of a network that lie elsewhere than beside its config, as in a single file."""

    @property
    def files(self) -> tuple[Path, ...]: ...

    def __call__(self, kind: str, dtype: torch.dtype) -> nn.Module: ...


class Placement(Protocol):
    """Where networks that are being opened go, if not simply into memory."""

    def blank(self, home: Path, kind: str, dtype: torch.dtype, files: Sequence[Path]) -> nn.Module | None:
        """A network over its files, for which nothing was read; None if it is to be opened as usual."""
        ...

    def settle(
        self, net: nn.Module, home: Path, dtype: torch.dtype, device: torch.device, files: Sequence[Path]
    ) -> nn.Module: ...


PLACEMENT: ContextVar[Placement | None] = ContextVar("PLACEMENT", default=None)
"""For the model that is being opened and no longer."""

SUPPLIES: ContextVar[Mapping[Path, Supply]] = ContextVar("SUPPLIES", default=MappingProxyType({}))
"""Config folder to weights, for the model that is being opened and no longer."""


@contextmanager
def quiet() -> Iterator[None]:
    """diffusers and transformers say nothing below an error, and draw no bars, inside this block."""
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    before = ours.get_verbosity(), theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    ours.set_verbosity_error()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        ours.set_verbosity(before[0])
        theirs.set_verbosity(before[1])
        if before[2]:
            theirs.enable_progress_bar()


def load_part(folder: Path, part: str, kind: str, dtype: torch.dtype, device: torch.device) -> Part:
    """One network, as "vae" of class "diffusers.AutoencoderKL": all its weights and no others."""
    _check_index(folder, part, (kind.partition(".")[2],))
    return load_net(folder / part, kind, dtype, device)


def load_net(home: Path, kind: str, dtype: torch.dtype, device: torch.device) -> Part:
    """The network in a folder of its own, whatever model it belongs to."""
    poll()
    supply = SUPPLIES.get().get(home)
    if supply is not None:
        return Part(_at_rest(supply(kind, dtype), home, dtype, device), supply.files)
    library, _, name = kind.partition(".")
    config = read_json(home / "config.json")
    if config.get("quantization_config") is not None or (home / "adapter_config.json").exists():
        raise BadWeights(f"{home}: quantised or adapter checkpoints are not opened; use the plain weights")
    files, variant = weight_files(home)
    if len(files) == 1 and layers_of(files[0]):
        return Part(_at_rest(load_packed(home, files[0], kind, dtype), home, dtype, device, files), files)
    held = sum(math.prod(tensor.shape) for _, tensor in read_headers(files).values())
    cls = getattr(importlib.import_module(library), name)
    check_counts(config, home)
    placement = PLACEMENT.get()
    mapped = None if placement is None else placement.blank(home, kind, dtype, files)
    if mapped is not None:
        return Part(_at_rest(mapped, home, dtype, device, files), files)
    with quiet():
        try:
            if library == "transformers":
                _check_size(cls, config, held, home)
            net, report = _from_pretrained(cls, home, variant, dtype)
        except BadWeights:
            raise
        except BUILD_ERRORS as error:
            reason = " ".join(str(error).split(". ")[0].split())[:300]
            reason = "which wants more memory than there is" if "alloc_cpu" in reason else reason
            raise BadWeights(
                f"{home}: the weights do not fit config.json ({reason}); download both again"
            ) from error
    for trouble in ("missing_keys", "mismatched_keys", "unexpected_keys", "error_msgs"):
        if report[trouble]:
            raise BadWeights(_sentence(home, trouble, sorted(report[trouble], key=str)))
    return Part(_at_rest(net, home, dtype, device, files), files)


def _at_rest(
    net: nn.Module, home: Path, dtype: torch.dtype, device: torch.device, files: Sequence[Path] = ()
) -> nn.Module:
    """Ready to be called, on its device. Text encoders poll by themselves: one prompt may mean several calls.

    `files` hold the weights as the network has them, under their own names.
    """
    placement, net = PLACEMENT.get(), net.eval().requires_grad_(False)
    net = net.to(device) if placement is None else placement.settle(net, home, dtype, device, files)
    return polled(net) if type(net).__module__.startswith("transformers") else net


def _from_pretrained(cls: Any, home: Path, variant: str | None, dtype: torch.dtype) -> Any:
    common = {
        "local_files_only": True,
        "use_safetensors": True,
        "output_loading_info": True,
        "variant": variant,
    }
    if cls.__module__.startswith("transformers"):
        # An explicit attention keeps a config from naming a kernel to be fetched from the Hub. Gemma 2 has eager only.
        attention = "sdpa" if cls._supports_sdpa else "eager"
        return cls.from_pretrained(
            str(home), dtype=dtype, ignore_mismatched_sizes=True, attn_implementation=attention, **common
        )
    return cls.from_pretrained(str(home), torch_dtype=dtype, low_cpu_mem_usage=True, **common)


def _check_size(cls: Any, config: Mapping[str, Any], held: int, home: Path) -> None:
    """Refuse a config far larger than its files before anything of that size is allocated.

    transformers would fill what the files lack with new weights; diffusers leaves it empty.
    """
    with torch.device("meta"):
        blank = cls(cls.config_class.from_dict(dict(config)))
    needed = sum(weight.numel() for weight in blank.parameters())
    if needed > 2 * held + 1_000_000:
        raise BadWeights(
            f"{home}: config.json wants {needed:,} weights, the files hold {held:,}; download both again"
        )


def check_counts(config: Mapping[str, Any], home: Path) -> None:
    """Refuse numbers of layers that would keep even an empty network building for ever."""
    for name, value in config.items():
        rows = value if isinstance(value, list) else [value]
        flat = [n for row in rows for n in (row if isinstance(row, list) else [row])]
        if COUNTS.search(name) and any(isinstance(n, int) and n > MOST_LAYERS for n in flat):
            raise BadWeights(
                f"{home}: config.json wants {name} = {str(value)[:60]}; at most {MOST_LAYERS} are built"
            )


def _sentence(home: Path, trouble: str, items: list[Any]) -> str:
    if trouble == "mismatched_keys":
        name, found, wanted = items[0]
        return (
            f"{home}: tensor {name} has the shape {list(found)}, config.json wants {list(wanted)}; "
            "download both again"
        )
    what = {"missing_keys": "lack", "unexpected_keys": "have, beyond config.json,", "error_msgs": "report"}[
        trouble
    ]
    more = f" and {len(items) - 1} more" if len(items) > 1 else ""
    return f"{home}: the weight files {what} {items[0]}{more}; download the folder again"


def _check_index(folder: Path, part: str, allowed: tuple[str, ...]) -> None:
    entry = read_json(folder / "model_index.json").get(part)
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if name not in allowed:
        raise BadWeights(
            f"{folder}: {part} is {name!r} in model_index.json; supported is {' or '.join(allowed)}"
        )
    if not (folder / part).is_dir():
        raise BadWeights(
            f"{folder / part}: the folder is missing; the model folder is incomplete, download it again"
        )


def load_tokenizer(folder: Path, part: str) -> Any:
    """Any tokenizer class of transformers itself. Code beside the files is never run."""
    import transformers

    home = folder / part
    entry = read_json(folder / "model_index.json").get(part)
    name = str(entry[1]) if isinstance(entry, list) and len(entry) == 2 else ""
    try:
        cls: Any = getattr(transformers, name) if name.endswith(TOKENIZERS) else None
    except AttributeError:
        cls = None
    if cls is None or not issubclass(cls, transformers.PreTrainedTokenizerBase):
        raise BadWeights(f"{home}: model_index.json names {name!r}, which is not a tokenizer of transformers")
    return _tokenizer(cls, home)


def load_processor_tokenizer(folder: Path, part: str) -> Any:
    """The tokenizer of a processor whose other half, of pictures or videos, is not needed and wants torchvision."""
    from transformers import AutoTokenizer

    return _tokenizer(AutoTokenizer, folder / part)


def _tokenizer(cls: Any, home: Path) -> Any:
    if not home.is_dir():
        raise BadWeights(f"{home}: the folder is missing; the model folder is incomplete, download it again")
    with quiet():
        try:
            tokenizer = cls.from_pretrained(str(home), local_files_only=True, trust_remote_code=False)
        except (*BUILD_ERRORS, ImportError) as error:
            reason = str(error).split("\n")[0][:200]
            raise BadWeights(f"{home}: the tokenizer does not open ({reason}); download it again") from error
    if tokenizer.pad_token_id is None:
        raise BadWeights(f"{home}: the tokenizer has no pad token; set pad_token in tokenizer_config.json")
    return tokenizer


def load_processor(folder: Path, part: str, cls: Any) -> Any:
    """An image or video processor of transformers itself."""
    from transformers import ImageProcessingMixin, ProcessorMixin

    home = folder / part
    if not issubclass(cls, ImageProcessingMixin | ProcessorMixin) or not home.is_dir():
        raise BadWeights(f"{home}: {cls.__name__} is no processor of transformers, or its folder is missing")
    with quiet():
        try:
            return cls.from_pretrained(str(home), local_files_only=True, trust_remote_code=False)
        except (*BUILD_ERRORS, ImportError) as error:
            reason = str(error).split("\n")[0][:200]
            raise BadWeights(f"{home}: the processor does not open ({reason}); download it again") from error


def scheduler_config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "scheduler" / "scheduler_config.json")
