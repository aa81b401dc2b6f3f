"""The tasks that one set of weights learns beside text to image, each as (text, context pictures, target picture).

Context pictures join the network's sequence as extra image tokens, as in FLUX.1 Kontext (arXiv:2506.15742, section 3).
Every picture is the world's own truth, so that no task needs a labelled data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..still_life.camera import VIEWS
from ..still_life.edit_sampling import sample_edit
from ..still_life.grammar import caption
from ..still_life.placing import grounded
from ..still_life.render import FAR, MAPS, render
from ..still_life.scene import Scene

NEAR = 3.0
"""Depth drawn white, world units; infinity is drawn black."""
BLANK = 0.5
"""The grey of pixels that are to be filled in."""


class Task(NamedTuple):
    """`text` is a template: {caption}, {edit} and {view} are filled in per scene. Share is relative."""

    text: str
    context: tuple[str, ...]
    target: str
    share: float


TASKS: dict[str, Task] = {
    "text-to-image": Task("{caption}", (), "rgb", 8.0),
    "edit": Task("{edit}", ("rgb",), "edited", 3.0),
    "inpaint": Task("fill in the missing part: {caption}", ("hole",), "rgb", 1.5),
    "outpaint": Task("extend the picture: {caption}", ("inner",), "rgb", 1.0),
    "depth-to-image": Task("from a depth map: {caption}", ("depth",), "rgb", 1.0),
    "normals-to-image": Task("from a normal map: {caption}", ("normals",), "rgb", 0.7),
    "lines-to-image": Task("from a line drawing: {caption}", ("lines",), "rgb", 1.0),
    "image-to-depth": Task("depth map", ("rgb",), "depth", 0.7),
    "colorize": Task("color the picture: {caption}", ("grey",), "rgb", 1.0),
    "colorize-lines": Task("color the drawing as in the reference", ("lines", "reference"), "rgb", 1.0),
    "upscale": Task("sharpen the picture", ("small",), "rgb", 0.7),
    "view": Task("the same scene seen from the {view}", ("rgb",), "turned", 1.5),
}
PICTURES = tuple(dict.fromkeys(name for task in TASKS.values() for name in (*task.context, task.target)))


class Bundle(NamedTuple):
    """All pictures [B,3,H,W] in 0..1 of some scenes, and the words that fill the templates."""

    pictures: dict[str, Tensor]
    words: list[dict[str, str]]


def bundle(scenes: Sequence[Scene], seeds: Sequence[int], *, size: int = 128, device: torch.device) -> Bundle:
    """Everything that the tasks show of these scenes, drawn at random by the seeds where there is a choice."""
    dice = [Random(f"bundle {seed}") for seed in seeds]
    edits = [sample_edit(s, d.randrange(2**31)) for s, d in zip(scenes, dice, strict=True)]
    views = [d.choice([v for v in VIEWS if v != "front"]) for d in dice]
    turned = [
        replace(s, camera=replace(s.camera, azimuth_deg=(s.camera.azimuth_deg + VIEWS[v]) % 360))
        for s, v in zip(scenes, views, strict=True)
    ]
    truth = render(scenes, size=size, maps=MAPS, device=device)
    more = {
        "edited": [e.scene for e in edits],
        "turned": turned,
        "reference": [reference(s, d) for s, d in zip(scenes, dice, strict=True)],
    }
    pictures = {name: _rgb(rows, size, device) for name, rows in more.items()}
    rgb, depth, normals, lines = (_known(m) for m in (truth.rgb, truth.depth, truth.normals, truth.lines))
    pictures |= {
        "rgb": rgb,
        "depth": torch.where(depth >= FAR, 0.0, NEAR / depth).clamp(0, 1).expand(-1, 3, -1, -1),
        "normals": normals * 0.5 + 0.5,
        "lines": lines.expand(-1, 3, -1, -1),
        "grey": (rgb * rgb.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1))
        .sum(1, keepdim=True)
        .expand(-1, 3, -1, -1),
        "small": _small(rgb),
        "hole": _masked(rgb, truth.boxes, dice),
        "inner": _inner(rgb, dice),
    }
    words = [
        {"caption": caption(s, d.randrange(2**31)), "edit": e.instruction, "view": v}
        for s, d, e, v in zip(scenes, dice, edits, views, strict=True)
    ]
    return Bundle(pictures, words)


def reference(scene: Scene, dice: Random) -> Scene:
    """The scene's things in a row in the studio, turned: what a colourist is given beside the line art."""
    middle = (len(scene.things) - 1) / 2
    row = [
        grounded(
            replace(t, yaw=t.yaw + dice.uniform(-0.5, 0.5), radius=min(t.radius, 0.6)),
            1.35 * (i - middle),
            0.0,
        )
        for i, t in enumerate(scene.things)
    ]
    camera = replace(scene.camera, azimuth_deg=0.0)
    return replace(
        scene, things=tuple(row), relations=(), setting="studio", light_color="neutral", camera=camera
    )


def _known(picture: Tensor | None) -> Tensor:
    if picture is None:
        raise ValueError("the renderer left out a map that was asked for")
    return picture


def _rgb(scenes: Sequence[Scene], size: int, device: torch.device) -> Tensor:
    return _known(render(scenes, size=size, device=device).rgb)


def _small(rgb: Tensor) -> Tensor:
    """A quarter of the resolution, enlarged again."""
    low = interpolate(rgb, scale_factor=0.25, mode="area")
    return interpolate(low, rgb.shape[2:], mode="bicubic").clamp(0, 1)


def _masked(rgb: Tensor, boxes: Sequence[Tensor], dice: Sequence[Random]) -> Tensor:
    """With a grey rectangle: over one of the things, or anywhere."""
    out, side = rgb.clone(), rgb.shape[2]
    for image, spots, d in zip(out, boxes, dice, strict=True):
        if d.random() < 0.6:
            x0, y0, x1, y1 = (int(v) for v in spots[d.randrange(len(spots))])
            grow = d.randrange(2, 12)
        else:
            x0, y0 = d.randrange(side // 2), d.randrange(side // 2)
            x1, y1, grow = x0 + d.randrange(side // 5, side // 2), y0 + d.randrange(side // 5, side // 2), 0
        image[:, max(0, y0 - grow) : y1 + grow, max(0, x0 - grow) : x1 + grow] = BLANK
    return out


def _inner(rgb: Tensor, dice: Sequence[Random]) -> Tensor:
    """Only a middle part; the border is grey."""
    out, side = torch.full_like(rgb, BLANK), rgb.shape[2]
    for to, image, d in zip(out, rgb, dice, strict=True):
        x0, y0, x1, y1 = (d.randrange(side // 3) for _ in range(4))
        keep = (slice(None), slice(y0, side - y1), slice(x0, side - x1))
        to[keep] = image[keep]
    return out
