"""Checkpoints with random weights in the architecture of published models, for what only size shows."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path

import torch
from sfumato.pipelines.doors.architectures import architecture
from sfumato.pipelines.loading import builtin_folder


def build(folder: Path, id: str, dtype: torch.dtype) -> None:
    """A diffusers folder of a known architecture, with the built-in model's tokenizers."""
    noise, known = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02, architecture(id)
    noise = noise.to(dtype)
    index: dict[str, object] = {"_class_name": known.also[0], **known.settings}
    for name, facts in known.parts.items():
        index[name], home = [facts.library, facts.kind], folder / name
        if facts.config is None:
            shutil.copytree(builtin_folder("still-life") / "tokenizer", home)
            continue
        home.mkdir(parents=True)
        if not facts.is_network:
            (home / "scheduler_config.json").write_text(json.dumps(facts.config))
            continue
        kind = getattr(import_module(facts.library), facts.kind)
        with torch.device("meta"):
            of_diffusers = facts.library == "diffusers"
            blank = (
                kind.from_config(facts.config) if of_diffusers else kind(kind.config_class(**facts.config))
            )
        net = blank.to(dtype).to_empty(device="cpu")
        for weight in (*net.parameters(), *net.buffers()):
            if weight.is_floating_point():
                weight.data.view(-1).copy_(noise.repeat(-(-weight.numel() // len(noise)))[: weight.numel()])
        net.save_pretrained(home, max_shard_size="100GB")
    (folder / "model_index.json").write_text(json.dumps(index))
