"""The built-in models: they open in plain diffusers, draw what they are asked, and stay small."""

import math
from pathlib import Path

import diffusers
import pytest
import torch
from sfumato.assets.recipes.measure import bars
from sfumato.assets.recipes.pool import Pool
from sfumato.assets.recipes.vae import psnr
from sfumato.assets.still_life.grammar import caption
from sfumato.assets.still_life.judge import read, related
from sfumato.assets.still_life.render import render
from sfumato.assets.still_life.sampling import sample_scene
from sfumato.pipelines.bridges import open_bridge, with_bridge
from sfumato.pipelines.from_image import FromImage
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import MODELS, builtin_folder, builtin_names, open_model
from sfumato.pipelines.text_to_image import TextToImage

PROMPT, SEED = "a red sphere on top of a blue cube, in snow", 8
GENERATORS = sorted({"still-life", "still-life-unet"} & set(builtin_names()))
FLOORS = {
    "still-life": {"color": 0.84, "shape": 0.72, "setting": 0.98, "relation": 0.5, "all": 0.5},
    "still-life-unet": {"color": 0.9, "shape": 0.79, "setting": 0.98, "relation": 0.44, "all": 0.52},
}
"""What the shipped weights reach, a little below; docs/models.md has the measured shares and what they should be."""


def latents(count: int = 1) -> torch.Tensor:
    return torch.randn(count, 16, 16, 16, generator=torch.Generator().manual_seed(7))


def test_the_default_model_is_there() -> None:
    assert "still-life" in GENERATORS


@pytest.mark.parametrize("name", GENERATORS)
def test_plain_diffusers_opens_the_folder_and_draws_the_same(name: str) -> None:
    folder, x = builtin_folder(name), latents()
    ours = TextToImage(open_model(name), guidance=Cfg(1.0))(PROMPT, seed=7, steps=4).pixels
    if name == "still-life":
        pipe = diffusers.FluxPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        x = pipe._pack_latents(x, 1, 16, 16, 16)
        theirs = pipe(
            PROMPT,
            width=128,
            height=128,
            num_inference_steps=4,
            latents=x,
            max_sequence_length=48,
            output_type="pt",
        ).images
    else:
        theirs = by_hand(folder, x)
    assert (ours - theirs).abs().max() <= 1.01 / 255


