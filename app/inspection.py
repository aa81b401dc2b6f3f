"""What a file is: an image and how it was made, weights, or a model folder. Nothing is loaded or executed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..pipelines.weights import Tensor, read_header, read_headers, read_json, tensor_hash, weight_files
from .catalogue import ROOT, catalogue
from .faults import refuse

INDEX = "model_index.json"
MODELS = ROOT / "assets" / "models"
SHOWN = 20
"""Tensors listed in text form; JSON lists all."""


def inspect_path(name: str) -> dict[str, Any]:
    """What there is to say, as plain data with a `kind`: image, weights or model."""
    path = Path(name).expanduser()
    if path.is_dir():
        return inspect_folder(path)
    if not path.exists():
        raise refuse("file", name, "does not exist")
    if path.suffix == ".safetensors" or path.suffix == ".resume":
        return inspect_weights(path)
    return inspect_image(path)


def inspect_image(path: Path) -> dict[str, Any]:
    from .metadata import open_image, read_metadata

    image = open_image(path)
    found = read_metadata(path)
    about = {"kind": "image", "file": str(path), "format": image.format or path.suffix.lstrip(".").upper()}
    about |= {"size": f"{image.width}x{image.height}", "mode": image.mode}
    return {**about, "metadata": None if found is None else found.fields()}


def inspect_weights(path: Path) -> dict[str, Any]:
    """The header of one safetensors file."""
    tensors = read_header(path)
    rows = [{"name": n, "dtype": t.dtype, "shape": list(t.shape)} for n, t in tensors.items()]
    return {
        "kind": "weights",
        "file": str(path),
        **summary(tensors.values()),
        "hash": tensor_hash(path),
        "tensors": rows,
    }


def inspect_folder(path: Path) -> dict[str, Any]:
    """A model folder: its pipeline, family and parts."""
    if not (path / INDEX).is_file():
        raise refuse(
            "file", str(path), f"has no {INDEX}; give an image, a .safetensors file or a model folder"
        )
    index = read_json(path / INDEX)
    pipeline = str(index.get("_class_name"))
    parts = {}
    for name, value in index.items():
        if isinstance(value, list) and len(value) == 2 and value[1] is not None:
            folder = path / name
            files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
            parts[name] = {"class": str(value[1])}
            if files:
                parts[name] |= summary(t for _, t in read_headers(weight_files(folder).files).values())
    return {
        "kind": "model",
        "folder": str(path),
        "pipeline": pipeline,
        "family": family_of(pipeline),
        "parts": parts,
    }


def summary(tensors: Iterable[Tensor]) -> dict[str, Any]:
    """Counts and sizes."""
    tensors = list(tensors)
    dtypes = Counter({t.dtype: 0 for t in tensors})
    for t in tensors:
        dtypes[t.dtype] += math.prod(t.shape)
    size = sum(t.end - t.start for t in tensors)
    return {"count": len(tensors), "parameters": sum(dtypes.values()), "bytes": size, "dtypes": dict(dtypes)}


def family_of(pipeline: str) -> str | None:
    """The family whose file names this pipeline class."""
    for entry in catalogue().values():
        if entry.kind == "family" and any(
            pipeline in str(s.default) for s in entry.settings if s.name == "pipelines"
        ):
            return entry.id
    return None


def builtin_models() -> list[dict[str, Any]]:
    """The models in assets/models, from their own files."""
    found = []
    for index in sorted(MODELS.glob(f"*/{INDEX}")):
        about = inspect_folder(index.parent)
        parameters = sum(part.get("parameters", 0) for part in about["parts"].values())
        text = f"{about['family'] or about['pipeline']}, {parameters / 1e6:.1f} M parameters"
        found.append({**about, "name": index.parent.name, "parameters": parameters, "text": text})
    return found


def told(found: dict[str, Any]) -> str:
    """For people."""
    if found["kind"] == "image":
        lines = [f"{found['file']}: {found['format']}, {found['size']}, {found['mode']}"]
        return "\n".join([*lines, *_told_metadata(found["metadata"])])
    if found["kind"] == "weights":
        lines = [f"{found['file']}: {found['count']} tensors, {_told_size(found)}", f"hash {found['hash']}"]
        rows = [f"  {t['name']}  {t['dtype']} {t['shape']}" for t in found["tensors"][:SHOWN]]
        more = len(found["tensors"]) - SHOWN
        return "\n".join(
            [*lines, *rows, *([f"  … and {more} more (--format json lists all)"] if more > 0 else [])]
        )
    lines = [f"{found['folder']}: {found['pipeline']}, family {found['family'] or 'not supported'}"]
    for name, part in found["parts"].items():
        lines.append(f"  {name}: {part['class']}" + (f", {_told_size(part)}" if "parameters" in part else ""))
    return "\n".join(lines)


def _told_size(part: dict[str, Any]) -> str:
    return f"{part['parameters']:,} parameters ({', '.join(part['dtypes'])}), {part['bytes']:,} bytes"


def _told_metadata(metadata: dict[str, Any] | None) -> list[str]:
    if metadata is None:
        return ["no generation metadata"]
    lines = [f"  {k}: {_short(v)}" for k, v in metadata.items() if k not in ("record", "unmapped")]
    lines += [f"  ({k}: {_short(v)})" for k, v in metadata.get("unmapped", {}).items()]
    record = metadata.get("record", {})
    if "versions" in record:
        lines.append(f"  versions: {', '.join(f'{k} {v}' for k, v in record['versions'].items())}")
    return lines


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 500 else f"{text[:500]}… ({len(text)} characters)"
