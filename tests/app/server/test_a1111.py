"""A real client of A1111's API (`webuiapi`), and the request that the web UI itself would send."""

from __future__ import annotations

import base64
import io
import json
import threading

import pytest
import webuiapi
from PIL import Image, ImageChops
from sfumato.app.server.tokens import Tokens

SMALL = {"width": 64, "height": 64, "steps": 2, "sampler_name": "DDIM"}


@pytest.fixture
def old(api, running):
    running()
    client = webuiapi.WebUIApi(port=int(api.url.rpartition(":")[2]))
    client.session.trust_env = False
    client.set_options({"sd_model_checkpoint": "tiny-sd"})
    return client


def test_txt2img(old):
    made = old.txt2img(prompt="a cube", negative_prompt="a mug", seed=5, batch_size=2, n_iter=2, **SMALL)
    assert [image.size for image in made.images] == [(64, 64)] * 4
    assert made.info["all_seeds"] == [5, 6, 7, 8] and made.info["seed"] == 5
    assert made.info["infotexts"][0].startswith("a cube\nNegative prompt: a mug\nSteps: 2, Sampler: DDIM")
    assert made.parameters["cfg_scale"] == 7.0
    alone = old.txt2img(prompt="a cube", negative_prompt="a mug", seed=6, **SMALL)
    apart = ImageChops.difference(alone.image.convert("RGB"), made.images[1].convert("RGB"))
    assert max(high for _, high in apart.getextrema()) <= 2, "a batch may change the last bits"


def test_img2img_and_its_mask(old):
    red, mask = Image.new("RGB", (64, 64), "red"), Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 64, 24))
    made = old.img2img(
        images=[red], mask_image=mask, prompt="x", mask_blur=0, denoising_strength=1, seed=1, **SMALL
    )
    kept = made.image.convert("RGB").crop((0, 24, 64, 64))
    assert kept.getcolors() == [(64 * 40, (255, 0, 0))]
    assert len(made.info["notes"]) == 2 and made.info["notes"][0].startswith("inpaint_full_res")
    turned = old.img2img(
        images=[red], mask_image=mask, inpainting_mask_invert=1, prompt="x", mask_blur=0, seed=1, **SMALL
    )
    assert turned.image.convert("RGB").crop((0, 0, 64, 24)).getcolors() == [(64 * 24, (255, 0, 0))]


def test_png_info(old):
    made = old.txt2img(prompt="a cube", seed=5, **SMALL)
    info = old.png_info(made.image).info
    assert info.startswith("a cube\nSteps: 2")
    assert old.png_info(Image.new("RGB", (8, 8))).info == ""


def test_progress_and_interrupt(old, wait_until):
    answers = []

    def ask() -> None:
        answers.append(old.txt2img(prompt="x", n_iter=50, **{**SMALL, "steps": 900}))

    thread = threading.Thread(target=ask)
    thread.start()
    told = wait_until(lambda: (told := old.get_progress())["state"]["sampling_step"] > 2 and told)
    assert 0 < told["progress"] < 1 and told["state"]["job_count"] == 1 and told["eta_relative"] > 0
    shown = wait_until(lambda: old.get_progress()["current_image"])
    assert Image.open(io.BytesIO(base64.b64decode(shown))).format == "PNG"
    old.interrupt()
    thread.join(30)
    assert len(answers[0].images) < 50, "it gets what was finished"
    told = old.get_progress()
    assert told["progress"] == 0 and told["state"]["job_count"] == 0 and told["current_image"] is None


