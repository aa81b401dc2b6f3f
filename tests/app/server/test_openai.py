"""The real `openai` client, and one that leaves before its picture is there."""

from __future__ import annotations

import base64
import io
import threading

import httpx
import openai
import pytest
from PIL import Image, ImageDraw

SMALL = {"steps": 2, "seed": 5}


@pytest.fixture
def ai(api, running):
    running()
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def opened(text: str | None) -> Image.Image:
    assert text
    return Image.open(io.BytesIO(base64.b64decode(text)))


def as_file(image: Image.Image, kind: str = "PNG") -> tuple[str, bytes]:
    target = io.BytesIO()
    image.save(target, kind)
    return f"a.{kind.lower()}", target.getvalue()


def test_pictures(ai):
    made = ai.images.generate(prompt="a cube", model="tiny-sd", n=2, size="64x64", extra_body=SMALL)
    assert [opened(one.b64_json).size for one in made.data] == [(64, 64)] * 2
    assert opened(made.data[0].b64_json).info["sfumato"]
    assert made.data[0].b64_json != made.data[1].b64_json
    again = ai.images.generate(prompt="a cube", model="tiny-sd", size="64x64", extra_body=SMALL)
    assert opened(again.data[0].b64_json).tobytes() == opened(made.data[0].b64_json).tobytes()


def test_pictures_by_url_and_in_other_formats(ai):
    made = ai.images.generate(
        prompt="x", model="tiny-sd", size="64x64", response_format="url", extra_body=SMALL
    )
    got = httpx.get(made.data[0].url)
    assert Image.open(io.BytesIO(got.content)).format == "PNG"
    for kind in ("jpeg", "webp"):
        made = ai.images.generate(
            prompt="x", model="tiny-sd", size="64x64", output_format=kind, extra_body=SMALL
        )
        assert opened(made.data[0].b64_json).format == kind.upper()


def test_edits(ai):
    image, mask = Image.new("RGB", (64, 64), "red"), Image.new("RGBA", (64, 64), "white")
    ImageDraw.Draw(mask).rectangle((0, 0, 63, 31), fill=(0, 0, 0, 0))
    made = ai.images.edit(
        image=as_file(image), mask=as_file(mask), prompt="x", model="tiny-sd", size="64x64", extra_body=SMALL
    )
    result = opened(made.data[0].b64_json).convert("RGB")
    assert result.crop((0, 32, 64, 64)).getcolors() == [(64 * 32, (255, 0, 0))], "what is opaque is kept"
    assert result.crop((0, 0, 64, 32)).getcolors() != [(64 * 32, (255, 0, 0))]
    image.putalpha(mask.getchannel("A"))
    own = ai.images.edit(image=[as_file(image)], prompt="x", model="tiny-sd", size="64x64", extra_body=SMALL)
    assert opened(own.data[0].b64_json).size == (64, 64)


@pytest.mark.parametrize(
    ("given", "field", "sentence"),
    [
        ({"model": "dall-e-3"}, "model", "is no model that this server has"),
        ({"size": "big"}, "size", "is not WxH"),
        ({"quality": "hd"}, "quality", "is not served here"),
        ({"style": "vivid"}, "style", "is not served here"),
        ({"stream": True}, "stream", "is not served here"),
        ({"n": 0}, "n", "must be at least 1"),
        ({"extra_body": {"stesp": 3}}, "stesp", "is no field of this request"),
        ({"extra_body": {"image": "x"}}, "image", "POST /v1/images/edits"),
    ],
)
def test_what_cannot_be_done_is_refused(ai, given, field, sentence):
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        ai.images.generate(prompt="x", **given)
    assert sentence in refused.value.message and refused.value.param == field


def test_edits_refuse_what_is_no_picture(ai):
    red = as_file(Image.new("RGB", (8, 8)))
    for files in ({"image": ("a.png", b"no")}, {"image": [red, red]}, {"image": red, "mask": red}):
        with pytest.raises(openai.UnprocessableEntityError):
            ai.images.edit(prompt="x", **files)


def test_a_job_that_fails_says_why(ai, tiny):
    with pytest.raises(openai.UnprocessableEntityError, match="techniques"):
        ai.images.generate(prompt="x", model="tiny-sd", extra_body={"techniques": ["cfg", "none"]})


def test_there_are_no_videos_yet(ai):
    with pytest.raises(
        openai.NotFoundError, match=r"no task .* makes videos; there are generate, world, sum"
    ):
        ai.videos.create(prompt="a cube turns")
    with pytest.raises(openai.NotFoundError, match="makes videos"):
        ai.videos.retrieve("video_1")


def test_models(ai):
    assert "still-life" in {model.id for model in ai.models.list()}


def test_who_leaves_cancels_the_job(client, api, running, wait_until):
    running()
    body = {"prompt": "x", "model": "tiny-sd", "size": "64x64", "steps": 300, "n": 50}
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/images/generations", json=body, timeout=1)
    (job,) = client.get("/v1/jobs").json()["jobs"]
    wait_until(lambda: client.get(f"/v1/jobs/{job['id']}").json()["state"] == "cancelled", 15)


def test_who_comes_again_with_the_same_key_gets_the_same(client, running):
    body = {"prompt": "x", "model": "tiny-sd", "size": "64x64", "steps": 2}
    answers = []

    def ask() -> None:
        answers.append(client.post("/v1/images/generations", json=body, headers={"Idempotency-Key": "k"}))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    running()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len({answer.json()["job"] for answer in answers}) == 1
    assert len({answer.json()["data"][0]["b64_json"] for answer in answers}) == 1
