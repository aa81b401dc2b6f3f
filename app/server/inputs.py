"""Pictures that requests bring along: checked before they are unfolded, kept under the hash of their bytes."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, PngImagePlugin, UnidentifiedImageError, WebPImagePlugin

from ...pipelines.errors import SfumatoError
from ..faults import refuse, shown
from ..jobs.artifacts import artifact_path
from ..jobs.store import OPEN, Store
from ..output import write_whole

SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp"}
ID = re.compile(r"[0-9a-f]{64}")
LARGE = 64 * 2**20
"""Bytes that a picture may unfold to whatever its file's size: a plain picture of 16 megapixels."""
UNFOLDING = threading.BoundedSemaphore(2)
"""So many pictures at once: each may take as much memory as the largest that is allowed."""
KEPT_DAYS = 7
ROOM = 40
"""Uploads of the largest size that are kept together."""


class Caps(NamedTuple):
    bytes: int
    pixels: int
    frames: int
    ratio: int


class Input(NamedTuple):
    id: str
    bytes: int
    media: str
    width: int
    height: int


@dataclass(frozen=True)
class Inputs:
    home: Path
    caps: Caps

    @property
    def folder(self) -> Path:
        return self.home / "inputs"

    def take(self, data: bytes, field: str = "file") -> Input:
        """Keep a picture. The same bytes are one file."""
        about = self.check(data, field)
        suffix = SUFFIXES[about.media.removeprefix("image/").upper()]
        path = self.folder / f"{about.id}{suffix}"
        if path.exists():
            path.touch()
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, lambda file: file.write(data))
        return about

    def check(self, data: bytes, field: str) -> Input:
        """What it is, from its header first: a file that would unfold to too much is never unfolded."""
        told = f"{len(data)} bytes"
        if len(data) > self.caps.bytes:
            raise refuse(field, told, f"are more than {self.caps.bytes}; send a smaller file")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the caps are tighter
                image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
                self._fits(image, len(data), field)
                with UNFOLDING:
                    image.load()
        except SfumatoError:
            raise
        except UnidentifiedImageError as error:
            raise refuse(field, told, "are no PNG, JPEG or WebP picture; send one of these") from error
        except Image.DecompressionBombError as error:
            remedy = f"have more than {self.caps.pixels} pixels; send a smaller picture"
            raise refuse(field, told, remedy) from error
        except (OSError, SyntaxError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise refuse(field, told, f"are a broken picture ({reason}); send a whole one") from error
        kind = {"MPO": "JPEG"}.get(str(image.format), str(image.format))
        id = hashlib.sha256(data).hexdigest()
        return Input(id, len(data), f"image/{kind.lower()}", image.width, image.height)

    def _fits(self, image: Image.Image, length: int, field: str) -> None:
        size, pixels = f"{image.width}x{image.height}", image.width * image.height
        if pixels > self.caps.pixels:
            raise refuse(field, size, f"has more than {self.caps.pixels} pixels; send a smaller picture")
        frames = 1
        if isinstance(image, PngImagePlugin.PngImageFile | WebPImagePlugin.WebPImageFile):
            frames = image.n_frames
        if frames > self.caps.frames:
            raise refuse(
                field, f"{frames} frames", f"are more than {self.caps.frames}; send a single picture"
            )
        unfolded = 4 * pixels * frames
        if unfolded > max(LARGE, self.caps.ratio * length):
            remedy = f"in {length} bytes unfolds to more than {self.caps.ratio} times as much; save it anew"
            raise refuse(field, size, remedy)

    def take_text(self, text: str, field: str) -> Input:
        """From base64, plain or as a data URL."""
        return self.take(self.decoded(text, field), field)

    def decoded(self, text: str, field: str) -> bytes:
        if text.startswith("data:"):
            text = text.partition(",")[2]
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise refuse(field, shown(text[:40]), "is no base64; encode the bytes of a picture") from error

    def path(self, id: str, field: str, store: Store) -> Path:
        """The file of something uploaded, or of a picture among the results."""
        if not ID.fullmatch(id):
            raise refuse(field, id, "is no id of a picture; POST /v1/inputs takes one and gives its id")
        for suffix in sorted(set(SUFFIXES.values())):
            if (path := self.folder / f"{id}{suffix}").is_file():
                return path
        row = store.db.execute(
            "SELECT suffix FROM artifacts WHERE hash = ? AND media LIKE 'image/%' LIMIT 1", (id,)
        ).fetchone()
        if row is None:
            raise refuse(
                field, id, "is not among the pictures here; POST /v1/inputs takes one and gives its id"
            )
        return artifact_path(self.home, id, str(row[0]))

    def told(self, value: Any) -> Any:
        """A stored request with ids instead of the files that they stand for."""
        if isinstance(value, dict):
            return {key: self.told(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.told(inner) for inner in value]
        if isinstance(value, str):
            name, equals, file = value.partition("=") if "=" in value else ("", "", value)
            for folder in (self.folder, self.home / "artifacts"):
                if file.startswith(f"{folder}/") and ID.fullmatch(Path(file).stem):
                    return f"{name}{equals}{Path(file).stem}"
        return value

    def sweep(self, store: Store, now: float | None = None) -> int:
        """Delete what no open job needs and is old, or the oldest beyond the room for uploads. Returns how many."""
        now = time.time() if now is None else now
        if not self.folder.is_dir():
            return 0
        files = sorted(self.folder.iterdir(), key=lambda file: file.stat().st_mtime)
        left, gone = sum(file.stat().st_size for file in files), 0
        needed = self._needed(store)
        for file in files:
            about = file.stat()
            age = now - about.st_mtime
            crowded = left > ROOM * self.caps.bytes and age > 3600
            if file.stem not in needed and (age > KEPT_DAYS * 86400 or crowded):
                file.unlink(missing_ok=True)
                left, gone = left - about.st_size, gone + 1
        return gone

    def _needed(self, store: Store) -> set[str]:
        marks = ", ".join("?" * len(OPEN))
        rows = store.db.execute(
            f"SELECT request FROM requests JOIN jobs ON jobs.id = requests.job WHERE state IN ({marks})", OPEN
        )
        return {found for (text,) in rows for found in ID.findall(text)}
