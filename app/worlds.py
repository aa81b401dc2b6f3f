"""The `world` task: one scene of Still Life as a picture and as the truth about it, in files."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from .console import Console
from .faults import nearest, refuse
from .local import LocalWork
from .output import image_folder
from .requests import WorldRequest, settled
from .work import Artifact, Outcome, Work

MAPS = ("rgb", "depth", "normals", "ids", "masks", "lines")
DEPTH_UNIT = 0.001
"""World units per step of the 16-bit depth map; the sky is 65535."""


def make_world(
    request: WorldRequest, console: Console, *, output: str | None, dry_run: bool
) -> dict[str, Any]:
    """Render the scene and write one file per map, and scene.json. Returns what was written."""
    request, scene = prepare(request)
    if dry_run:
        plan = expected(request, scene)
        return {
            "request": request.model_dump(mode="json"),
            "plan": plan,
            "scene": scene.to_dict(),
            "files": [],
        }
    work = LocalWork(console, folder=image_folder(output))
    console.say(f"rendering {request.width}x{request.height} into {work.folder}/")
    render_all(request, scene, work)
    return {"request": request.model_dump(mode="json"), "files": [row["path"] for row in work.files]}


def world(request: WorldRequest, work: Work) -> Outcome:
    """The task."""
    work.phase("load")
    request, scene = prepare(request)
    work.phase("render")
    render_all(request, scene, work)
    return Outcome(request)


def prepare(request: WorldRequest) -> tuple[WorldRequest, Any]:
    """The request with nothing left open, and its scene."""
    request = settled(request.model_copy(update={"maps": chosen_maps(request.maps)}))
    return request, find_scene(request.prompt, request.seed or 0, request.view)


def chosen_maps(names: tuple[str, ...]) -> tuple[str, ...]:
    """`all` spelled out; commas are accepted too."""
    flat = [name for item in names for name in item.replace(",", " ").split()]
    for name in flat:
        if name not in (*MAPS, "all"):
            raise refuse("maps", name, f"is no map; {nearest(name, MAPS)}known are all, {', '.join(MAPS)}")
    return MAPS if "all" in flat else tuple(m for m in MAPS if m in flat)


def find_scene(text: str, seed: int, view: str | None) -> Any:
    """The scene of a caption, its open points drawn from the seed; without a caption any scene."""
    from ..assets.still_life import camera, grammar, sampling

    name = None if view is None else " ".join(view.lower().replace("-", " ").replace("_", " ").split())
    if name is not None and name not in camera.VIEWS:
        raise refuse(
            "view", view, f"is no view; {nearest(name, camera.VIEWS)}known are {', '.join(camera.VIEWS)}"
        )
    if text.strip():
        try:
            scene = sampling.scene_from(grammar.parse(text), seed)
        except ValueError as error:
            raise refuse("prompt", text, f"can't be drawn: {error}; {vocabulary()}") from error
    else:
        scene = sampling.sample_scene(seed)
    if name is None:
        return scene
    aside = scene.camera.azimuth_deg - camera.VIEWS[camera.view_name(scene.camera)]
    turned = replace(scene.camera, azimuth_deg=(camera.VIEWS[name] + aside) % 360.0)
    return replace(scene, camera=turned)


def vocabulary() -> str:
    """The canonical words of the world, on one line."""
    from ..assets.still_life import scene

    kinds = {
        "shapes": scene.SHAPES,
        "colours": scene.COLORS,
        "materials": scene.MATERIALS,
        "sizes": scene.SIZES,
        "relations": scene.RELATIONS,
        "settings": scene.SETTINGS,
    }
    return "known are " + "; ".join(f"{kind} {', '.join(words)}" for kind, words in kinds.items())


def render_all(request: WorldRequest, scene: Any, work: Work) -> None:
    """Hand over one picture per map, and scene.json."""
    from ..assets.still_life.render import render

    needed = {"masks": "ids"}
    wanted = tuple(dict.fromkeys(needed.get(m, m) for m in request.maps))
    truth = render([scene], size=(request.height, request.width), maps=wanted)
    work.phase("write")
    images = {name: _picture(name, truth) for name in request.maps if name != "masks"}
    if "masks" in request.maps:
        images |= {f"mask-{i}-{t.color}-{t.shape}": _mask(truth, i) for i, t in enumerate(scene.things)}
    record = {"task": request.task, "request": request.model_dump(mode="json")}
    for name, image in images.items():
        work.keep(Artifact(f"{name}.png", "image/png", record), partial(image.save, format="PNG"))
    text = json.dumps(description(request, scene, truth.boxes[0], images), indent=2) + "\n"
    work.keep(Artifact("scene.json", "application/json", record), lambda file: file.write(text.encode()))


def expected(request: WorldRequest, scene: Any) -> dict[str, Any]:
    """Memory and time of the rendering, from a small one of the same scene."""
    from ..assets.still_life.render import render
    from ..pipelines.rehearsal import rehearse
    from .room import room

    wanted = tuple(dict.fromkeys("ids" if m == "masks" else m for m in request.maps))
    small = (max(16, request.height // 8), max(16, request.width // 8))
    began = time.perf_counter()
    render([scene], size=small, maps=wanted)
    took = time.perf_counter() - began
    need = rehearse(lambda: render([scene], size=small, maps=wanted), (), processor=False)
    more = request.width * request.height / (small[0] * small[1])
    held = room("cpu").held
    return {"seconds": round(took * more, 3), "peak_bytes": held + int(need.peak * more)}


def description(request: WorldRequest, scene: Any, boxes: Any, images: Mapping[str, Any]) -> dict[str, Any]:
    """scene.json: scene, caption, boxes in pixels, camera in OpenCV's axes, and how the maps are coded."""
    from ..assets.still_life.grammar import caption

    size = (request.height, request.width)
    return {
        "request": request.model_dump(mode="json"),
        "caption": caption(scene),
        "scene": scene.to_dict(),
        "boxes": [[round(x) for x in row] for row in boxes.tolist()],
        "camera": {
            "viewmat": scene.camera.viewmat().tolist(),
            "K": scene.camera.K(size).tolist(),
            "axes": "OpenCV: x right, y down, z forward; viewmat is world to camera; pixel centres at +0.5",
        },
        "coding": {
            "depth": f"16 bit, {DEPTH_UNIT} world units per step along the camera's forward axis, sky 65535",
            "normals": "8 bit, camera axes, (n + 1) / 2; sky 0.5",
            "ids": "8 bit: 0 sky, 1 ground, 2 + i for things[i]",
            "boxes": "x0 y0 x1 y1 in pixels of the visible part, x1 and y1 exclusive",
        },
        "files": [f"{name}.png" for name in images],
    }


def _picture(name: str, truth: Any) -> Any:
    """One map as a Pillow image."""
    import numpy as np
    from PIL import Image

    if name == "depth":
        steps = (truth.depth[0, 0].numpy() / DEPTH_UNIT).round().clip(0, 65535).astype(np.uint16)
        return Image.fromarray(steps)
    if name == "ids":
        return Image.fromarray(truth.ids[0, 0].numpy().astype(np.uint8))
    if name == "lines":
        return Image.fromarray((truth.lines[0, 0].numpy() * 255).round().astype(np.uint8))
    planes = truth.rgb[0] if name == "rgb" else (truth.normals[0] + 1) / 2
    return Image.fromarray((planes.permute(1, 2, 0).clamp(0, 1).numpy() * 255).round().astype(np.uint8))


def _mask(truth: Any, thing: int) -> Any:
    import numpy as np
    from PIL import Image

    return Image.fromarray((truth.ids[0, 0].numpy() == thing + 2).astype(np.uint8) * 255)
