"""Adapters of a model, opened with the same care as its own parts: ControlNet, T2I-Adapter, IP-Adapter.

Nothing is fetched, and only safetensors are read. What is opened goes into the patches of `patches/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .errors import BadInput, BadWeights
from .families._common import Checkpoint, Codec
from .families._parts import Part, load_net
from .loading import check_contained
from .protocols import Model
from .weights import REMEDY, read_header, read_json

CONTROL = ("ControlNetModel", "FluxControlNetModel", "SD3ControlNetModel")
STYLE = "style"
"""Name of the picture that a model with an IP-Adapter takes."""


class PicturePrompt(NamedTuple):
    """An opened IP-Adapter."""

    weights: Mapping[str, Mapping[str, Tensor]]
    """For the patch `IPAdapter`."""
    adapter: Part
    encoder: Part
    """CLIP's picture half."""


def open_control(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> nn.Module:
    """A control network from its folder (config.json beside safetensors), for the patch that fits its class."""
    return _open(Path(folder), CONTROL, dtype, torch.device(device)).net


def control_latents(model: Model, control: nn.Module, image: Tensor) -> Tensor:
    """A control image [1 or B,3,H,W] in 0..1 as the latents that a control network of FLUX or SD 3 reads."""
    latents, net = model.encode_image(image), cast(Any, control)
    if type(control).__name__ != "SD3ControlNetModel" or not net.config.force_zeros_for_pooled_projection:
        return latents
    if not isinstance(model, Checkpoint) or not isinstance(model.codec, Codec):
        raise BadInput(
            "model", f"{model.name} has another codec than SD 3; take the model that the adapter is for"
        )
    return latents + model.codec.shift * model.codec.scale  # InstantX trained without the shift


def open_t2i_adapter(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> nn.Module:
    """A T2I-Adapter from its folder (config.json beside safetensors)."""
    return _open(Path(folder), ("T2IAdapter",), dtype, torch.device(device)).net


def open_ip_adapter(
    file: str | Path,
    encoder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> PicturePrompt:
    """An IP-Adapter from its safetensors, and the folder of the CLIP picture encoder that it was trained with."""
    path, home = Path(file).expanduser(), Path(encoder).expanduser()
    if path.suffix != ".safetensors":
        raise BadWeights(
            f"{path}: only .safetensors is read, other formats can run code; {REMEDY.format(file=path)}"
        )
    read_header(path)
    weights: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in load_file(path).items():
        group, _, rest = name.partition(".")
        if group not in weights or not rest:
            raise BadWeights(
                f"{path}: tensor {name!r} belongs to no IP-Adapter (image_proj..., ip_adapter...); take another file"
            )
        weights[group][rest] = tensor.to(device, dtype)
    held = [value for group in weights.values() for value in group.values()]
    adapter = nn.ParameterList([nn.Parameter(value, requires_grad=False) for value in held])
    config = _config(home)
    if config.get("model_type") != "clip_vision_model":
        raise BadWeights(
            f"{home}: config.json is of a {config.get('model_type')!r}; clip_vision_model is needed"
        )
    part = load_net(home, "transformers.CLIPVisionModelWithProjection", dtype, torch.device(device))
    return PicturePrompt(weights, Part(adapter, (path,)), part)


def with_style(model: Model, prompt: PicturePrompt) -> Model:
    """The model, which now takes the picture "style" too: positive conditions see it, negative ones see none."""
    if not isinstance(model, Checkpoint):
        raise BadInput("model", f"{model.name} is no opened checkpoint; open it with open_model")
    if STYLE in model.accepts:
        raise BadInput(
            "model", f"{model.name} has an IP-Adapter already; begin with the model as it was opened"
        )
    style = _Style(prompt.encoder.net, "proj.weight" not in prompt.weights["image_proj"])
    return replace(
        model,
        accepts=(*model.accepts, STYLE),
        styles={**model.styles, STYLE: style},
        parts={**model.parts, "ip_adapter": prompt.adapter, "image_encoder": prompt.encoder},
    )


@dataclass(frozen=True)
class _Style:
    """What CLIP sees in a picture: one vector, or with `tokens` its last features but one."""

    clip: Any
    tokens: bool

    def __call__(self, picture: Tensor, negative: bool) -> Mapping[str, Tensor]:
        if picture.ndim != 4 or picture.shape[1] != 3:
            raise BadInput("pictures", f"style has the shape {list(picture.shape)}; [B,3,H,W] is needed")
        pixels = self._pixels(picture)
        if self.tokens:  # no picture is a grey one
            pixels = torch.zeros_like(pixels) if negative else pixels
            seen = self.clip(pixels, output_hidden_states=True).hidden_states[-2]
        else:
            seen = self.clip(pixels).image_embeds
            seen = torch.zeros_like(seen) if negative else seen
        return {"style": seen[:, None]}

    def _pixels(self, picture: Tensor) -> Tensor:
        """Resized, cropped and normalised as CLIP was trained, which is in 8 bits."""
        from transformers import CLIPImageProcessorPil

        side = int(self.clip.config.image_size)
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
        images = (picture * 255).round().clamp(0, 255).to(torch.uint8).cpu()
        pixels: Tensor = processor(list(images), return_tensors="pt").pixel_values
        return pixels.to(self.clip.device, self.clip.dtype)


def _open(folder: Path, kinds: tuple[str, ...], dtype: torch.dtype, device: torch.device) -> Part:
    home = folder.expanduser()
    kind = _config(home).get("_class_name")
    if kind not in kinds:
        raise BadWeights(f"{home}: config.json is of a {kind!r}; {' or '.join(kinds)} is needed")
    return load_net(home, f"diffusers.{kind}", dtype, device)


def _config(home: Path) -> dict[str, Any]:
    if not (home / "config.json").is_file():
        raise BadInput(
            "folder", f"{home} has no config.json; give the folder that holds it beside safetensors"
        )
    check_contained(home)
    return read_json(home / "config.json")
