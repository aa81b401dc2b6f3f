"""Small pictures of results, for lists of many: made once, kept beside the results, deleted with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..jobs.artifacts import artifact_path, thumbnail_path
from ..jobs.store import Kept
from ..output import write_whole
from .inputs import UNFOLDING

SIDE = 384
"""The longer side, pixels: a card of a list, at two pixels per point."""
QUALITY = 80


def thumbnail(home: Path, kept: Kept) -> Path | None:
    """The file of a result's small picture, in WebP; None if it is no picture, or its file is gone or broken."""
    if not kept.media.startswith("image/"):
        return None
    path = thumbnail_path(home, kept.hash)
    if path.exists():
        return path
    try:
        with UNFOLDING:
            small = _small(artifact_path(home, kept.hash, kept.suffix))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: small.save(file, "WEBP", quality=QUALITY))
    return path


def _small(file: Path) -> Image.Image:
    with Image.open(file) as image:
        image.draft("RGB", (SIDE, SIDE))  # JPEG is read small where it can be
        found = ImageOps.exif_transpose(image)
        if found.mode.startswith("I"):  # 16 bits, as depth has
            found = Image.fromarray((np.asarray(found).clip(0, 65535) // 256).astype(np.uint8))
        found = found.convert("RGBA" if found.has_transparency_data else "RGB")
        found.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2)
        return found
