"""Makes the pictures of the docs in docs/gallery: world.png (scenes), maps.png (what is known of one scene) and
inpainting.png (holes in scenes, filled by the built-in UNet under the scenes' captions)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from sfumato.assets.still_life.grammar import caption
from sfumato.assets.still_life.render import Truth, render
from sfumato.assets.still_life.sampling import sample_scene
from sfumato.pipelines.from_image import FromImage
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.text_to_image import TextToImage
from torch import Tensor

GALLERY = Path(__file__).resolve().parent / "gallery"
SIDE = 176
"""Pixels of one picture."""
COLUMNS = 6
LINE = 14
FONT = 11
SEEDS = range(12)
MAPS_SEED = 3
HOLED_SEEDS = (5_000_000, 5_000_003, 5_000_005, 5_000_007)
"""Of held-out scenes."""
FAR = 12.0
"""World units drawn as black in the depth map."""


def world() -> Image.Image:
    """Scenes with a caption in varied words."""
    scenes = [sample_scene(seed) for seed in SEEDS]
    truth = render(scenes, size=SIDE)
    assert truth.rgb is not None
    return sheet([to_image(rgb) for rgb in truth.rgb], [caption(s, i) for i, s in enumerate(scenes)], COLUMNS)


def maps() -> Image.Image:
    """One scene and the truth about it."""
    scene = sample_scene(MAPS_SEED)
    truth = render([scene], size=SIDE, maps=("rgb", "depth", "normals", "ids", "lines"))
    named = drawn(truth)
    return sheet([to_image(plane) for plane in named.values()], list(named), len(named))


def inpainting() -> Image.Image:
    """Scenes, the same with a hole, and what the UNet made of them."""
    scenes = [sample_scene(seed, split="test") for seed in HOLED_SEEDS]
    rgb = render(scenes, size=128).rgb
    assert rgb is not None
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 40:104, 36:92] = 1
    model, rows = open_model("still-life-unet"), [rgb, torch.where(mask > 0, 0.5, rgb)]
    filled = []
    for i, scene in enumerate(scenes):
        image = rgb[i : i + 1]
        make = TextToImage(model, pictures={"image": image, "mask": mask}, start=FromImage(image, 1.0, mask))
        filled.append(make(caption(scene), seed=i).pixels)
    page = torch.cat([torch.cat([*row], 2) for row in (*rows, torch.cat(filled))], 1)
    return to_image(page)


def drawn(truth: Truth) -> dict[str, Tensor]:
    """Every map as [3,H,W] in 0..1."""
    assert truth.rgb is not None and truth.depth is not None and truth.normals is not None
    assert truth.ids is not None and truth.lines is not None
    colors = torch.tensor(
        [[0.1, 0.1, 0.12], [0.55, 0.55, 0.55], [0.84, 0.37, 0.0], [0.0, 0.45, 0.7], [0.0, 0.62, 0.45]]
    )
    return {
        "picture": truth.rgb[0],
        "depth": (1 - truth.depth[0] / FAR).clamp(0, 1).expand(3, -1, -1),
        "normals": (truth.normals[0] + 1) / 2,
        "things": colors[truth.ids[0, 0]].permute(2, 0, 1),
        "lines": truth.lines[0].expand(3, -1, -1),
    }


def to_image(plane: Tensor) -> Image.Image:
    return Image.fromarray((plane.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def sheet(images: Sequence[Image.Image], texts: Sequence[str], columns: int) -> Image.Image:
    """Pictures in rows with their texts below."""
    lines = [textwrap.wrap(text, 30) for text in texts]
    rows, height = -(-len(images) // columns), SIDE + LINE * max(map(len, lines)) + 4
    page = Image.new("RGB", (columns * SIDE, rows * height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(FONT)
    for i, (image, text) in enumerate(zip(images, lines, strict=True)):
        x, y = i % columns * SIDE, i // columns * height
        page.paste(image, (x, y))
        draw.multiline_text((x + 3, y + SIDE + 2), "\n".join(text), fill="black", font=font, spacing=2)
    return page


def main() -> None:
    for name, page in (("world", world()), ("maps", maps()), ("inpainting", inpainting())):
        file = GALLERY / f"{name}.png"
        page.save(file, optimize=True)
        print(f"{file.relative_to(GALLERY.parent)}: {file.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
