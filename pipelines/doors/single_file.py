"""A single file opened as if it were a folder in diffusers layout.

For the time of opening there is a temporary folder with configs and tokenizers only; weights come straight out of
the file, or out of the `parts` folder for what the file does not hold. Nothing is written twice, nothing is fetched.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..card import CARD
from ..errors import BadInput, BadWeights
from ..families._parts import SUPPLIES, Supply
from ..weights import JSON_LIMIT, UNSAFE, read_header, read_json, read_metadata, refused, weight_files
from .architectures import Architecture, PartFacts, architecture, known
from .gguf_header import read_gguf
from .recognise import Header, Identity, identify, prefix_of
from .scaled import scaled_layers
from .supplies import FileSupply, FolderSupply, GgufSupply, check_gguf_package

INDEX = "model_index.json"
ENDINGS = (".safetensors", ".gguf")
PULL = "`sfumato models pull OWNER/NAME --no-weights` gets one"


def check_ending(file: Path) -> None:
    """Refuse what is no weights file, and what can run code."""
    if file.suffix.lower() in UNSAFE:
        raise refused(file)
    if file.suffix.lower() not in ENDINGS:
        raise BadInput(
            "model", f"{file} is no model; give a folder in diffusers layout, a .safetensors or a .gguf file"
        )


@contextmanager
def as_folder(file: Path, parts: Path | None) -> Iterator[Path]:
    """A folder that stands for the file while it is being opened; errors name the file."""
    check_ending(file)
    header = read_gguf(file).tensors if file.suffix.lower() == ".gguf" else read_header(file)
    identity = identify(header)
    facts = _known(file, identity)
    if parts is None:
        raise BadInput(
            "parts",
            f"{file} holds no tokenizer; give --parts FOLDER, a diffusers folder of its family ({facts.id}): {PULL}",
        )
    index = _parts_index(file, facts, parts)
    with tempfile.TemporaryDirectory(prefix="sfumato-") as home:
        folder = Path(home, file.stem.strip(".") or "model")
        folder.mkdir()
        token = SUPPLIES.set(_Layout(file, header, identity, facts, parts, index).write(folder))
        try:
            yield folder
        except BadInput as error:
            raise BadInput(error.field, str(error).replace(str(folder), str(file))) from error
        except BadWeights as error:
            raise BadWeights(str(error).replace(str(folder), str(file))) from error
        finally:
            SUPPLIES.reset(token)


def _known(file: Path, identity: Identity) -> Architecture:
    if identity.role not in ("checkpoint", "network"):
        made = f" for {identity.architecture}" if identity.architecture else ""
        what = "nothing that is known here" if identity.role == "unknown" else f"a {identity.role}{made}"
        raise BadInput(
            "model", f"{file} holds {what}, not a model; give a checkpoint or a folder in diffusers layout"
        )
    if identity.architecture not in known():
        raise BadInput(
            "model",
            f"{file} is a {identity.architecture} network; single files open for {', '.join(known())}, "
            "so give its folder in diffusers layout",
        )
    if identity.scaled and not scaled_layers(file):
        raise BadWeights(
            f"{file}: quantised with scales beside the weights, and does not say how; "
            "ComfyUI's own layout, plain fp8, bf16, fp16 or GGUF opens"
        )
    return architecture(identity.architecture)


def _parts_index(file: Path, facts: Architecture, parts: Path) -> dict[str, Any]:
    """The parts folder's model_index.json, which must be of the same architecture."""
    index = read_json(parts / INDEX)
    allowed = {*facts.pipelines.values(), *facts.also}
    if str(index.get("_class_name")) not in allowed:
        raise BadInput(
            "parts",
            f"{parts} is a {str(index.get('_class_name'))[:60]}, {file.name} is {facts.id}; "
            f"--parts must be one of {', '.join(sorted(allowed))}",
        )
    return index


