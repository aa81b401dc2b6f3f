"""Models of the Hugging Face Hub: `owner/name` or `owner/name@revision`.

Opening looks into the Hub's cache on this machine and never connects. `pull` downloads, and says which commit it got.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import BadInput, BadWeights

INDEX = "model_index.json"
ID = re.compile(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)(?:@([A-Za-z0-9][\w./-]*))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
PLAIN = (".json", ".txt", ".model", ".jinja")
"""Configs and tokenizers; data, not code."""
WEIGHTS = ".safetensors"


class Reference(NamedTuple):
    repository: str
    revision: str | None


class Pulled(NamedTuple):
    """What was downloaded: the commit and its folder in the Hub's cache."""

    repository: str
    commit: str
    folder: Path
    files: int
    bytes: int


def parse(text: str) -> Reference | None:
    """`owner/name[@revision]`, or None for anything else."""
    found = ID.fullmatch(text)
    if found is None or ".." in text or "--" in text or len(text) > 250:
        return None
    return Reference(f"{found[1]}/{found[2]}", found[3])


def is_id(text: str) -> bool:
    return parse(text) is not None


def pulled(text: str) -> Path | None:
    """The folder of a model that is in the Hub's cache. Nothing is fetched."""
    reference = parse(text)
    if reference is None:
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(
            reference.repository,
            revision=reference.revision,
            local_files_only=True,
            allow_patterns=[INDEX],  # a pull leaves files out on purpose; opening says what is missing
        )
    except LocalEntryNotFoundError:
        return None
    folder = Path(found).resolve()
    if not COMMIT.fullmatch(folder.name) or folder.parent.name != "snapshots":
        raise BadWeights(
            f"{found}: the Hub's cache is damaged; delete it and pull {reference.repository} again"
        )
    if not (folder / INDEX).is_file():
        raise BadInput(
            "model",
            f"{text} was pulled without {INDEX}; it is no folder in diffusers layout, name one of its files",
        )
    return folder


def all_pulled() -> list[str]:
    """The models in diffusers layout that are in the Hub's cache, as `owner/name@commit`."""
    from huggingface_hub import constants

    found = []
    for index in sorted(Path(constants.HF_HUB_CACHE).glob(f"models--*--*/snapshots/*/{INDEX}")):
        repository = index.parents[2].name.removeprefix("models--").replace("--", "/")
        if index.is_file() and is_id(repository) and COMMIT.fullmatch(index.parent.name):
            found.append(f"{repository}@{index.parent.name}")
    return found


def pull(
    text: str, *, weights: bool = True, variant: str | None = None, endpoint: str | None = None
) -> Pulled:
    """Download a model: safetensors, configs and tokenizers, and nothing that can run code."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    reference = parse(text)
    if reference is None:
        raise BadInput("model", f"{text!r} is no model of the Hub; write owner/name or owner/name@revision")
    api = HfApi(endpoint=endpoint)
    try:
        about = api.model_info(reference.repository, revision=reference.revision, files_metadata=True)
        sizes = {file.rfilename: int(file.size or 0) for file in about.siblings or []}
        chosen = choose(sizes, weights=weights, variant=variant)
        if not chosen:
            raise BadInput("model", f"{text} holds no safetensors and no configs; only these are downloaded")
        folder = snapshot_download(
            reference.repository, revision=reference.revision, allow_patterns=chosen, endpoint=endpoint
        )
    except (HTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            "model", f"{text} can't be downloaded ({reason}); check the name, the network and the login"
        ) from error
    size = sum(sizes[name] for name in chosen)
    return Pulled(reference.repository, Path(folder).name, Path(folder), len(chosen), size)


def choose(files: Iterable[str], *, weights: bool = True, variant: str | None = None) -> list[str]:
    """The files of the diffusers layout; one variant of the weights, the plain one if there is one."""
    names = sorted(files)
    plain = [n for n in names if n.endswith(PLAIN) and not n.startswith(".")]
    tensors = [n for n in names if n.endswith(WEIGHTS) and not n.startswith(".")] if weights else []
    if INDEX in names:
        tensors = [n for n in tensors if "/" in n]  # single files at the top hold the same weights again
    homes: dict[str, list[str]] = {}
    for name in tensors:
        homes.setdefault(name.rpartition("/")[0], []).append(name)
    return plain + [name for group in homes.values() for name in _one_variant(group, variant)]


def _one_variant(group: list[str], variant: str | None) -> list[str]:
    """The files of a part in one precision: `model.fp16.safetensors` is the variant fp16 of `model.safetensors`."""
    marked = {name: _variant(name) for name in group}
    for wanted in (variant, None):
        if found := [name for name in group if marked[name] == wanted]:
            return found
    return group


def _variant(name: str) -> str | None:
    """`fp16` of model.fp16.safetensors and model.fp16-00001-of-00002.safetensors."""
    words = name.rpartition("/")[2].split(".")
    middle = re.sub(r"-\d+-of-\d+$", "", words[1]) if len(words) > 2 else ""
    return middle or None