def test_options_samplers_models(old, client):
    assert old.get_options()["sd_model_checkpoint"].endswith("tiny-sd")
    old.set_options({"sd_model_checkpoint": "still-life"})
    assert old.util_get_current_model() == "still-life"
    assert {"DPM++ 2M", "Euler a", "DDIM"} <= set(old.util_get_sampler_names())
    assert {"automatic", "karras"} <= set(old.util_get_scheduler_names())
    assert "still-life" in old.util_get_model_names()
    for options in (
        {"sd_model_checkpoint": "/etc"},
        {"CLIP_stop_at_last_layers": 2},
        {"sd_model_checkpoint": 3},
    ):
        assert client.post("/sdapi/v1/options", json=options).status_code == 422


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"enable_hr": True}, "enable_hr"),
        ({"styles": ["oil"]}, "styles"),
        ({"subseed_strength": 0.5}, "subseed_strength"),
        ({"tiling": True}, "tiling"),
        ({"sampler_name": "Eular a"}, "sampler_name"),
        ({"scheduler": "karas"}, "scheduler"),
        ({"script_name": "X/Y/Z plot"}, "script_name"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True, {}]}}}, "alwayson_scripts"),
        ({"override_settings": {"eta_noise_seed_delta": 3}}, "override_settings.eta_noise_seed_delta"),
        ({"override_settings": {"sd_model_checkpoint": "/etc"}}, "model"),
        ({"width": 3}, "width"),
        ({"stesp": 3}, "stesp"),
        ({"batch_size": 10**9}, "batch_size"),
    ],
)
def test_what_cannot_be_done_is_refused(client, given, field):
    said = client.post("/sdapi/v1/txt2img", json={"prompt": "x", **given})
    assert said.status_code == 422 and said.json()["error"]["param"] == field, said.text
    assert said.json()["detail"] == said.json()["error"]["message"]


@pytest.mark.parametrize(
    "given",
    [{}, {"init_images": []}, {"init_images": ["no"]}, {"init_images": ["no", "no"]}, {"init_images": [""]}],
)
def test_img2img_needs_a_picture(client, given):
    assert client.post("/sdapi/v1/img2img", json={"prompt": "x", **given}).status_code == 422


def test_what_the_web_ui_sends(client, running):
    """All the fields of its own API page, as they stand there."""
    running()
    body = json.loads(
        """{"prompt": "", "negative_prompt": "", "styles": [], "seed": -1, "subseed": -1, "subseed_strength": 0,
        "seed_resize_from_h": -1, "seed_resize_from_w": -1, "sampler_name": "DDIM", "scheduler": "Automatic",
        "batch_size": 1, "n_iter": 1, "steps": 2, "cfg_scale": 7, "width": 64, "height": 64, "restore_faces": false,
        "tiling": false, "do_not_save_samples": false, "do_not_save_grid": false, "eta": 0, "denoising_strength": 0,
        "s_min_uncond": 0, "s_churn": 0, "s_tmax": 0, "s_tmin": 0, "s_noise": 1, "override_settings":
        {"sd_model_checkpoint": "tiny-sd [0123456789]"}, "override_settings_restore_afterwards": true,
        "refiner_checkpoint": "", "refiner_switch_at": 0, "disable_extra_networks": false, "comments": {},
        "enable_hr": false, "firstphase_width": 0, "firstphase_height": 0, "hr_scale": 2, "hr_upscaler": "",
        "hr_second_pass_steps": 0, "hr_resize_x": 0, "hr_resize_y": 0, "hr_checkpoint_name": "", "hr_sampler_name": "",
        "hr_prompt": "", "hr_negative_prompt": "", "sampler_index": "Euler", "script_name": "", "script_args": [],
        "send_images": true, "save_images": false, "alwayson_scripts": {}}"""
    )
    said = client.post("/sdapi/v1/txt2img", json=body)
    assert said.status_code == 200 and len(said.json()["images"]) == 1, said.text


def test_a_user_and_his_token(serve, home):
    """Clients of A1111 know Basic alone: the token is the password."""
    token = Tokens(home).add("ada")
    api = serve(require_token=True)
    client = webuiapi.WebUIApi(port=int(api.url.rpartition(":")[2]), username="ada", password=token)
    assert client.get_samplers()[0]["name"]
    assert "error" in webuiapi.WebUIApi(port=int(api.url.rpartition(":")[2])).get_samplers()
