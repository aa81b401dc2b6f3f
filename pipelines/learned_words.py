"""Textual inversion (arXiv:2208.01618): words that a text encoder learned, written `<cat>` in prompts.

Safetensors as A1111 writes them (`emb_params`; `clip_l` and `clip_g` for SDXL), or diffusers (one tensor, named like
the word).
The vectors stand beside the encoder, which stays as it is; `forget` leaves no trace.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from .errors import BadInput, BadWeights
from .families._common import Checkpoint, Learner
from .protocols import Model
from .weights import REMEDY, UNSAFE, read_header

MOST_VECTORS = 75
NAMELESS = ("emb_params", "clip_l", "clip_g", "string_to_param")


def learn(model: Model, file: str | Path, name: str = "") -> str:
    """The word as prompts write it. Without a name it is the file's own, or the file's."""
    learners, path = _learners(model), Path(file).expanduser()
    vectors = _read(path)
    word = _word(name or next((key for key in vectors if key not in NAMELESS), path.stem))
    if any(word in learner.learned for learner in learners):
        raise BadInput("embeddings", f"embeddings: {word} is known already; give {path.name} another name")
    found = _fitting(learners, vectors)
    if any(vector is None for vector in found):
        there = ", ".join(str(list(vector.shape)) for vector in vectors.values())
        wanted = " and ".join(str(learner.width) for learner in learners)
        raise BadWeights(
            f"{path}: made for another model; it holds {there}, this one's text is {wanted} wide"
        )
    for learner, vector in zip(learners, found, strict=True):
        if vector is not None:
            learner.learned[word] = vector
    return word


def forget(model: Model, word: str) -> None:
    for learner in _learners(model):
        if learner.learned.pop(word, None) is None:
            raise BadInput("embeddings", f"embeddings: {word!r} was not learned")


def _learners(model: Model) -> tuple[Learner, ...]:
    learners = model.learners if isinstance(model, Checkpoint) else ()
    if not learners:
        raise BadInput("embeddings", f"embeddings: {model.name} has no text encoder that can be taught words")
    return learners


def _read(path: Path) -> dict[str, Tensor]:
    """Vectors [n,D] by their name in the file."""
    from safetensors.torch import load_file

    if path.suffix in UNSAFE:
        raise BadWeights(
            f"{path}: can run code when it is opened, so it is refused; {REMEDY.format(file=path)}"
        )
    if not path.is_file():
        raise BadInput("embeddings", f"embeddings: there is no file {path}")
    header = read_header(path)
    known = len(header) == 1 or set(header) <= set(NAMELESS)
    if not known or not header or any(len(tensor.shape) not in (1, 2) for tensor in header.values()):
        raise BadWeights(f"{path}: holds {', '.join(sorted(header))[:80]}, which is no learned word")
    found = {name: tensor.float().reshape(-1, tensor.shape[-1]) for name, tensor in load_file(path).items()}
    for name, vectors in found.items():
        if not 1 <= len(vectors) <= MOST_VECTORS or not bool(torch.isfinite(vectors).all()):
            raise BadWeights(
                f"{path}: {name} has {len(vectors)} vectors; 1 to {MOST_VECTORS} finite ones are needed"
            )
    return found


def _word(name: str) -> str:
    bare = name.strip().removeprefix("<").removesuffix(">")
    if not re.fullmatch(r"[^\s<>:(){}\[\]|\\]+", bare):
        raise BadInput(
            "embeddings", f"embeddings: {name!r} is no word; give a name without spaces and brackets"
        )
    return f"<{bare}>"


def _fitting(learners: tuple[Learner, ...], vectors: dict[str, Tensor]) -> list[Tensor | None]:
    """For each encoder the vectors of its width; SDXL's two are told apart by name too."""
    named = [vectors[name] for name in ("clip_l", "clip_g") if name in vectors]
    if len(named) == len(learners) == 2:
        return [
            v if v.shape[-1] == learner.width else None for learner, v in zip(learners, named, strict=True)
        ]
    return [next((v for v in vectors.values() if v.shape[-1] == own.width), None) for own in learners]
