"""Attention in 8 bits inside networks: which layers it takes, how near it stays, that it leaves no trace."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import relative
from patched import traceless
from sfumato.kernels.attention import int8
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.patches import int8_attention
from sfumato.pipelines.patches.int8_attention import Int8Attention
from sfumato.pipelines.text_to_image import TextToImage

pytestmark = pytest.mark.skipif(int8.available() is not None, reason=str(int8.available()))
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "sd": tiny_models.stable_diffusion,
    "flux": tiny_models.flux,
    "pixart": lambda folder: tiny_models.pixart(folder, "PixArtSigmaPipeline"),
}


def latents(model: Any, *patches: Any, count: int = 1, seed: int = 7) -> torch.Tensor:
    make = TextToImage(model, guidance=Cfg(2.0), patches=patches)
    return make("a red cube", width=64, height=64, steps=2, seed=seed, count=count).latents


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(FAMILIES[name](tmp_path / name))
    plain, seen = latents(model), []

    def watched(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
        seen.append(k.shape[2])
        return int8.attend(q, k, v, scale)

    monkeypatch.setattr(int8_attention, "attend", watched)
    with traceless(model.denoise.net):
        assert torch.equal(latents(model, Int8Attention(10**6)), plain) and not seen
        ours = latents(model, Int8Attention(16))
        assert seen and min(seen) >= 16
        assert 0 < relative(ours, plain) < 0.02
        assert torch.equal(latents(model, Int8Attention(16)), ours)
        two = latents(model, Int8Attention(16), count=2)
        assert relative(two[1:], latents(model, Int8Attention(16), seed=8)) < 1e-4
    assert torch.equal(latents(model), plain)


def test_masks_are_heard(tmp_path: Path) -> None:
    """Prompts of PixArt are masked: their layers are computed as before."""
    model = open_model(FAMILIES["pixart"](tmp_path / "pixart"))
    short = TextToImage(model, guidance=Cfg(1.0), patches=(Int8Attention(1),))
    plain = TextToImage(model, guidance=Cfg(1.0))
    ours, wanted = (make("a", width=64, height=64, steps=1, seed=7).latents for make in (short, plain))
    assert relative(ours, wanted) < 0.02


def test_refused() -> None:
    with pytest.raises(ValueError, match="1 or more, got 0"):
        Int8Attention(0)
    with pytest.raises(ValueError, match="has no site 'attention'"), Int8Attention()(torch.nn.Linear(2, 2)):
        pass
