"""What can be asked for: one frozen pydantic model per task.

Field names, types, ranges, units, defaults, help and group stand here and nowhere else. Command-line options,
the JSON schema, the web form and the saved metadata are made from these models. A new task is a new class
here and a function in `tasks.py`.
"""

from __future__ import annotations

import secrets
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .chosen import Device, LoraChoice, Technique

SEED_LIMIT = 2**63 - 1
FOR_RANDOM = 2**32
"""Random seeds stay below this: A1111 and its kin read 32 bits."""


class Shorthand(NamedTuple):
    """A spelling that fills several fields at once, such as `size` for `width` and `height`."""

    help: str
    metavar: str
    fields: tuple[str, ...]


SIZE = {"size": Shorthand("width and height in one, as in 512x384", "WxH", ("width", "height"))}


def field(
    default: Any,
    help: str,
    *,
    unit: str = "",
    group: str = "basic",
    flags: tuple[str, ...] = (),
    holds: str = "",
    **bounds: Any,
) -> Any:
    """A request field. `flags` are spellings besides `--name`; `bounds` are pydantic's (ge, le ...).

    `holds` says what a text stands for: words, model, bridge, place (file or folder), picture, pictures (NAME=FILE). A
    server lets a stranger give words as they are, and all else within what is open to him; without `holds`, no paths.
    """
    extra: dict[str, Any] = {"unit": unit, "group": group, "flags": list(flags)}
    extra |= {"holds": holds} if holds else {}
    return Field(default, description=help, json_schema_extra=extra, **bounds)


class Request(BaseModel):
    """Base of all requests. `task` is the command's name."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    task: ClassVar[str]
    medium: ClassVar[str] = "image"
    """image, video or 3d: what a technique must be good for."""
    shorthands: ClassVar[dict[str, Shorthand]] = {}
    positional: ClassVar[str] = "prompt"
    spoken: ClassVar[bool] = False
    """Whether the positional value must be given, though it may be empty."""

    @classmethod
    def expand(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Shorthands spelled out as the fields they stand for."""
        return values

    @model_validator(mode="before")
    @classmethod
    def _expanded(cls, value: Any) -> Any:
        return cls.expand(value) if isinstance(value, dict) else value


R = TypeVar("R", bound=Request)


def settled(request: R) -> R:
    """Nothing left to chance: a seed is drawn if there is none, so that whoever goes on with it gets the same."""
    if dict(request).get("seed", 0) is not None:
        return request
    return request.model_copy(update={"seed": secrets.randbelow(FOR_RANDOM)})


