"""`sfumato doctor`: what this machine and installation can do, what is missing and why it matters."""

from __future__ import annotations

import importlib.util
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from ..pipelines.errors import SfumatoError
from .catalogue import CatalogueError, catalogue
from .inspection import builtin_models
from .metadata import versions
from .settings import config_file, read_config, unknown_variables

FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "i8mm",
)
EXTRAS = {
    "gradio": ("ui", "the web interface"),
    "fastapi": ("serve", "the HTTP API"),
    "ray": ("batch", "batch jobs over several machines"),
    "open3d": ("three-d", "mesh extraction and point cloud tools"),
    "trimesh": ("three-d", "mesh files: GLB, OBJ, PLY"),
    "gguf": ("gguf", "opening GGUF files"),
    "triton": ("gpu", "the fused GPU kernels; plain torch is used without it"),
    "xformers": ("xformers", "one more attention backend; torch's own is used without it"),
    "flash_attn": ("flash", "one more attention backend, for CUDA"),
    "sageattention": ("sage", "attention in 8 bits, for CUDA"),
}


def examine() -> dict[str, Any]:
    """The whole report as plain data. `ok` is false if something that every run needs is missing."""
    problems: list[str] = []
    report = {
        "hardware": hardware(),
        "versions": versions(),
        "extras": extras(),
        "models": models(problems),
        "techniques": count_techniques(problems),
        "folders": folders(problems),
        "settings": settings(problems),
    }
    return {"ok": not problems, "problems": problems, **report}


def hardware() -> dict[str, Any]:
    """Processor, memory and accelerators."""
    import psutil
    import torch

    gpus = []
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        gpus.append(
            {"name": about.name, "bytes": about.total_memory, "capability": f"{about.major}.{about.minor}"}
        )
    memory = psutil.virtual_memory()
    return {
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_flags": [flag for flag in FLAGS if flag in _cpu_flags()],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ram_bytes": memory.total,
        "ram_free_bytes": memory.available,
        "gpus": gpus,
        "mps": bool(torch.backends.mps.is_available()),
    }


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    return set((_cpuinfo("flags") or _cpuinfo("Features")).split())


def extras() -> list[dict[str, Any]]:
    return [
        {"package": name, "present": importlib.util.find_spec(name) is not None, "extra": extra, "for": use}
        for name, (extra, use) in EXTRAS.items()
    ]


def models(problems: list[str]) -> list[dict[str, Any]]:
    """Built-in models; a broken one is a problem, none at all is one too."""
    try:
        found = builtin_models()
    except SfumatoError as error:
        problems.append(str(error))
        return []
    if not found:
        problems.append("no built-in model is installed: `sfumato train builtin still-life` makes one")
    return [{k: m[k] for k in ("name", "family", "parameters", "folder")} for m in found]


def count_techniques(problems: list[str]) -> dict[str, int]:
    try:
        kinds = [entry.kind for entry in catalogue().values()]
    except CatalogueError as error:
        problems.append(str(error))
        return {}
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def folders(problems: list[str]) -> list[dict[str, Any]]:
    """Places that runs write to."""
    found = []
    for use, path in (("output", Path.cwd()), ("temporary", Path(tempfile.gettempdir()))):
        try:
            with tempfile.TemporaryFile(dir=path):
                writable = True
        except OSError:
            writable = False
            problems.append(f"{use} folder {path} can't be written to: give --output, or set TMPDIR")
        found.append({"use": use, "path": str(path), "writable": writable})
    return found


def settings(problems: list[str]) -> dict[str, Any]:
    """The config file and the environment in force."""
    in_force = {k: v for k, v in sorted(os.environ.items()) if k.startswith("SFUMATO_")}
    file, values = None, {}
    try:
        file = config_file()
        values = read_config(file) if file else {}
    except SfumatoError as error:
        problems.append(str(error))
    problems += [f"{name}: no setting is called so" for name in unknown_variables()]
    return {"file": str(file) if file else None, "values": values, "environment": in_force}


def told(report: dict[str, Any]) -> str:
    """For people."""
    machine, gib = report["hardware"], 2**30
    gpus = ", ".join(f"{g['name']} ({g['bytes'] / gib:.0f} GiB)" for g in machine["gpus"]) or "none"
    lines = [
        f"cpu         {machine['cpu']}, {machine['cores']} cores, {' '.join(machine['cpu_flags'])}",
        f"memory      {machine['ram_bytes'] / gib:.1f} GiB, {machine['ram_free_bytes'] / gib:.1f} GiB free",
        f"gpu         {gpus}",
        f"versions    {', '.join(f'{k} {v}' for k, v in report['versions'].items())}",
        f"models      {', '.join(m['name'] for m in report['models']) or 'none'}",
        f"techniques  {', '.join(f'{n} {k}' for k, n in report['techniques'].items()) or 'none'}",
        f"settings    {report['settings']['file'] or 'no config file'}",
    ]
    for extra in report["extras"]:
        if not extra["present"]:
            lines.append(
                f"missing     {extra['package']}: {extra['for']} (pip install 'sfumato[{extra['extra']}]')"
            )
    for folder in report["folders"]:
        state = "writable" if folder["writable"] else "NOT writable"
        lines.append(f"folder      {folder['use']} {folder['path']} {state}")
    return "\n".join([*lines, *(f"PROBLEM     {text}" for text in report["problems"])])
