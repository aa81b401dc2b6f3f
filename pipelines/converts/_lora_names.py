"""Names of modules in LoRA files: those of peft and diffusers are read here, others through diffusers' converters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import BadWeights
from ..families._parts import BUILD_ERRORS, quiet

PARTS = (
    *("unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3"),
    "language_model",
)
READERS = {
    "AuraFlowTransformer2DModel": "AuraFlowLoraLoaderMixin",
    "CogVideoXTransformer3DModel": "CogVideoXLoraLoaderMixin",
    "CogView4Transformer2DModel": "CogView4LoraLoaderMixin",
    "Flux2Transformer2DModel": "Flux2LoraLoaderMixin",
    "FluxTransformer2DModel": "FluxLoraLoaderMixin",
    "HiDreamImageTransformer2DModel": "HiDreamImageLoraLoaderMixin",
    "HunyuanVideoTransformer3DModel": "HunyuanVideoLoraLoaderMixin",
    "LTXVideoTransformer3DModel": "LTXVideoLoraLoaderMixin",
    "Lumina2Transformer2DModel": "Lumina2LoraLoaderMixin",
    "MochiTransformer3DModel": "Mochi1LoraLoaderMixin",
    "QwenImageTransformer2DModel": "QwenImageLoraLoaderMixin",
    "SD3Transformer2DModel": "SD3LoraLoaderMixin",
    "SanaTransformer2DModel": "SanaLoraLoaderMixin",
    "UNet2DConditionModel": "StableDiffusionXLLoraLoaderMixin",
    "WanTransformer3DModel": "WanLoraLoaderMixin",
    "ZImageTransformer2DModel": "ZImageLoraLoaderMixin",
}
"""Network -> the class of diffusers that knows the names trainers give to its modules."""


def converted(state: Mapping[str, Tensor], net: nn.Module, file: Path, origin: str) -> Mapping[str, Tensor]:
    from diffusers.loaders import lora_pipeline

    kind = type(net).__name__
    if kind not in READERS:
        return state
    reader: Any = getattr(lora_pipeline, READERS[kind])
    with quiet():
        try:
            if kind == "UNet2DConditionModel":
                found = reader.lora_state_dict(dict(state), unet_config=net.config)
            else:
                found = reader.lora_state_dict(dict(state))
        except BUILD_ERRORS as error:
            reason = " ".join(str(error).split())[:160]
            raise BadWeights(f"{file}: {origin} does not fit {kind} ({reason})") from error
    named: Mapping[str, Tensor] = found[0] if isinstance(found, tuple) else found
    return named


_ENDS = (
    re.compile(r"(?P<module>.*)\.lora_(?P<role>A|B)(\.[\w-]+)?\.weight"),
    re.compile(r"(?P<module>.*)\.lora_(?P<role>magnitude)_vector(\.[\w-]+)?"),
    re.compile(r"(?P<module>.*)\.lora\.(?P<role>down|up)\.weight"),
    re.compile(r"(?P<module>.*)\.lora_linear_layer\.(?P<role>down|up)\.weight"),
    re.compile(r"(?P<module>.*)\.lora_(?P<role>down|up)\.weight"),
    re.compile(r"(?P<module>.*\.to_(?:q|k|v|out))_lora\.(?P<role>down|up)\.weight"),
)
_ROLES = {"A": "down", "B": "up"}
Row = tuple[str, str, str, Tensor]
"""(part, module, down or up or magnitude, tensor)"""


def rows_of(state: Mapping[str, Tensor], main: str) -> list[Row] | None:
    """None if a name is none of a LoRA's."""
    rows = []
    for name, tensor in state.items():
        match = next((m for end in _ENDS if (m := end.fullmatch(name))), None)
        if match is None:
            return None
        part, module = _split(match["module"].removeprefix("base_model.model."), main)
        module = module.replace(".processor.", ".")
        if part.startswith("text_encoder"):
            module = re.sub(r"\.to_(q|k|v|out)$", r".\1_proj", module)
        elif "_lora." in name:
            module = re.sub(r"\.to_out$", ".to_out.0", module)
        rows.append((part, module, _ROLES.get(match["role"], match["role"]), tensor))
    return rows


def _split(name: str, main: str) -> tuple[str, str]:
    part, _, rest = name.partition(".")
    return (part, rest) if part in PARTS else (main, name)


def module_of(nets: Mapping[str, nn.Module], part: str, name: str) -> str | None:
    """The module's own name. CLIP models have lost and had a `text_model.` before theirs."""
    for candidate in (name, name.removeprefix("text_model."), f"text_model.{name}"):
        try:
            nets[part].get_submodule(candidate)
        except (KeyError, AttributeError):
            continue
        return candidate
    return None
