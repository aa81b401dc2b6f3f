"""What a safetensors file with packed weights says of its layers, in its header under `_quantization_metadata`:
{"format_version": "1.0", "layers": {name: {"format": ..., ...}}}. ComfyUI's files have the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import BadWeights
from .weights import read_metadata

KEY = "_quantization_metadata"
VERSION = "1.0"


def layers_of(file: Path) -> dict[str, dict[str, Any]]:
    """Layer to what its tensors mean; empty for a file of plain weights."""
    said = read_metadata(file).get(KEY)
    if said is None:
        return {}
    try:
        layers = json.loads(said)["layers"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadWeights(
            f"{file}: its {KEY} cannot be read ({str(error)[:80]}); download it again"
        ) from error
    if not isinstance(layers, dict) or not all(isinstance(spec, dict) for spec in layers.values()):
        raise BadWeights(f"{file}: its {KEY} names no layers; download it again")
    return layers
