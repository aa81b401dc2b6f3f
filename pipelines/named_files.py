"""Files that a prompt or a request calls by name: only ever inside the folder that was given for them."""

from __future__ import annotations

import difflib
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath

from .errors import BadInput

LONGEST = 200
"""Characters of a name."""
LISTED = 5000
"""Files that are looked at for a near name."""


def named_file(folder: Path, name: str, suffix: str, field: str) -> Path:
    """The file `name` + `suffix` in the folder. Refused: `..`, absolute names, and links that lead out."""
    _check_name(name, field)
    path = folder / f"{name.removesuffix(suffix)}{suffix}"
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BadInput(field, f"{field}: {name!r} leads out of {folder}; put a copy into the folder")
    if not path.is_file():
        raise BadInput(field, f"{field}: there is no {name!r} in {folder}; {_near(folder, name, suffix)}")
    return path


def _check_name(name: str, field: str) -> None:
    if len(name) > LONGEST:
        raise BadInput(field, f"{field}: a name of {len(name)} characters; {LONGEST} are allowed")
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    parts = name.replace("\\", "/").split("/")
    if absolute or "\0" in name or any(part.strip() in ("", ".", "..") for part in parts):
        raise BadInput(
            field, f"{field}: {name!r} is no name in a folder; write it as in colours or a/colours"
        )


def _near(folder: Path, name: str, suffix: str) -> str:
    if not folder.is_dir():
        return "the folder does not exist"
    known = [
        path.relative_to(folder).as_posix().removesuffix(suffix)
        for path in islice(folder.rglob(f"*{suffix}"), LISTED)
    ]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
    if near:
        return f"the nearest are {', '.join(near)}"
    return f"it holds {len(known)} files ending in {suffix}"
