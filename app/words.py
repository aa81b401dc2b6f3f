"""What the prompts of a request come to, image by image: choices drawn from each image's own seed, LoRAs taken out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..pipelines.errors import BadInput
from ..pipelines.prompts import draw, take_loras
from .chosen import LoraChoice
from .faults import refuse
from .requests import SamplingRequest


class Words(NamedTuple):
    """Of one image. What is encoded, and the LoRAs that act."""

    prompt: str
    negative: str
    loras: tuple[LoraChoice, ...] = ()
    tagged: str = ""
    """The prompt with its LoRA tags, as A1111 writes it."""

    def plain(self) -> dict[str, Any]:
        """For the record."""
        return {"prompt": self.prompt, "negative": self.negative}


def words_of(request: SamplingRequest) -> tuple[Words, ...]:
    """One per image of a resolved request. Image i draws from seed + i, whatever the batch."""
    folder = wildcard_folder(request)
    first = _words(request, 0, folder)
    if not _varies(request, folder):
        return (first,) * request.count
    return (first, *(_words(request, index, folder) for index in range(1, request.count)))


def words_again(request: SamplingRequest, index: int, told: Words | None) -> tuple[Words, ...]:
    """For making image `index` again. Where its record has other words than chance gives now, because wildcards
    were edited or are gone, the record's are taken, and stand for its neighbours in the batch too.
    """
    try:
        now = words_of(request)
    except BadInput:
        if told is None:
            raise
        return (told,) * request.count
    return now if told in (None, now[index]) else (told,) * request.count


def wildcard_folder(request: SamplingRequest) -> Path | None:
    if request.wildcards is None:
        return None
    folder = Path(request.wildcards).expanduser()
    if not folder.is_dir():
        raise refuse("wildcards", request.wildcards, "is no folder; give one with a text file per wildcard")
    return folder


def words_from(record: Mapping[str, Any]) -> Words | None:
    """What a picture's record says that it was made of; None in a record from before it was written."""
    told, loras, tagged = record.get("resolved"), record.get("loras"), record.get("tagged")
    if not isinstance(told, dict) or not isinstance(loras, list) or not isinstance(tagged, str):
        return None
    prompt, negative = told.get("prompt"), told.get("negative")
    if not isinstance(prompt, str) or not isinstance(negative, str):
        return None
    try:
        chosen = tuple(LoraChoice(name=row["name"], weight=row["weight"]) for row in loras)
    except (KeyError, TypeError, ValueError):
        return None
    return Words(prompt, negative, chosen, tagged)


def _varies(request: SamplingRequest, folder: Path | None) -> bool:
    """Whether chance has a say at all."""
    texts = (request.prompt, request.negative)
    return any("{" in text or (folder is not None and "__" in text) for text in texts)


def _words(request: SamplingRequest, index: int, folder: Path | None) -> Words:
    seed = (request.seed or 0) + index
    tagged = draw(request.prompt, seed, wildcards=folder, salt="prompt")
    positive = take_loras(tagged)
    try:
        negative = take_loras(draw(request.negative, seed, wildcards=folder, salt="negative"))
    except BadInput as error:
        field = error.field if error.field != "prompt" else "negative"
        raise BadInput(field, str(error).replace("prompt: ", "negative: ", 1)) from error
    if negative.loras:
        tag = negative.loras[0].name
        raise refuse("negative", tag, "is a LoRA, which acts on the whole picture; name it in the prompt")
    loras = (*request.loras, *(LoraChoice(name=name, weight=weight) for name, weight in positive.loras))
    return Words(positive.text, negative.text, _once(loras), tagged)


def _once(loras: tuple[LoraChoice, ...]) -> tuple[LoraChoice, ...]:
    names = [lora.name for lora in loras]
    for name in names:
        if names.count(name) > 1:
            raise refuse("loras", name, "is named twice; keep one of --lora and <lora:...>")
    return loras
