"""What a list tells of a model: family, size, precision, licence; from headers and small files."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from ..pipelines.errors import SfumatoError
from ..pipelines.weights import read_json
from .inspection import inspect_folder, inspect_weights
from .jobs.home import told_size

CARD = "sfumato.json"
LICENCES = ("modelspec.license", "general.license")
"""Where safetensors and GGUF files name theirs."""
FRONT = re.compile(r"---\n.*?^license:[ \t]*([^\n]+)$.*?^---$", re.DOTALL | re.MULTILINE)
"""The head of a card as the Hub has them."""
CARD_BYTES = 20_000


class Facts(NamedTuple):
    family: str
    """Of a single file what its header tells, as sd15; of a LoRA what it is made for. Empty if nothing tells."""
    role: str = ""
    """model, lora, checkpoint, network ...; gone, or unreadable."""
    bytes: int = 0
    dtype: str = ""
    """The number type, or the packed formats, of most weights."""
    licence: str = ""

    @property
    def text(self) -> str:
        """As "sd, checkpoint, F16, 2.1 GB, Apache-2.0"."""
        size = told_size(self.bytes) if self.bytes else ""
        return ", ".join(part for part in (self.family, self.role, self.dtype, size, self.licence) if part)


def facts(path: Path | None) -> Facts:
    """Never raises for what lies there: a list must show broken entries too, so that they can be removed."""
    if path is None or not path.exists():
        return Facts("", "gone")
    try:
        return _of_folder(path) if path.is_dir() else _of_file(path)
    except (SfumatoError, OSError):
        return Facts("", "unreadable")


def _of_file(path: Path) -> Facts:
    found = inspect_weights(path, hashed=False)
    licence = next((found["about"][name] for name in LICENCES if name in found["about"]), "")
    family = found["architecture"] or found["family"] or ""
    role = found["adapter"] or found["role"]
    return Facts(family, role, found["bytes"], _dtype([found]), licence[:60])


def _of_folder(path: Path) -> Facts:
    found = inspect_folder(path)
    parts = [part for part in found["parts"].values() if "bytes" in part]
    size = sum(part["bytes"] for part in parts)
    return Facts(found["family"] or found["pipeline"], "model", size, _dtype(parts), _licence(path))


def _dtype(parts: list[dict[str, Any]]) -> str:
    packed = sorted({name for part in parts for name in part.get("packed", {})})
    counts = Counter[str]()
    for part in parts:
        counts.update(part["dtypes"])
    return "+".join(packed) or next((name for name, _ in counts.most_common(1)), "")


def _licence(folder: Path) -> str:
    """What its card or its README says."""
    card = folder / CARD
    if card.is_file() and isinstance(told := read_json(card).get("licence"), str):
        return told[:60]
    readme = folder / "README.md"
    if not readme.is_file():
        return ""
    with readme.open("rb") as file:
        found = FRONT.match(file.read(CARD_BYTES).decode("utf-8", "replace"))
    return found[1].strip(" '\"")[:60] if found else ""
