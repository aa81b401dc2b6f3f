"""Whether a model is what it was: headers, and tensor hashes per part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..pipelines.errors import BadWeights
from ..pipelines.weights import read_json, read_tensors, tensor_hash, weight_files

INDEX = "model_index.json"
WHOLE = "."
"""Stands for a single file where there are parts else."""


def parts_of(place: Path) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """Parts and their weight files. What model_index.json does not name is passed over."""
    if place.is_file():
        yield WHOLE, (place,)
        return
    for name, value in sorted(read_json(place / INDEX).items()):
        home = place / name
        networks = isinstance(value, list) and home.is_dir() and any(home.glob("*.safetensors*"))
        if networks:
            yield name, weight_files(home).files


def model_hashes(place: Path) -> dict[str, str]:
    """Part to tensor hash; other file metadata or sharding give the same."""
    return {name: tensor_hash(files) for name, files in parts_of(place)}


def verify(place: Path, remembered: Mapping[str, str]) -> dict[str, Any]:
    """All that is wrong with a model, and its hashes."""
    from ..pipelines.loading import check_contained

    problems: list[str] = []
    files, hashes = 0, {}
    try:
        if place.is_dir():
            check_contained(place)
        for name, group in parts_of(place):
            for file in group:
                read_tensors(file)
            files += len(group)
            hashes[name] = tensor_hash(group)
    except BadWeights as error:
        problems.append(str(error))
    if not problems:
        for name in sorted({*remembered, *hashes} if remembered else ()):
            if remembered.get(name) != hashes.get(name):
                state = (
                    "is missing"
                    if name not in hashes
                    else "is new"
                    if name not in remembered
                    else "has changed"
                )
                what = "the file" if name == WHOLE else name
                problems.append(f"{place}: {what} {state} since it was added")
    together = hashlib.sha256("".join(f"{k}={v};" for k, v in sorted(hashes.items())).encode()).hexdigest()
    return {
        "ok": not problems,
        "problems": problems,
        "files": files,
        "compared": bool(remembered),
        "hashes": hashes,
        "hash": together,
    }