class SamplingRequest(Request):
    """What every request that samples from a prompt has. The size may also be given as `size`: "512x384"."""

    shorthands: ClassVar[dict[str, Shorthand]] = SIZE

    prompt: str = field("", "what the picture shows", flags=("-p",), holds="words")
    negative: str = field("", "what to steer away from", flags=("-n", "--negative-prompt"), holds="words")
    model: str = field(
        "still-life",
        "built-in or remembered model, folder or file of weights, or owner/name that was pulled: `sfumato models`",
        flags=("-m",),
        holds="model",
        min_length=1,
    )
    parts: str | None = field(
        None,
        "for a single file: folder in diffusers layout (or its name) with its tokenizers and what else it lacks",
        group="advanced",
        holds="model",
        min_length=1,
    )
    width: int | None = field(
        None, "width; the model's own if not given", unit="px", flags=("-W",), ge=8, le=16384
    )
    height: int | None = field(
        None, "height; the model's own if not given", unit="px", flags=("-H",), ge=8, le=16384
    )
    steps: int | None = field(None, "sampling steps; the model's own number if not given", ge=1, le=1000)
    guidance: float | None = field(
        None, "guidance scale, 1 is off; the model's own if not given", flags=("--cfg-scale",), ge=0, le=1000
    )
    seed: int | None = field(
        None, "seed of the first image, the next has seed + 1; random if not given", ge=0, le=SEED_LIMIT
    )
    count: int = field(1, "number of images", ge=1, le=10000)
    sampler: Technique | None = field(
        None, "sampler, with settings after a colon; the model's own if not given", group="advanced"
    )
    schedule: Technique | None = field(
        None, "schedule of times, with settings after a colon; the model's own if not given", group="advanced"
    )
    techniques: tuple[Technique, ...] = field(
        (),
        "guidance, wrap, patch or convert as NAME:key=value,key=value; repeat for more: `sfumato techniques`",
        group="advanced",
        flags=("-t", "--technique"),
    )
    reuse: float = field(
        0.0,
        "how much may be lost by reusing what earlier steps computed, as a share of the picture; 0 is off",
        group="advanced",
        ge=0,
        le=1,
    )
    optimize: Literal["off", "exact", "balanced", "fast", "small"] = field(
        "off",
        "how to run the networks here: exact loses nothing, balanced computes in 8 bits, fast reuses steps too, small "
        "holds weights in 4 bits; docs/optimize.md says by what",
        group="advanced",
    )
    loras: tuple[LoraChoice, ...] = field(
        (),
        "LoRA, a file, a remembered name or one in --lora-folder; repeat for more",
        group="advanced",
        flags=("--lora",),
    )
    lora_folder: str = field(
        "loras", "folder in which LoRAs are looked up by name", group="advanced", holds="place", min_length=1
    )
    wildcards: str | None = field(
        None,
        "folder of text files: __name__ in a prompt is a line of name.txt",
        group="advanced",
        holds="place",
    )
    embeddings: tuple[str, ...] = field(
        (),
        "file of textual inversion; its word stands in prompts as <name>; repeat for more",
        group="advanced",
        flags=("--embedding",),
        holds="place",
    )
    bridge: str | None = field(
        None,
        "language model that reads the prompt instead of the model's text encoder: folder of a bridge, or its name",
        group="advanced",
        holds="bridge",
        min_length=1,
    )
    image: str | None = field(
        None,
        "picture to start from; for models that look at one, the picture they look at",
        group="picture",
        flags=("-i",),
        holds="picture",
        min_length=1,
    )
    mask: str | None = field(
        None,
        "what to repaint of --image: white is repainted, black is kept bit for bit",
        group="picture",
        holds="picture",
        min_length=1,
    )
    strength: float | None = field(
        None,
        "how far from --image: the share of the steps taken; 0.6 if not given, 1 for models that look at it",
        group="picture",
        ge=0.01,
        le=1,
    )
    pictures: tuple[str, ...] = field(
        (),
        "what a model looks at besides, as NAME=FILE (control=depth.png); repeat for more",
        group="picture",
        flags=("--picture",),
        holds="pictures",
    )
    batch: int = field(
        1,
        "images sampled at once: more is faster on a GPU, and may change the last bits",
        group="advanced",
        ge=1,
        le=1000,
    )
    memory: float | None = field(
        None,
        "most memory to take, program and weights included; what is free if not given. The run is planned to fit",
        unit="GB",
        group="advanced",
        ge=0.001,
        le=100000,
    )
    offload: float | None = field(
        None,
        "weights held at once, the others are read from their files as needed; 0 holds all, planned if not given",
        unit="GB",
        group="advanced",
        ge=0,
        le=100000,
    )
    decode: Literal["auto", "whole", "stripes", "tiles"] = field(
        "auto",
        "how pictures leave the latents: whole; in stripes (same picture, half the memory); in blended tiles",
        group="advanced",
    )
    device: Device = field(
        "auto", "auto, cpu, cuda, cuda:1, mps or xpu; auto is a GPU if there is one", group="advanced"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        "auto", "number type of the networks; auto is bfloat16 on a GPU, float32 on a CPU", group="advanced"
    )

    @classmethod
    def expand(cls, values: dict[str, Any]) -> dict[str, Any]:
        return expand_size(values) if "size" in values else values


def expand_size(value: dict[str, Any]) -> dict[str, Any]:
    """{"size": "512x384"} to {"width": 512, "height": 384}; one number is a square."""
    rest = {k: v for k, v in value.items() if k != "size"}
    if value["size"] is None:
        return rest
    width, cross, height = str(value["size"]).lower().replace("\u00d7", "x").partition("x")
    height = height if cross else width
    if not (width.strip().isdecimal() and height.strip().isdecimal()):
        raise ValueError(f"size: {value['size']!r} is not WxH; write it as in 512x384")
    for name, number in (("width", int(width)), ("height", int(height))):
        if rest.get(name) not in (None, number, str(number)):
            raise ValueError(f"size: {value['size']!r} and {name} {rest[name]} disagree; give one of them")
        rest[name] = number
    return rest


class GenerateRequest(SamplingRequest):
    """Make images from a prompt."""

    task: ClassVar[str] = "generate"
    spoken: ClassVar[bool] = True


class WorldRequest(Request):
    """Render a scene of the built-in world, with all that is true of it."""

    task: ClassVar[str] = "world"
    shorthands: ClassVar[dict[str, Shorthand]] = SIZE

    prompt: str = field(
        "", "caption of the scene; without one, a random scene of the seed", flags=("-p",), holds="words"
    )
    maps: tuple[str, ...] = field(
        ("all",), "all, or some of rgb, depth, normals, ids, masks, lines; give it again for more"
    )
    width: int = field(512, "width", unit="px", flags=("-W",), ge=16, le=4096)
    height: int = field(512, "height", unit="px", flags=("-H",), ge=16, le=4096)
    seed: int | None = field(
        None, "seed of everything the caption leaves open; random if not given", ge=0, le=SEED_LIMIT
    )
    view: str | None = field(
        None,
        "side the camera stands on: front, front left, left, back left, back ...; the caption's if not given",
    )

    @classmethod
    def expand(cls, values: dict[str, Any]) -> dict[str, Any]:
        return expand_size(values) if "size" in values else values


REQUESTS: dict[str, type[Request]] = {cls.task: cls for cls in (GenerateRequest, WorldRequest)}
