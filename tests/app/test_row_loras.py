"""Images of one batch under LoRAs of their own: the pictures that they are alone, in fewer network calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import save_file
from sfumato.app.replay import read_record
from sfumato.pipelines.families._denoiser import NetDenoiser

SHAPES = {"to_q": (16, 16), "to_v": (16, 16)}
WHERE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
COUNT = 6


def write(folder: Path, name: str, seed: int, prefix: str = f"unet.{WHERE}") -> None:
    rng, state = torch.Generator().manual_seed(seed), {}
    for layer, (out, into) in SHAPES.items():
        state[f"{prefix}.{layer}.lora_A.weight"] = torch.randn(4, into, generator=rng)
        state[f"{prefix}.{layer}.lora_B.weight"] = torch.randn(out, 4, generator=rng)
    folder.mkdir(exist_ok=True)
    save_file(state, folder / f"{name}.safetensors")


@contextmanager
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The batch of each evaluation."""
    seen: list[int] = []
    own = NetDenoiser.__call__

    def counting(self: NetDenoiser, x: torch.Tensor, t: float, *conds: Any) -> Any:
        seen.append(len(x))
        return own(self, x, t, *conds)

    with monkeypatch.context() as patch:
        patch.setattr(NetDenoiser, "__call__", counting)
        yield seen


def far(a: str, b: str) -> int:
    both = ImageChops.difference(Image.open(a).convert("RGB"), Image.open(b).convert("RGB"))
    return max(high for _, high in both.getextrema())


def test_a_batch_of_different_loras(
    generate: Any, sfumato: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(("ink", "oil")):
        write(tmp_path / "loras", name, seed)
    ask = ("-p", "a {<lora:ink>|<lora:oil:0.5>|red} cube", "--count", str(COUNT), "--seed", "1")
    with calls(monkeypatch) as seen:
        said = generate(*ask, "--batch", str(COUNT), "-o", "many.png")
    assert said.code == 0, said.err
    assert seen == [COUNT, COUNT], "two steps, all images in each"
    assert generate(*ask, "-o", "one.png").code == 0
    assert generate(*("-p", "a red cube", *ask[2:]), "-o", "bare.png").code == 0
    for index in range(COUNT):
        assert far(f"many-{index:04d}.png", f"one-{index:04d}.png") <= 1
    acted = [read_record(Path(f"many-{index:04d}.png")) for index in range(COUNT)]
    names = {row["name"] for found in acted for row in found["loras"]}
    assert names == {"ink", "oil"}
    bare = [not found["loras"] for found in acted]
    assert any(bare), "seeds for which no LoRA acts are in it"
    for index, without in enumerate(bare):
        assert (far(f"many-{index:04d}.png", f"bare-{index:04d}.png") <= 1) == without
    assert sfumato("replay", "many-0003.png", "--check").code == 0
