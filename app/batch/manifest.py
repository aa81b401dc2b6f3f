"""manifest.jsonl: one line per result, written when its files are on the disk. What is done stays done."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..faults import Failure
from ..output import write_whole
from .parcels import Fault, Made, Unit
from .rows import Row

NAME = "manifest.jsonl"
LOCK = ".lock"
DONE, FAILED = "done", "failed"


class Line(NamedTuple):
    """What became of a unit, the last time it was tried."""

    unit: Unit
    state: str
    data: dict[str, Any]


class Manifest:
    """Of one folder of results. Lines are appended and never changed; one that a kill cut off goes with the next."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / NAME

    def read(self) -> dict[Unit, Line]:
        """The last line of each unit. Of a group whose lines are not all there, none counts."""
        if not self.file.is_file():
            return {}
        found, members = list[Line](), dict[str, set[Unit]]()
        for text in self.file.read_bytes().split(b"\n"):
            try:
                data = json.loads(text)
                unit = Unit(str(data["id"]), int(data["image"]))
                found.append(Line(unit, str(data["state"]), data))
                members.setdefault(str(data["group"]), set()).add(unit)
            except (ValueError, KeyError, TypeError):
                continue
        whole = {group for group, units in members.items() if group == named(units)}
        return {line.unit: line for line in found if line.data["group"] in whole}

    def done(self, lines: Iterable[Line]) -> set[Unit]:
        """Units whose files are there with the bytes they were written with."""
        return {line.unit for line in lines if line.state == DONE and self._whole(line.data.get("files"))}

    def _whole(self, files: Any) -> bool:
        if not isinstance(files, list) or not files:
            return False
        try:
            return all(digest((self.folder / file["path"]).read_bytes()) == file["sha256"] for file in files)
        except (OSError, KeyError, TypeError):
            return False

    def append(self, lines: Sequence[dict[str, Any]]) -> None:
        """Those of a group, in one piece: a kill leaves all of them or none that counts."""
        group = named({Unit(line["id"], line["image"]) for line in lines})
        lines = [{**line, "group": group} for line in lines]
        text = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines).encode()
        handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.ftruncate(handle, self._sound())
            while text:
                text = text[os.write(handle, text) :]
            os.fsync(handle)
        finally:
            os.close(handle)

    def _sound(self) -> int:
        """Bytes up to the end of the last whole line."""
        return self.file.read_bytes().rfind(b"\n") + 1

    def keep(self, row: Row, made: Made, worker: str) -> dict[str, Any]:
        """Write a result's files; its line."""
        files = []
        for file in made.files:
            path = self._path(row, made.unit, file.name)
            path.parent.mkdir(exist_ok=True)
            write_whole(path, partial(_write, file.data))
            own = {"path": str(path.relative_to(self.folder)), "sha256": digest(file.data)}
            files.append({**own, "bytes": len(file.data), "media": file.media})
        more = {"files": files, **made.about, "together": made.together, "notes": list(made.notes)}
        return {**_head(row, made.unit, DONE), **more, "worker": worker, "request": _request(row)}

    def miss(self, row: Row, fault: Fault, worker: str) -> dict[str, Any]:
        """The line of what could not be made."""
        own = {"error": fault.sentence, "worker": worker, "request": _request(row)}
        return {**_head(row, fault.unit, FAILED), **own}

    def _path(self, row: Row, unit: Unit, name: str) -> Path:
        """Pictures lie beside each other, other results in a folder of their row."""
        if row.request.task != "generate":
            return self.folder / row.stem / name
        number = f"-{unit.image:04d}" if row.images > 1 else ""
        return self.folder / f"{row.stem}{number}{Path(name).suffix}"


def _head(row: Row, unit: Unit, state: str) -> dict[str, Any]:
    return {"row": row.number, "id": unit.row, "image": unit.image, "state": state, "task": row.request.task}


def _request(row: Row) -> dict[str, Any]:
    return row.request.model_dump(mode="json", exclude_defaults=True)


def named(units: Iterable[Unit]) -> str:
    """A group by its members."""
    return digest(json.dumps(sorted(units)).encode())[:16]


def _write(data: bytes, stream: BinaryIO) -> None:
    stream.write(data)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Two runs into one folder would make everything twice. The lock ends with the process, however that ends."""
    from fcntl import LOCK_EX, LOCK_NB, flock

    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            flock(handle, LOCK_EX | LOCK_NB)
        except BlockingIOError as error:
            raise Failure(
                f"another run works in {folder}; wait for it, or choose another --output"
            ) from error
        yield
    finally:
        os.close(handle)
