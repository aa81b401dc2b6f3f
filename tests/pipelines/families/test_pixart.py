"""PixArt against diffusers."""

from typing import Any

import pytest
import tiny_models
from agreement import SIZES, Case, agree, every_technique, opened

CASE = Case(ask={"use_resolution_binning": False, "clean_caption": False})


@pytest.fixture(scope="module", params=["PixArtSigmaPipeline", "PixArtAlphaPipeline"])
def pair(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return opened(tiny_models.pixart(tmp_path_factory.mktemp("pixart"), request.param))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_is_diffusers(pair: tuple[Any, Any], scale: float, count: int, size: tuple[int, int]) -> None:
    agree(*pair, scale, count, size, CASE)


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0])
