"""All parts that a folder's model_index.json names, joined in the diffusers pipeline that they belong to.

A family needs little more: the pipeline encodes prompts, and the network is called by the family's own adapter.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import BadWeights
from ..weights import read_json
from ._parts import BUILD_ERRORS, Part, load_part, load_processor, load_tokenizer, quiet, scheduler_config

SKIPPED = ("safety_checker", "requires_safety_checker")
"""Parts that judge pictures instead of making them."""
LIBRARIES = ("diffusers", "transformers")


@dataclass(frozen=True)
class Opened:
    """`parts` are the networks by their names in the index, `pipe` the diffusers pipeline around them."""

    folder: Path
    dtype: torch.dtype
    device: torch.device
    parts: dict[str, Part]
    pipe: Any
    scheduler: Mapping[str, Any]

    def net(self, name: str) -> Any:
        """A network that the family cannot do without."""
        if name not in self.parts:
            raise BadWeights(f"{self.folder}: model_index.json names no {name}; download the folder again")
        return self.parts[name].net


def open_parts(
    folder: Path, dtype: torch.dtype, device: torch.device, own: Mapping[str, Any] | None = None
) -> Opened:
    """Load every part of a pipeline of diffusers, whose class a family has recognised by name.

    `own` are parts, no networks, that the family has opened itself.
    """
    import diffusers

    index = read_json(folder / "model_index.json")
    cls = getattr(diffusers, str(index["_class_name"]))
    expected, optional = cls._get_signature_keys(cls)
    given: dict[str, Any] = {name: None for name in (*expected, *optional) if name in SKIPPED}
    given |= own or {}
    parts: dict[str, Part] = {}
    for name in sorted({*expected, *optional} - set(given)):
        entry = index.get(name)
        if entry is None or entry == [None, None]:
            if name in expected:
                given[name] = None
        elif not isinstance(entry, list):
            given[name] = entry
        else:
            given[name] = _component(folder, name, entry, dtype, device)
            if isinstance(given[name], Part):
                parts[name] = given[name]
                given[name] = parts[name].net
    if "requires_safety_checker" in given:
        given["requires_safety_checker"] = False
    with quiet():
        try:
            pipe = cls(**given)
        except BUILD_ERRORS as error:
            reason = str(error).split("\n")[0][:200]
            raise BadWeights(f"{folder}: its parts do not fit together ({reason})") from error
    return Opened(folder, dtype, device, parts, pipe, scheduler_config(folder))


def _component(folder: Path, name: str, entry: list[Any], dtype: torch.dtype, device: torch.device) -> Any:
    """A network, tokenizer, processor or scheduler of diffusers or transformers themselves, never of the folder."""
    import diffusers
    import transformers

    library, kind = (str(part) for part in entry) if len(entry) == 2 else ("", "")
    module = importlib.import_module(library) if library in LIBRARIES else None
    found = getattr(module, kind) if module and hasattr(module, kind) else None
    if not isinstance(found, type):
        raise BadWeights(
            f"{folder}: {name} is {kind!r} of {library!r}, which is no class of diffusers or transformers"
        )
    if issubclass(found, diffusers.ModelMixin | transformers.PreTrainedModel):
        return load_part(folder, name, f"{library}.{kind}", dtype, device)
    if issubclass(found, transformers.PreTrainedTokenizerBase):
        return load_tokenizer(folder, name)
    if issubclass(found, diffusers.SchedulerMixin):
        scheduler: Any = found
        with quiet():
            return scheduler.from_config(scheduler_config(folder))
    return load_processor(folder, name, found)
