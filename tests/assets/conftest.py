"""What the recipes' tests share."""

from pathlib import Path

import pytest
import torch
from sfumato.assets.recipes import builtin, networks


@pytest.fixture
def toy_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder with an untrained autoencoder; models are written to `models` in it."""
    torch.manual_seed(0)
    codec = networks.vae()
    codec.register_to_config(scaling_factor=1.0, shift_factor=0.0)
    codec.save_pretrained(tmp_path / "vae")
    monkeypatch.setattr(builtin, "MODELS", tmp_path / "models")
    return tmp_path
