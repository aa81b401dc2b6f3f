"""Other programs' metadata: A1111 (also SD.Next, Forge, sd.cpp), InvokeAI, SwarmUI, Fooocus, ComfyUI.

`recover(texts)` takes the text chunks of a file by key. Nothing found in a file is ever executed.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from .comfy import read_graph
from .recovered import MAX_TEXT, BrokenMetadata, Recovered, load_object, take, text, whole

OWN = "sfumato"
OWN_IN_A1111 = "Sfumato"

A1111 = {
    "Steps": "steps",
    "Sampler": "sampler",
    "Schedule type": "schedule",
    "CFG scale": "guidance",
    "Seed": "seed",
    "Model": "model",
    "Model hash": "model_hash",
}
INVOKE = {
    "positive_prompt": "prompt",
    "negative_prompt": "negative",
    "width": "width",
    "height": "height",
    "seed": "seed",
    "cfg_scale": "guidance",
    "steps": "steps",
    "scheduler": "sampler",
}
SWARM = {
    "prompt": "prompt",
    "negativeprompt": "negative",
    "model": "model",
    "seed": "seed",
    "steps": "steps",
    "cfgscale": "guidance",
    "width": "width",
    "height": "height",
    "sampler": "sampler",
    "scheduler": "schedule",
}
FOOOCUS = {
    "prompt": "prompt",
    "negative_prompt": "negative",
    "base_model": "model",
    "base_model_hash": "model_hash",
    "sampler": "sampler",
    "scheduler": "schedule",
    "steps": "steps",
    "guidance_scale": "guidance",
    "seed": "seed",
}


def recover(texts: Mapping[str, str]) -> Recovered | None:
    """The first dialect that the texts hold, our own before all others; None if they hold none."""
    parameters = texts.get("parameters", "")
    if OWN in texts:
        return _own(load_object(texts[OWN], "the sfumato key"), parameters)
    if "invokeai_metadata" in texts:
        return _invoke(load_object(texts["invokeai_metadata"], "invokeai_metadata"))
    if "sui_image_params" in parameters[:4096] or parameters.lstrip().startswith('{"sui_'):
        return _swarm(load_object(parameters, "SwarmUI's parameters"))
    if texts.get("fooocus_scheme") == "fooocus":
        return _fooocus(load_object(parameters, "Fooocus' parameters"))
    if parameters:
        return read_a1111(parameters)
    if "prompt" in texts:
        return read_graph(load_object(texts["prompt"], "ComfyUI's prompt"))
    return None


def write_a1111(prompt: str, negative: str, settings: Mapping[str, object]) -> str:
    """The `parameters` text of A1111. Values with a comma, a colon or a line break are JSON-quoted."""
    line = ", ".join(f"{k}: {quote(str(v))}" for k, v in settings.items() if v is not None)
    return "\n".join([prompt, *([f"Negative prompt: {negative}"] if negative else []), line])


def quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value


def read_a1111(block: str) -> Recovered:
    """Prompt lines, `Negative prompt:` lines, and a last line of `Key: value` pairs."""
    if len(block) > MAX_TEXT:
        raise BrokenMetadata(f"parameters has {len(block)} characters, more than {MAX_TEXT}")
    lines = block.strip("\n").split("\n")
    pairs = _pairs(lines[-1]) if _is_settings(lines[-1]) else {}
    body = lines[:-1] if pairs else lines
    cut = next((i for i, line in enumerate(body) if line.startswith("Negative prompt:")), len(body))
    prompt, negative = "\n".join(body[:cut]), "\n".join(body[cut:]).removeprefix("Negative prompt:")
    own = pairs.pop(OWN_IN_A1111, None)
    if own is not None:
        return _own(load_object(own, "the Sfumato value"), block)
    found = take(pairs, A1111, "a1111")
    width, _, height = found.unmapped.pop("Size", "").partition("x")
    return dataclasses.replace(
        found, prompt=prompt, negative=negative.strip(), width=whole(width), height=whole(height)
    )


def _is_settings(line: str) -> bool:
    return bool(re.match(r"\s*(Steps|Sampler|Seed|Size|Model|CFG scale|Version): ", line))


def _pairs(line: str) -> dict[str, str]:
    """`Key: value, Key: "quoted, value"` in one pass, whatever the text holds."""
    found: dict[str, str] = {}
    decoder = json.JSONDecoder()
    at = 0
    while at < len(line):
        colon = line.find(":", at)
        if colon < 0:
            break
        key, at = line[at:colon].strip(" ,"), colon + 1
        while at < len(line) and line[at] == " ":
            at += 1
        if line[at : at + 1] == '"':
            try:
                value, at = decoder.raw_decode(line, at)
                found[key] = str(value)
                continue
            except ValueError:
                pass  # a stray quote: an ordinary value
        comma = line.find(",", at)
        comma = len(line) if comma < 0 else comma
        found[key], at = line[at:comma].strip(), comma + 1
    return found


def _own(record: dict[str, Any], block: str) -> Recovered:
    """Our own record. Fields come from its request; the model's hash and the image's seed from beside it."""
    request, image, model, used = (_object(record, key) for key in ("request", "image", "model", "used"))
    names = ("prompt", "negative", "model", "steps", "guidance", "width", "height")
    found = take({k: request[k] for k in names if k in request}, {k: k for k in names}, OWN)
    return dataclasses.replace(
        found,
        seed=whole(image.get("seed")),
        model_hash=text(model.get("hash")),
        sampler=text(used.get("sampler")),
        schedule=text(used.get("schedule")),
        record=record,
    )


def _invoke(source: dict[str, Any]) -> Recovered:
    found = take(source, INVOKE, "invokeai")
    model = found.unmapped.pop("model", None)
    if isinstance(model, dict):
        name = text(model.get("name")) or text(model.get("model_name"))
        return dataclasses.replace(found, model=name, model_hash=text(model.get("hash")))
    return found


def _swarm(source: dict[str, Any]) -> Recovered:
    found = take(_object(source, "sui_image_params"), SWARM, "swarmui")
    models = source.get("sui_models")
    hashes = [m.get("hash") for m in models if isinstance(m, dict)] if isinstance(models, list) else []
    rest = {k: v for k, v in source.items() if k not in ("sui_image_params", "sui_models")}
    return dataclasses.replace(
        found, model_hash=text(hashes[0]) if hashes else None, unmapped={**found.unmapped, **rest}
    )


def _fooocus(source: dict[str, Any]) -> Recovered:
    found = take(source, FOOOCUS, "fooocus")
    size = re.fullmatch(r"\((\d{1,6}), (\d{1,6})\)", str(found.unmapped.get("resolution", "")))
    if size is None:
        return found
    unmapped = {k: v for k, v in found.unmapped.items() if k != "resolution"}
    return dataclasses.replace(found, width=int(size[1]), height=int(size[2]), unmapped=unmapped)


def _object(source: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = source.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BrokenMetadata(f"{key} is a {type(value).__name__}, not an object")
    return value
