"""The pictures of a request: opened, fitted to the size, put where the model looks at them or where the run starts.

A model that takes `image` and `mask` (Stable Diffusion's inpainting networks, FLUX Fill) looks at them and starts from
noise. One that takes `image` alone (Kontext, Qwen-Image-Edit) looks at it, and starts from it only if a strength says
so. Every other model starts from it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..pipelines.from_image import FromImage
from ..pipelines.protocols import Model
from ..pipelines.sizes import nearest_side
from ..pipelines.text_to_image import TextToImage
from .faults import refuse
from .metadata import open_image
from .requests import SamplingRequest

R = TypeVar("R", bound=SamplingRequest)

STRENGTH = 0.6
LARGE = 4


class Shown(NamedTuple):
    """The pipeline with its pictures, and what a record needs to tell of them."""

    pipe: TextToImage
    hashes: dict[str, str]
    """SHA-256 of each picture's file, by field or name."""


def framed(request: R) -> R:
    """The request with its pictures' full paths; what can't be opened is refused."""
    for name, value in (("mask", request.mask), ("strength", request.strength)):
        if value is not None and request.image is None:
            raise refuse(name, value, "needs a picture to start from; give --image too")
    found: dict[str, Any] = {"pictures": tuple("=".join(pair) for pair in named(request).items())}
    if request.image is not None:
        found |= {"image": _absolute(request.image)}
        _upright(found["image"], "image")
    if request.mask is not None:
        found |= {"mask": _absolute(request.mask)}
    return request.model_copy(update=found)


def own_size(request: SamplingRequest, model: Model) -> tuple[int, int]:
    """Width and height where neither was asked for: the model's own, or those of --image as near as the model can.

    A picture of more than LARGE times the model's own pixels is made with as many as the model's own.
    """
    own = model.defaults
    if request.image is None:
        return own.width, own.height
    width, height = _upright(request.image, "image").size
    pixels = own.width * own.height
    scale = (pixels / (width * height)) ** 0.5 if width * height > LARGE * pixels else 1.0
    return nearest_side(width * scale, model.limits), nearest_side(height * scale, model.limits)


def size_note(request: SamplingRequest) -> str | None:
    """What the user should know where the result has not the size of --image."""
    if request.image is None:
        return None
    width, height = _upright(request.image, "image").size
    if (width, height) == (request.width, request.height):
        return None
    return (
        f"image: {width}x{height} pixels, made {request.width}x{request.height}; --size asks for another size"
    )


def named(request: SamplingRequest) -> dict[str, str]:
    """Full paths of --picture by name."""
    found = {}
    for text in request.pictures:
        name, equals, file = text.partition("=")
        if not (name and equals and file):
            raise refuse("pictures", text, "is not NAME=FILE; write it as in control=depth.png")
        if name in found:
            raise refuse("pictures", text, f"gives {name} a second time; keep one")
        found[name] = _absolute(file)
    return found


def show(pipe: TextToImage, request: SamplingRequest) -> Shown:
    """The pipeline of a resolved request with its pictures."""
    size = (request.width or 0, request.height or 0)
    files, attached = named(request), {}
    takes = (*pipe.model.needs, *pipe.model.accepts)
    for name, file in files.items():
        if name in ("image", "mask"):
            raise refuse("pictures", name, f"has an option of its own; write --{name} {file}")
        if name not in takes:
            known = ", ".join(takes) or "none"
            raise refuse("pictures", name, f"is no picture that {request.model} looks at; it takes {known}")
        attached[name] = pixels(file, "pictures", size, "RGB")
    start = None
    if request.image is not None:
        files["image"] = request.image
        image, mask = pixels(request.image, "image", size, "RGB"), None
        if request.mask is not None:
            files["mask"] = request.mask
            mask = pixels(request.mask, "mask", size, "L")
            if not mask.any():
                raise refuse("mask", request.mask, "is black all over, so nothing would be repainted")
        alone = "mask" not in takes or "image" in pipe.model.needs
        looks = "image" in takes and (mask is not None or alone)
        if looks:
            attached["image"] = image
            if mask is not None and "mask" in takes:
                attached["mask"] = mask
        if request.strength is not None or mask is not None or not looks:
            start = FromImage(image, request.strength or (1.0 if looks else STRENGTH), mask)
    _complete(pipe.model, request, attached)
    hashes = {name: hashlib.sha256(Path(file).read_bytes()).hexdigest() for name, file in files.items()}
    return Shown(replace(pipe, pictures=attached, start=start), hashes)


def pixels(file: str, field: str, size: tuple[int, int], mode: str) -> Tensor:
    """[1,C,H,W] in 0..1, scaled to cover the size and cut to it about its middle."""
    image = _upright(file, field).convert(mode)
    if image.size != size:
        image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(image).copy()).view(1, size[1], size[0], -1).permute(0, 3, 1, 2) / 255


def _complete(model: Model, request: SamplingRequest, attached: dict[str, Tensor]) -> None:
    for name in model.needs:
        if name not in attached:
            how = f"--{name} FILE" if name in ("image", "mask") else f"--picture {name}=FILE"
            raise refuse("model", request.model, f"needs the picture {name!r}; give {how}")


def _upright(file: str, field: str) -> Image.Image:
    """A picture as it is to be seen, whatever side its camera was held."""
    return ImageOps.exif_transpose(open_image(Path(file), field))


def _absolute(file: str) -> str:
    return str(Path(file).expanduser().absolute())
