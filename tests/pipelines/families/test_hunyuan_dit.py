"""HunyuanDiT against diffusers."""

from pathlib import Path
from typing import Any

import pytest
import tiny_families
from agreement import PROMPT, SIZES, Case, agree, every_technique, hears, opened
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.text_to_image import TextToImage

CASE = Case(ask={"use_resolution_binning": False})
BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.03,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}


@pytest.fixture(scope="module", params=[True, False], ids=["1.1", "1.2"])
def pair(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return opened(tiny_families.hunyuan_dit(tmp_path_factory.mktemp("hunyuan_dit"), scheduler, request.param))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_is_diffusers(pair: tuple[Any, Any], scale: float, count: int, size: tuple[int, int]) -> None:
    agree(*pair, scale, count, size, CASE)


def test_prompt_matters(pair: tuple[Any, Any]) -> None:
    hears(pair[0])


def test_published_scheduler(tmp_path: Path) -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(**BETAS, clip_sample=False, steps_offset=1)
    model = open_model(tiny_families.hunyuan_dit(tmp_path, scheduler, True))
    path = model.denoise.path
    times = model.default_schedule(64, 64)(10, path)
    scheduler.set_timesteps(10)
    assert [round(t * 1000 - 1) for t in times[:-1]] == scheduler.timesteps.tolist()
    assert path.alpha(0.5) ** 2 == pytest.approx(float(scheduler.alphas_cumprod[499]), rel=1e-5)
    made = TextToImage(model)(PROMPT, width=64, height=64, steps=3, seed=7)
    assert bool(made.latents.isfinite().all())


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0])
