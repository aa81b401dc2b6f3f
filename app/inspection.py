"""What a file is: an image and how it was made, weights, or a model folder. Nothing is loaded or executed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..pipelines.doors.gguf_header import read_gguf
from ..pipelines.doors.recognise import identify
from ..pipelines.packed_header import layers_of
from ..pipelines.weights import (
    UNSAFE,
    Tensor,
    read_headers,
    read_json,
    read_metadata,
    read_tensors,
    refused,
    tensor_hash,
    weight_files,
)
from .catalogue import ROOT, catalogue
from .faults import refuse

INDEX = "model_index.json"
MODELS = ROOT / "assets" / "models"
WEIGHTS = (".safetensors", ".gguf", ".resume")
ABOUT = ("modelspec.", "general.", "ss_base_model", "ss_network", "ss_sd_model", "format")
"""Beginnings of the metadata that say what a file is; trainers add lists of all their pictures."""
FAMILIES = {"sd15": "sd", "sd2": "sd", "sdxl-refiner": "sdxl", "sd35-medium": "sd3", "sd35-large": "sd3"}
FAMILIES |= {
    name: name for name in ("sdxl", "sd3", "flux2", "chroma", "auraflow", "pixart", "wan", "ltx-video")
}
FAMILIES |= {"flux-dev": "flux", "flux-schnell": "flux", "hunyuan-video": "hunyuan-video"}
"""Architecture of a header to family."""
SHOWN = 20
"""Tensors listed in text form; JSON lists all."""


def inspect_path(name: str) -> dict[str, Any]:
    """What there is to say, as plain data with a `kind`: image, weights or model."""
    path = Path(name).expanduser()
    if path.is_dir():
        return inspect_folder(path)
    if not path.exists():
        raise refuse("file", name, "does not exist")
    if path.suffix.lower() in (*WEIGHTS, *UNSAFE):
        return inspect_weights(path)
    return inspect_image(path)


def inspect_image(path: Path) -> dict[str, Any]:
    from .metadata import open_image, read_metadata

    image = open_image(path)
    found = read_metadata(path)
    about = {"kind": "image", "file": str(path), "format": image.format or path.suffix.lstrip(".").upper()}
    about |= {"size": f"{image.width}x{image.height}", "mode": image.mode}
    return {**about, "metadata": None if found is None else found.fields()}


def inspect_weights(path: Path, *, hashed: bool = True) -> dict[str, Any]:
    """The header of one safetensors or GGUF file, and what it shows; the hash reads the whole file."""
    if path.suffix.lower() in UNSAFE:
        raise refused(path)
    tensors = read_tensors(path)
    found = identify(tensors)
    rows = [{"name": n, "dtype": t.dtype, "shape": list(t.shape)} for n, t in tensors.items()]
    return {
        "kind": "weights",
        "file": str(path),
        "role": found.role,
        "architecture": found.architecture,
        "family": FAMILIES.get(found.architecture or ""),
        "naming": found.naming,
        "holds": list(found.parts),
        "channels": found.channels,
        "adapter": found.kind or None,
        "ranks": list(found.ranks),
        "scaled": found.scaled,
        **summary(tensors.values()),
        **packed_formats([path]),
        "hash": tensor_hash(path) if hashed else None,
        "about": _about(path),
        "tensors": rows,
    }


def _about(path: Path) -> dict[str, str]:
    """What the file says of itself."""
    said = read_gguf(path).metadata if path.suffix.lower() == ".gguf" else read_metadata(path)
    return {k: str(v)[:500] for k, v in said.items() if k.startswith(ABOUT)}


def told_kind(found: dict[str, Any]) -> tuple[str, str]:
    """Architecture or pipeline, and role, of something inspected."""
    if found["kind"] == "model":
        return found["pipeline"], "folder"
    return found["architecture"] or "", found["role"]


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
                shards = weight_files(folder).files
                parts[name] |= summary(t for _, t in read_headers(shards).values())
                parts[name] |= packed_formats(shards)
    return {
        "kind": "model",
        "folder": str(path),
        "pipeline": pipeline,
        "family": family_of(pipeline),
        "parts": parts,
    }


def packed_formats(files: Iterable[Path]) -> dict[str, Any]:
    """How many layers are packed in each format, under `packed`; nothing for plain weights."""
    specs = [spec for file in files if file.suffix != ".gguf" for spec in layers_of(file).values()]
    counts = Counter(str(spec.get("format")) for spec in specs)
    return {"packed": dict(sorted(counts.items()))} if counts else {}


def summary(tensors: Iterable[Tensor]) -> dict[str, Any]:
    """Counts and sizes."""
    tensors = list(tensors)
    dtypes = Counter({t.dtype: 0 for t in tensors})
    for t in tensors:
        dtypes[t.dtype] += math.prod(t.shape)
    size = sum(t.end - t.start for t in tensors)
    return {"count": len(tensors), "parameters": sum(dtypes.values()), "bytes": size, "dtypes": dict(dtypes)}


def family_of(pipeline: str) -> str | None:
    """The family whose file names this pipeline class, in its field or elsewhere."""
    families = [entry for entry in catalogue().values() if entry.kind == "family"]
    for entry in families:
        if any(f"'{pipeline}'" in str(s.default) for s in entry.settings if s.name == "pipelines"):
            return entry.id
    quoted = f'"{pipeline}"'
    return next((e.id for e in families if quoted in (ROOT / e.file).read_text(encoding="utf-8")), None)


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
        lines = [f"{found['file']}: {_told_role(found)}", f"{found['count']} tensors, {_told_size(found)}"]
        lines += [f"hash {found['hash']}"] if found["hash"] else []
        lines += [f"{k}: {_short(v)}" for k, v in found["about"].items()]
        rows = [f"  {t['name']}  {t['dtype']} {t['shape']}" for t in found["tensors"][:SHOWN]]
        more = len(found["tensors"]) - SHOWN
        return "\n".join(
            [*lines, *rows, *([f"  … and {more} more (--format json lists all)"] if more > 0 else [])]
        )
    lines = [f"{found['folder']}: {found['pipeline']}, family {found['family'] or 'not supported'}"]
    for name, part in found["parts"].items():
        lines.append(f"  {name}: {part['class']}" + (f", {_told_size(part)}" if "parameters" in part else ""))
    return "\n".join(lines)


def _told_role(found: dict[str, Any]) -> str:
    """As "lora for sdxl, rank 16, changes unet"."""
    words = [found["adapter"] or found["role"]]
    if found["architecture"]:
        words[0] += f" for {found['architecture']}" if found["adapter"] else f", {found['architecture']}"
    if found["ranks"]:
        low, high = found["ranks"][0], found["ranks"][-1]
        words.append(f"rank {low}" if low == high else f"ranks {low} to {high}")
    if found["holds"]:
        words.append(f"{'changes' if found['adapter'] else 'holds'} {' and '.join(found['holds'])}")
    if found["scaled"]:
        words.append("quantised with scales beside the weights")
    return ", ".join(words)


def _told_size(part: dict[str, Any]) -> str:
    """Parameters, and the share of each precision if there are several."""
    count = max(1, part["parameters"])
    shares = [f"{n / count:.1%} {d}" if len(part["dtypes"]) > 1 else d for d, n in part["dtypes"].items()]
    packed = ", ".join(f"{n} layers in {name}" for name, n in part.get("packed", {}).items())
    if packed:
        return f"packed, {packed}, {part['bytes']:,} bytes"
    return f"{part['parameters']:,} parameters ({', '.join(shares)}), {part['bytes']:,} bytes"


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
