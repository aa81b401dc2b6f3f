"""The UNet's recipe: holes, and one training at a toy size."""

import shutil
from pathlib import Path

import pytest
import torch
from sfumato.assets.recipes import builtin, networks, unet
from sfumato.assets.recipes.pool import crowded


def test_holes_hide_the_picture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    codec, data = networks.vae().eval(), crowded(tmp_path, 3)
    codec.register_to_config(scaling_factor=1.0, shift_factor=0.0)
    made = unet.holes(tmp_path, codec, data)
    assert made.masks.shape == (3, 1, 16, 16)
    assert made.latents.shape == (3, 16, 16, 16)
    for i in range(3):
        mask = unet.hole(i, 128)
        assert 0.01 < float(mask.mean()) < 0.8
        picture = torch.where(mask > 0, 0.5, data.batch(torch.tensor([i])))
        z = codec.encode(picture * 2 - 1).latent_dist.mean
        torch.testing.assert_close(made.latents[i].float(), z[0], atol=2e-2, rtol=1e-2)


def test_a_toy_unet_draws_and_inpaints(toy_work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unet, "BATCH", 2)
    folder = builtin.train("still-life-unet", minutes=0.01, work=toy_work, scenes=16)
    from sfumato.pipelines.loading import open_model
    from sfumato.pipelines.text_to_image import TextToImage

    model = open_model(folder)
    pictures = {"image": torch.rand(1, 3, 128, 128), "mask": torch.ones(1, 1, 128, 128)}
    for make in (TextToImage(model), TextToImage(model, pictures=pictures)):
        assert make("a red cube", steps=1).pixels.shape == (1, 3, 128, 128)
    shutil.copytree(folder, toy_work / "models" / "still-life")  # any generator with an autoencoder will do
    begun = builtin.train("still-life-unet", minutes=0.01, work=toy_work / "more", scenes=16)
    assert (begun / "unet").is_dir()