@dataclass(frozen=True)
class _Layout:
    """Writes the configs of one file's folder, and says where each network's weights are."""

    file: Path
    header: Header
    identity: Identity
    facts: Architecture
    parts: Path
    index: Mapping[str, Any]

    def write(self, folder: Path) -> dict[Path, Supply]:
        index: dict[str, Any] = {"_class_name": self._pipeline(), **self._settings()}
        supplies: dict[Path, Supply] = {}
        for name, part in self.facts.parts.items():
            home = folder / name
            if part.optional and self._left_out(name, part):
                index[name] = [None, None]
                continue
            index[name] = self._class(name, part)
            if part.is_tokenizer:
                self._copy_tokenizer(name, home)
            elif part.is_network:
                supplies[home] = self._supply(name, part, home)
            else:
                _write(home / "scheduler_config.json", self._scheduler(name, part))
        _write(folder / INDEX, index)
        self._write_card(folder)
        return supplies

    def _pipeline(self) -> str:
        """By the channels that go in; else as the parts folder says, if its network is the same (Kontext)."""
        own = self.facts.pipelines.get(str(self.identity.channels)) or next(
            iter(self.facts.pipelines.values())
        )
        usual = next(iter(self.facts.pipelines.values()))
        same = self._given(self.facts.network) is not None and not self._changes()
        return str(self.index["_class_name"]) if own == usual and same else own

    def _settings(self) -> dict[str, Any]:
        given = {name: self.index.get(name) for name in self.facts.settings}
        return {k: given[k] if isinstance(given[k], bool) else v for k, v in self.facts.settings.items()}

    def _class(self, name: str, part: PartFacts) -> list[str]:
        given = self.index.get(name)
        if isinstance(given, list) and len(given) == 2 and all(isinstance(text, str) for text in given):
            return given
        return [part.library, part.kind]

    def _left_out(self, name: str, part: PartFacts) -> bool:
        held = part.is_network and prefix_of(self.header, part.at) is not None
        return not held and self.index.get(name) in (None, [None, None])

    def _changes(self) -> dict[str, Any]:
        """Where the header contradicts the parts folder's network config."""
        config = self._given(self.facts.network)
        return {} if config is None else {k: v for k, v in self._told().items() if config.get(k) != v}

    def _told(self) -> dict[str, Any]:
        """What the header says of the network's config."""
        told: dict[str, Any] = {}
        if self.identity.channels is not None:
            told["in_channels"] = self.identity.channels
        if self.facts.id.startswith("flux"):
            told["guidance_embeds"] = self.facts.id == "flux-dev"
        return told

    def _given(self, name: str) -> dict[str, Any] | None:
        file = self.parts / name / "config.json"
        return read_json(file) if file.is_file() else None

    def _config(self, name: str, part: PartFacts) -> dict[str, Any]:
        config = self._given(name) or dict(part.config or {})
        if name == self.facts.network:
            config["out_channels"] = config.get("out_channels") or config.get("in_channels")
            config |= self._told()
        return config

    def _scheduler(self, name: str, part: PartFacts) -> dict[str, Any]:
        """The parts folder's, unless that belongs to a network of another kind; then the usual one."""
        file = self.parts / name / "scheduler_config.json"
        config = dict(part.config or {})
        if file.is_file() and "guidance_embeds" not in self._changes():
            config = read_json(file)
        if "v_pred" in self.header:
            config |= {"prediction_type": "v_prediction", "rescale_betas_zero_snr": "ztsnr" in self.header}
        return config

    def _supply(self, name: str, part: PartFacts, home: Path) -> Supply:
        config = self._config(name, part)
        _write(home / "config.json", config)
        held = prefix_of(self.header, self._prefixes(part))
        if held is None:
            return self._from_parts(name)
        naming = self.identity.naming if name == self.facts.network else "original"
        naming = part.naming if naming == "original" else naming
        if self.file.suffix.lower() != ".gguf":
            return FileSupply(self.file, home, held, naming, config)
        if name != "transformer":
            raise BadInput(
                "model", f"{self.file}: GGUF opens for the transformers of FLUX and SD 3; give safetensors"
            )
        check_gguf_package(self.file)
        return GgufSupply(self.file, home, held, naming, config)

    def _prefixes(self, part: PartFacts) -> tuple[str, ...]:
        """Names without a prefix are the network's, in a file that holds nothing else."""
        return part.at if self.identity.role == "network" else tuple(filter(None, part.at))

    def _from_parts(self, name: str) -> FolderSupply:
        home = self.parts / name
        try:
            return FolderSupply(home, weight_files(home).files)
        except BadWeights as error:
            raise BadInput(
                "parts",
                f"{self.file} holds no {name}, and neither does {self.parts} ({error}); give --parts with one",
            ) from error

    def _copy_tokenizer(self, name: str, home: Path) -> None:
        source = self.parts / name
        if not source.is_dir():
            raise BadInput(
                "parts", f"{self.parts} holds no {name}; give a folder of {self.facts.id} that does: {PULL}"
            )
        home.mkdir()
        for file in sorted(source.iterdir()):
            if file.is_file() and file.suffix in (".json", ".txt", ".model", ".jinja"):
                if file.stat().st_size > JSON_LIMIT:
                    raise BadWeights(f"{file}: {file.stat().st_size} bytes are too many for a tokenizer")
                shutil.copyfile(file, home / file.name)

    def _write_card(self, folder: Path) -> None:
        if self.file.suffix.lower() != ".safetensors":
            return
        licence = read_metadata(self.file).get("modelspec.license", "")
        if licence:
            _write(folder / CARD, {"licence": licence[:500]})


def _write(file: Path, value: Mapping[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")
