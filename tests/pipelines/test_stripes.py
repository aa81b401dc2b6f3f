"""Autoencoders in stripes and tiles, against the whole pass."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from diffusers import AutoencoderKL
from sfumato.pipelines.converts.winograd import Winograd
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.stripes import statistics, stripe
from sfumato.pipelines.tiles import Tiled, coded


def vae(last: bool = True) -> Any:
    """The layers of Stable Diffusion's, narrow."""
    torch.manual_seed(0)
    net = AutoencoderKL(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        norm_num_groups=8,
        latent_channels=4,
    ).eval()
    for name, weight in net.named_parameters():  # norms that do something
        if "norm" in name:
            weight.data.add_(0.3 * torch.randn_like(weight))
    net.requires_grad_(False)
    return net.to(memory_format=torch.channels_last) if last else net


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("size", [1, 3000])
@pytest.mark.parametrize("shape", [(1, 4, 12, 10), (2, 4, 9, 13)])
def test_the_same_picture(last: bool, size: int, shape: tuple[int, ...]) -> None:
    net, z = vae(last), torch.randn(shape, generator=torch.Generator().manual_seed(2))
    images = torch.randn(shape[0], 3, 4 * shape[2], 4 * shape[3], generator=torch.Generator().manual_seed(3))
    picture, latents = net.decode(z).sample, net.encode(images).latent_dist.mean
    undo = stripe(net, size)
    ours, coded_images = net.decode(z).sample, net.encode(images).latent_dist.mean
    # in float32, sums in another order: six digits
    assert (ours - picture).abs().max() < 3e-6 * picture.abs().max()
    assert (coded_images - latents).abs().max() < 3e-6 * latents.abs().max()
    assert not torch.equal(ours, picture)
    undo()
    assert torch.equal(net.decode(z).sample, picture)
    assert not any("forward" in vars(module) for module in net.modules())


def test_one_stripe_is_the_whole_to_the_bit() -> None:
    net, z = vae(), torch.randn(1, 4, 8, 8)
    picture = net.decode(z).sample
    stripe(net, 1 << 30)
    assert torch.equal(net.decode(z).sample, picture)
    with pytest.raises(ValueError, match="size must be 1 byte or more, got 0"):
        stripe(net, 0)


def test_statistics_are_those_of_the_whole() -> None:
    norm = torch.nn.GroupNorm(4, 8, eps=1e-6)
    norm.weight.data.normal_()
    x = 100 + torch.randn(2, 8, 30, 5)
    found = statistics(norm, iter(x.split([1, 20, 9], dim=2)))
    assert torch.allclose(found(x), norm(x), atol=2e-5)  # 100 is far from 0: rounding of the mean


@pytest.mark.parametrize("first", [True, False])
def test_blocks_by_tiles_go_whole(first: bool) -> None:
    net, z = vae(), torch.randn(1, 4, 12, 10)
    picture = net.decode(z).sample
    if first:
        stripe(net, 1)
    Winograd(8)(net)
    if not first:
        stripe(net, 1)
    assert (net.decode(z).sample - picture).abs().max() < 3e-5 * picture.abs().max()


@pytest.mark.parametrize("way", ["stripes", "tiles"])
def test_a_model(way: str, tmp_path: Path) -> None:
    model = open_model(tiny_models.stable_diffusion(tmp_path / "sd"))
    z = torch.randn(1, 4, 8, 8)
    whole = model.decode(z)
    assert torch.equal(coded(model, way).decode(z), whole)
    for wrong, said in (("slices", "way must be one of"), ("tiles", "has no autoencoder")):
        with pytest.raises(ValueError, match=said):
            coded(model if wrong == "slices" else object(), wrong)  # type: ignore[arg-type]


class Doubling:
    """Twice the picture, each cell as 2 x 2."""

    vae, factor, channels = None, 2, 1

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self.largest = max(latents.shape[-2:])
        return 2 * latents.repeat_interleave(2, -1).repeat_interleave(2, -2)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images[..., ::2, ::2] / 2


@pytest.mark.parametrize("shape", [(1, 1, 9, 21), (1, 1, 3, 40, 8), (2, 1, 30, 30)])
def test_tiles_have_no_seam(shape: tuple[int, ...]) -> None:
    coder, z = Doubling(), torch.randn(shape)
    tiled = Tiled(coder, 8, 3)
    picture = tiled.decode(z)
    assert coder.largest <= 8
    assert (picture - Doubling().decode(z)).abs().max() < 1e-5
    assert (tiled.encode(picture) - z).abs().max() < 1e-5


def test_tiles_bad() -> None:
    for tile, overlap in ((0, 0), (8, 8), (8, -1)):
        with pytest.raises(ValueError, match="tile must be 1 or more"):
            Tiled(Doubling(), tile, overlap)  # type: ignore[arg-type]


def test_spans() -> None:
    assert Tiled(Doubling(), 8, 3).spans(8) == [(0, 8)]  # type: ignore[arg-type]
    for length in range(9, 60):
        spans = Tiled(Doubling(), 8, 3).spans(length)  # type: ignore[arg-type]
        assert spans[0][0] == 0 and spans[-1][1] == length
        assert all(b - a == 8 for a, b in spans)
        assert all(c <= b - 3 for (_, b), (c, _) in pairwise(spans))