@torch.no_grad()
def by_hand(folder: Path, x: torch.Tensor) -> torch.Tensor:
    """The parts as diffusers opens them, in its own steps: its pipeline runs networks of 4 and 9 channels alone."""
    pipe = diffusers.StableDiffusionInpaintPipeline.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(4)
    text, _ = pipe.encode_prompt(PROMPT, "cpu", 1, do_classifier_free_guidance=False)
    grey = pipe.vae.encode(torch.zeros(1, 3, 128, 128)).latent_dist.mean
    grey = (grey - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    beside = torch.cat([torch.ones(1, 1, 16, 16), grey], 1)
    for t in scheduler.timesteps:
        eps = pipe.unet(torch.cat([x, beside], 1), t, text).sample
        x = scheduler.step(eps, t, x).prev_sample
    pixels = pipe.vae.decode(x / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor).sample
    return (pixels / 2 + 0.5).clamp(0, 1)


def test_the_demo_prompt_is_drawn_as_asked() -> None:
    """At the demo's seed and at its neighbours: no seed was picked."""
    for reading in read(TextToImage(open_model("still-life"))(PROMPT, seed=SEED, count=8).pixels):
        assert reading is not None
        things = {(thing.shape, thing.color): thing for thing in reading.things}
        assert set(things) == {("sphere", "red"), ("cube", "blue")}
        assert related(things["sphere", "red"], "on top of", things["cube", "blue"])
        assert reading.setting == "snow"


def test_single_things_are_drawn_as_asked() -> None:
    make = TextToImage(open_model("still-life"))
    for text, wanted in {"a large green cube, in snow": ("cube", "green", "snow"),
                         "a shiny yellow torus, at sea": ("torus", "yellow", "sea")}.items():  # fmt: skip
        found = [
            r is not None
            and {(t.shape, t.color) for t in r.things} == {wanted[:2]}
            and r.setting == wanted[2]
            for r in read(make(text, seed=0, count=8).pixels)
        ]
        assert sum(found) >= 7, text


@pytest.mark.parametrize("name", sorted(FLOORS))
def test_held_out_captions_reach_the_floors(name: str) -> None:
    make = TextToImage(open_model(name))
    shares = bars(lambda texts, seeds: make(texts, seed=seeds[0]).pixels, count=40)
    for word, floor in FLOORS[name].items():
        slack = 2 * math.sqrt(floor * (1 - floor) / 40)  # two standard errors of 40 pictures
        assert shares[word] >= floor - slack, f"{word}: {shares}"


@pytest.mark.skipif("still-life-unet" not in GENERATORS, reason="it is not shipped")
def test_the_unet_puts_back_what_a_hole_hides() -> None:
    """Under the scene's caption; what lies outside the hole is kept bit for bit."""
    known = (sample_scene(7_000_000 + i, split="test") for i in range(200))
    scenes = [scene for scene in known if len(scene.things) == 1][:12]
    truth, model, right = render(scenes, size=128, maps=("rgb", "ids")), open_model("still-life-unet"), 0
    assert truth.rgb is not None and truth.ids is not None
    for scene, rgb, ids in zip(scenes, truth.rgb[:, None], truth.ids[:, None], strict=True):
        there = (ids >= 2).nonzero()[:, 2:]
        (top, left), (bottom, right_edge) = there.amin(0).tolist(), there.amax(0).tolist()
        mask = torch.zeros(1, 1, 128, 128)
        mask[..., max(top - 8, 0) : bottom + 9, max(left - 8, 0) : right_edge + 9] = 1
        made = TextToImage(model, pictures={"image": rgb, "mask": mask}, start=FromImage(rgb, 1.0, mask))(
            caption(scene), seed=3
        ).pixels
        assert torch.equal(made[(mask == 0).expand_as(made)], rgb[(mask == 0).expand_as(rgb)])
        (reading,) = read(made)
        wanted = (scene.things[0].shape, scene.things[0].color)
        right += reading is not None and [(t.shape, t.color) for t in reading.things] == [wanted]
    assert right >= 7, right


def test_autoencoder_keeps_the_picture() -> None:
    scenes = [sample_scene(6_000_000 + i, split="test") for i in range(48)]
    rgb = render(scenes, size=128).rgb
    assert rgb is not None
    data = Pool(rgb.mul(255).round().byte().permute(0, 2, 3, 1).numpy(), scenes)
    vae = diffusers.AutoencoderKL.from_pretrained(builtin_folder("still-life") / "vae", dtype=torch.float32)
    assert psnr(vae, data, 48) >= 32


def test_the_bridge_reads_prompts_for_the_unet() -> None:
    """Every word goes through the language model, and single things come out as asked."""
    make = TextToImage(with_bridge(open_model("still-life-unet"), open_bridge("still-life-llama")))
    asked = {"a large green cube, at night": ("cube", "green"), "a shiny yellow torus, at sea": ("torus", "yellow"),
             "a small red cone, in a studio": ("cone", "red"), "a blue capsule": ("capsule", "blue")}  # fmt: skip
    right = 0
    for text, wanted in asked.items():
        for reading in read(make(text, seed=0, count=4).pixels):
            right += reading is not None and {(t.shape, t.color) for t in reading.things} == {wanted}
    assert right >= 11, right


def test_models_stay_small() -> None:
    sizes = {}
    for folder in MODELS.iterdir():
        files = [f for f in folder.rglob("*") if f.is_file()]
        sizes[folder.name] = sum(f.stat().st_size for f in files)
    assert max(sizes.values()) <= 12.7e6, sizes
    assert sum(sizes.values()) <= 45e6, sizes
