"""Pictures in a form: taken in as the API takes them in; masks drawn on them; a canvas that grows for outpainting."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
from PIL import Image, ImageOps

from ...pipelines.errors import SfumatoError
from ..faults import refuse
from ..output import write_whole
from ..server.desk import Desk
from ..server.inputs import Inputs
from .kinds import Field

if TYPE_CHECKING:
    from ..jobs.store import Store

SIDES = ("left", "top", "right", "bottom")
MOST = 4096
"""Largest side of a canvas, in pixels."""
PAINT = (226, 120, 60, 255)
"""What repainted parts look like in the editor."""
HALF = 128
NAME = re.compile(r"\w[\w. -]{0,99}")
"""Of a file that comes back into a form."""


class Canvas:
    """An editor for a picture and the mask on it, with room to grow."""

    def __init__(self, task: str, field: Field) -> None:
        self.task, self.field = task, field

    def build(self) -> Any:
        editor = gr.ImageEditor(
            label="Picture to start from: paint over what is to be repainted",
            type="pil",
            image_mode="RGBA",
            format="png",
            sources=["upload", "clipboard"],
            transforms=["crop"],
            brush=gr.Brush(default_size=24, colors=[f"rgba{(*PAINT[:3], 0.75)}"], color_mode="fixed"),
            eraser=gr.Eraser(default_size=24),
            layers=False,
            canvas_size=(640, 480),
            height=430,
            elem_id=f"{self.task}-{self.field.name}",
            elem_classes="sf-canvas",
            buttons=[],
        )
        with gr.Accordion("Outpaint: grow the canvas", open=False):
            with gr.Row(elem_classes="sf-fields"):
                sides = [
                    gr.Number(
                        0, label=f"{side} (px)", precision=0, min_width=80, elem_id=f"{self.task}-grow-{side}"
                    )
                    for side in SIDES
                ]
            button = gr.Button("Grow", size="sm", elem_id=f"{self.task}-grow")
            said = gr.Markdown("", visible=False)
        button.click(grow, [editor, *sides], [editor, said], api_visibility="private", show_progress="hidden")
        return editor


def grow(held: Any, *sides: float | None) -> tuple[Any, Any]:
    """The picture in a larger canvas whose new part is painted, so that it is made anew."""
    picture = _background(held)
    left, top, right, bottom = (int(side or 0) for side in sides)
    if picture is None:
        return gr.skip(), gr.update(value="There is no picture yet: give one first.", visible=True)
    width, height = picture.width + left + right, picture.height + top + bottom
    if min(left, top, right, bottom) < 0 or not 0 < max(width, height) <= MOST:
        told = f"The sides must be at least 0, and the canvas at most {MOST} px on each side."
        return gr.skip(), gr.update(value=told, visible=True)
    pads = ((top, bottom), (left, right))
    grown = Image.fromarray(np.pad(np.asarray(picture.convert("RGB")), (*pads, (0, 0)), mode="edge"))
    mask = mask_of(held)
    old = np.zeros((picture.height, picture.width), np.uint8) if mask is None else np.asarray(mask)
    return shown(grown, Image.fromarray(np.pad(old, pads, constant_values=255))), gr.update(visible=False)


def shown(picture: Image.Image, mask: Image.Image | None) -> dict[str, Any]:
    """As the editor takes it: the mask is a layer of paint."""
    layers = []
    if mask is not None:
        alpha = mask.convert("L").resize(picture.size, Image.Resampling.NEAREST)
        paint = Image.new("RGBA", picture.size, PAINT)
        paint.putalpha(alpha)
        layers.append(paint)
    composite = picture.convert("RGBA")
    for layer in layers:
        composite = Image.alpha_composite(composite, layer)
    return {"background": picture.convert("RGBA"), "layers": layers, "composite": composite}


def _background(held: Any) -> Image.Image | None:
    found = held.get("background") if isinstance(held, dict) else None
    if not isinstance(found, Image.Image):
        return None
    box = found.getchannel("A").getbbox() if found.mode == "RGBA" else found.getbbox()
    return None if box is None else found  # an editor without a picture has an empty background


def mask_of(held: Mapping[str, Any]) -> Image.Image | None:
    """White where something was painted; None if nothing was."""
    alpha = [np.asarray(layer.convert("RGBA"))[..., 3] for layer in held.get("layers") or ()]
    if not alpha:
        return None
    painted = np.max(alpha, axis=0) >= HALF
    return Image.fromarray((painted * 255).astype(np.uint8)) if painted.any() else None


def painted(field: Field, held: Any, inputs: Inputs) -> dict[str, Any]:
    """Fields of the request for what a control of pictures holds: the ids under which the pictures are kept."""
    if not held:
        return {}
    if isinstance(held, dict):
        picture, mask = _background(held), mask_of(held)
        if picture is None:
            if mask is not None:
                raise refuse(
                    "mask", "what was painted", "needs a picture to start from; give one in the editor"
                )
            return {}
        found = {field.name: _kept(_flat(picture), inputs, field.name)}
        return found | ({} if mask is None else {"mask": _kept(mask, inputs, "mask")})
    if isinstance(held, list):
        pairs = [Path(str(file)) for file in held]
        return {
            field.name: [f"{file.stem}={inputs.take(file.read_bytes(), field.name).id}" for file in pairs]
        }
    return {field.name: inputs.take(Path(str(held)).read_bytes(), field.name).id}


def _flat(picture: Image.Image) -> Image.Image:
    """Without transparency, on white."""
    ground = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB")


def _kept(image: Image.Image, inputs: Inputs, field: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return inputs.take(buffer.getvalue(), field).id


def drawn(field: Field, value: Any, mask: Any, desk: Desk) -> Any:
    """An update that shows a request's pictures, as far as they are still here."""
    if not value:
        return gr.update(value=None)
    if field.kind == "pictures":
        value = value if isinstance(value, list | tuple) else ()
        files = [file for text in value if (file := _named(str(text), desk)) is not None]
        return gr.update(value=[str(file) for file in files] or None)
    picture = _opened(str(value), desk, desk.store)
    if picture is None:
        return gr.update(value=None)
    if field.name != "image":
        return gr.update(value=picture)
    return gr.update(value=shown(picture, _opened(str(mask), desk, desk.store) if mask else None))


def _named(text: str, desk: Desk) -> Path | None:
    """The file of a `NAME=ID`, under its name again, where Gradio may read."""
    name, _, id = text.partition("=")
    try:
        path = desk.inputs.path(id, "pictures", desk.store)
        file = desk.home / "uploads" / "kept" / id / f"{name}{path.suffix}"
        if not NAME.fullmatch(name) or not path.is_file():
            return None
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, lambda target: target.write(path.read_bytes()))
    except (SfumatoError, OSError):  # deleted meanwhile
        return None
    return file


def _opened(id: str, desk: Desk, store: Store) -> Image.Image | None:
    try:
        with Image.open(desk.inputs.path(id, "image", store)) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (SfumatoError, OSError):  # deleted meanwhile
        return None
