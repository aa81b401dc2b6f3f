"""Stable Diffusion 2's layout, and what the defaults say of distilled networks. 1.x is in test_families."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import SIZES, STEPS, Case, agree, every_technique, hears, opened
from sfumato.pipelines.errors import BadWeights
from sfumato.pipelines.families._schedules import Skipping
from sfumato.pipelines.families._unets import few_steps
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.paths import vp_from_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head count per block, linear projections, v, and a text encoder with one config more than it has layers."""
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    config = tiny_models.clip_text(24, 77).config
    config.hidden_act, config.projection_dim, config.num_hidden_layers = "gelu", 16, 3
    return tiny_models.stable_diffusion(
        tmp_path_factory.mktemp("sd2"),
        prediction="v_prediction",
        gain=4,
        unet={"attention_head_dim": [2, 4], "use_linear_projection": True, "upcast_attention": True},
        replaced={"text_encoder": CLIPTextModel(config)},
    )


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Any, Any]:
    return opened(folder)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_sd2_is_diffusers(pair: tuple[Any, Any], scale: float, count: int, size: tuple[int, int]) -> None:
    agree(*pair, scale, count, size, Case())


def test_it_hears_the_prompt(pair: tuple[Any, Any]) -> None:
    hears(pair[0], 0.01, STEPS)


def edit(folder: Path, file: str, **fields: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_other_names_and_schedulers(tmp_path: Path) -> None:
    folder = tiny_models.stable_diffusion(tmp_path)
    edit(folder, "model_index.json", _class_name="StableDiffusionImg2ImgPipeline")
    assert open_model(folder).defaults == (64, 64, 30, 7.5, "dpmpp-2m", "uniform")
    scheduler = "scheduler/scheduler_config.json"
    edit(folder, scheduler, _class_name="EulerDiscreteScheduler", timestep_spacing="trailing")
    assert open_model(folder).defaults == (64, 64, 4, 1.0, "ddim", "uniform")
    for name in ("EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"):
        edit(folder, scheduler, _class_name=name)
        with pytest.raises(BadWeights, match=name):
            open_model(folder)
    edit(folder, scheduler, _class_name="LCMScheduler", original_inference_steps=0)
    with pytest.raises(BadWeights, match="original_inference_steps = 0"):
        open_model(folder)


@pytest.mark.parametrize(
    ("name", "more", "sampler"),
    [
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, None),
        ("EulerAncestralDiscreteScheduler", {}, None),
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, "euler-ancestral"),
        ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, "ddim"),
        ("EulerDiscreteScheduler", {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}, None),
        ("DDIMScheduler", {"timestep_spacing": "trailing"}, None),
        ("LCMScheduler", {}, "lcm"),
        ("TCDScheduler", {}, "tcd"),
    ],
)
def test_what_is_taken_for_distilled(name: str, more: dict, sampler: str | None) -> None:
    assert few_steps({"_class_name": name, **more}) == sampler


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 7, 8, 50])
def test_skipping_is_the_lcm_schedulers(steps: int) -> None:
    from diffusers import LCMScheduler

    scheduler = LCMScheduler()
    scheduler.set_timesteps(steps)
    ts = Skipping(50)(steps, vp_from_config(scheduler.config))
    assert [round(t * 1000) - 1 for t in ts[:-1]] == scheduler.timesteps.tolist()
    with pytest.raises(ValueError, match=r"steps must be in 1\.\.50"):
        Skipping(50)(51, vp_from_config(scheduler.config))


def test_extra_channels_name_the_pipeline_that_fits(tmp_path: Path) -> None:
    folder = tiny_models.stable_diffusion(tmp_path, unet={"in_channels": 9})
    with pytest.raises(BadWeights, match=r"takes 9 channels .* StableDiffusionInpaintPipeline"):
        open_model(folder)


def test_every_technique_runs(pair: Any) -> None:
    every_technique(pair[0])
