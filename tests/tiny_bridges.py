"""Tiny bridges with seeded random weights: a language model in place of a text encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny_models
import torch
from safetensors.torch import save_file
from sfumato.pipelines.bridges import INDEX, WEIGHTS, TextAdapter


def language_model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=200,
            hidden_size=20,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            initializer_range=0.3,
        )
    )


def bridge_folder(folder: Path, width: int, *, masked: bool = False, language: Any = None) -> Path:
    """A bridge with random weights to a network that listens in `width` features."""
    torch.manual_seed(1)
    language, adapter = language or language_model(), TextAdapter(20, 12, width)
    language.save_pretrained(folder / "language_model")
    tiny_models.t5_tokenizer(32).save_pretrained(folder / "tokenizer")
    (folder / "adapter").mkdir()
    save_file(adapter.state_dict(), folder / "adapter" / WEIGHTS)
    config = {"_class_name": "TextAdapter", "in_dim": 20, "int_dim": 12, "out_dim": width}
    (folder / "adapter/config.json").write_text(json.dumps(config))
    (folder / INDEX).write_text(json.dumps({"tokens": 32, "masked": masked, "made_for": "tiny"}))
    return folder
