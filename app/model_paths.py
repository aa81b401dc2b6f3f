"""Weights that other programs keep: folders named by ComfyUI's extra_model_paths.yaml, which A1111's layout fits too.

The file has sections, each with an optional base_path and one entry per kind of weights (checkpoints, loras, vae ...)
of one or several folders, one per line. It is read if `model_paths` in the config file or SFUMATO_MODEL_PATHS names it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

from .faults import refuse

VARIABLE = "SFUMATO_MODEL_PATHS"
SETTING = "model_paths"
SAME = {"unet": "diffusion_models", "clip": "text_encoders"}
"""Older names of a kind."""
MODELS = ("checkpoints", "diffusion_models", "diffusers")
"""Kinds that --model may name."""
ENDINGS = (".safetensors", ".gguf")
LISTED = 2000
"""Most files that are listed per folder."""


def paths_file(config: Path | None = None, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The yaml file, if one is set."""
    from .settings import config_file, read_config

    named = environment.get(VARIABLE)
    if not named:
        config = config or config_file()
        named = read_config(config).get(SETTING) if config else None
    if named is None:
        return None
    path = Path(str(named)).expanduser()
    if not path.is_file():
        raise refuse(SETTING, str(named), "is not a file; give the path of an extra_model_paths.yaml")
    return path


def read_model_paths(file: Path) -> dict[str, list[Path]]:
    """Kind of weights to folders, those of a default section first. Folders that do not exist are left out."""
    import yaml

    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise refuse(SETTING, str(file), f"can't be read ({' '.join(str(error).split())[:120]})") from error
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(part, dict | None) for part in found.values()):
        raise refuse(SETTING, str(file), "must hold sections, each with base_path and folders")
    folders: dict[str, list[Path]] = {}
    sections = [section for section in found.values() if section]
    for section in sorted(sections, key=lambda s: s.get("is_default") is not True):
        for kind, paths in _section(section, file).items():
            folders.setdefault(kind, []).extend(path for path in paths if path not in folders.get(kind, []))
    return folders


def _section(section: Mapping[Any, Any], file: Path) -> dict[str, list[Path]]:
    base = _place(section.get("base_path") or "", file.parent, file)
    found: dict[str, list[Path]] = {}
    for kind, lines in section.items():
        if kind in ("base_path", "is_default") or lines is None:
            continue
        if not isinstance(kind, str) or not isinstance(lines, str):
            raise refuse(SETTING, str(kind), f"in {file} must be a folder, or several on lines of their own")
        places = [_place(line.strip(), base, file) for line in lines.splitlines() if line.strip()]
        found[SAME.get(kind, kind)] = [place for place in places if place.is_dir()]
    return found


def _place(text: Any, base: Path, file: Path) -> Path:
    """A folder as the file names it: variables and ~ spelled out, relative to its section's base."""
    if not isinstance(text, str) or "\0" in text:
        raise refuse(SETTING, str(text), f"in {file} is no folder")
    return Path(os.path.normpath(base.absolute() / Path(os.path.expandvars(text)).expanduser()))


def shared_files(folders: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    """Kind to files, of what can be opened; folder by folder, as they are looked into."""
    found: dict[str, list[Path]] = {}
    for kind, places in folders.items():
        for place in places:
            files = [f for f in islice(place.rglob("*"), LISTED) if f.suffix in ENDINGS and f.is_file()]
            found[kind] = [*found.get(kind, []), *sorted(files)]
    return {kind: files for kind, files in found.items() if files}


def find_shared(text: str, config: Path | None = None) -> Path | None:
    """The file or diffusers folder that a name means, in the folders of models."""
    name = PurePath(text)
    if name.is_absolute() or ".." in name.parts or "\0" in text or not name.parts:
        return None
    file = paths_file(config)
    if file is None:
        return None
    folders = read_model_paths(file)
    for kind in MODELS:
        for folder in folders.get(kind, []):
            if kind == "diffusers" and (folder / text / "model_index.json").is_file():
                return folder / text
            for path in (folder / text, *(folder / f"{text}{ending}" for ending in ENDINGS)):
                if path.suffix in ENDINGS and path.is_file():
                    return path
    return None
