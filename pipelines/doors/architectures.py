"""What is known of the models that are shared as single files: configs, and under which names their parts lie.

The numbers are facts of the published models, one JSON file per architecture; text encoders and VAEs, which several
have in common, are in shared.json. Tokenizers are not there: their vocabularies are too large to come with a package.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

CONFIGS = Path(__file__).parent / "configs"


class PartFacts(NamedTuple):
    """One entry of model_index.json."""

    library: str
    kind: str
    config: dict[str, Any] | None
    """None for tokenizers."""
    at: tuple[str, ...]
    """What its names begin with in a file; the first that occurs counts."""
    naming: str
    """How they are translated: unet, vae, clip, open-clip, t5, flux or sd3."""
    optional: bool
    """The pipeline works without it."""

    @property
    def is_tokenizer(self) -> bool:
        return self.config is None

    @property
    def is_network(self) -> bool:
        return bool(self.at)


class Architecture(NamedTuple):
    id: str
    pipelines: dict[str, str]
    """Channels that go into the network to the pipeline that gives them."""
    also: tuple[str, ...]
    """Pipelines whose folders have the same parts."""
    network: str
    settings: dict[str, Any]
    """Plain values of model_index.json."""
    parts: dict[str, PartFacts]


def known() -> list[str]:
    return sorted(file.stem for file in CONFIGS.glob("*.json") if file.stem != "shared")


@cache
def _file(name: str) -> Any:
    return json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


def architecture(id: str) -> Architecture:
    """One of `known()`."""
    facts = _file(id)
    parts = {name: _part(entry) for name, entry in facts["parts"].items()}
    return Architecture(
        id, dict(facts["pipelines"]), tuple(facts["also"]), facts["network"], dict(facts["settings"]), parts
    )


def _part(entry: dict[str, Any]) -> PartFacts:
    library, kind = entry["class"]
    config = entry.get("config")
    if isinstance(config, str):
        config = _file("shared")[config]
    at, naming = tuple(entry.get("at", ())), str(entry.get("naming", ""))
    return PartFacts(
        library, kind, None if config is None else dict(config), at, naming, bool(entry.get("optional"))
    )
