"""All pictures of a batch on one, each with its row and seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

WIDTH = 1800
LARGEST, LEAST = 256, 48
"""Side of a picture on the sheet, pixels."""
GAP, LINE, FONT = 6, 18, 12
PAPER, INK, EMPTY = (250, 249, 247), (60, 60, 60), (224, 220, 214)


class Shown(NamedTuple):
    path: Path
    label: str


def contact_sheet(pictures: Sequence[Shown]) -> Image.Image:
    """As many columns as make the sheet about 4:3; a picture that can't be read leaves its place empty."""
    columns = max(1, min(len(pictures), round(math.sqrt(len(pictures) * 4 / 3)) or 1))
    side = max(LEAST, min(LARGEST, WIDTH // columns - GAP))
    rows = math.ceil(len(pictures) / columns)
    size = (columns * (side + GAP) + GAP, rows * (side + LINE + GAP) + GAP)
    sheet, font = Image.new("RGB", size, PAPER), ImageFont.load_default(FONT)
    draw = ImageDraw.Draw(sheet)
    for at, shown in enumerate(pictures):
        x, y = GAP + at % columns * (side + GAP), GAP + at // columns * (side + LINE + GAP)
        picture = opened(shown.path, side)
        if picture is None:
            draw.rectangle((x, y, x + side - 1, y + side - 1), fill=EMPTY)
        else:
            sheet.paste(picture, (x + (side - picture.width) // 2, y + (side - picture.height) // 2))
        draw.text((x, y + side + 1), fitted(draw, font, shown.label, side), INK, font)
    return sheet


def opened(path: Path, side: int) -> Image.Image | None:
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    scale = side / max(picture.size)
    size = tuple(max(1, round(edge * scale)) for edge in picture.size)
    return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def fitted(
    draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, text: str, width: int
) -> str:
    """The text, cut to what has room."""
    while text and draw.textlength(text, font) > width:
        text = text[:-1]
    return text
