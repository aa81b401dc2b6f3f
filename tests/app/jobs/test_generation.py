"""The generate task as a job: the bytes of the command line, stops in every phase, one opened model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from sfumato.app import assembly
from sfumato.app.jobs import artifacts, control
from sfumato.app.jobs.home import Policy
from sfumato.app.jobs.store import CANCELLED, COMPLETED, FAILED, INTERRUPTED, Store
from sfumato.app.requests import GenerateRequest
from sfumato.pipelines.families import _parts
from sfumato.pipelines.text_to_image import TextToImage


@pytest.fixture
def asked(tiny):
    def make(**values) -> GenerateRequest:
        return GenerateRequest(
            **{"prompt": "a cube", "model": str(tiny), "size": "64x64", "steps": 3, "seed": 5} | values
        )

    return make


def pictures(store: Store, id: int) -> list[bytes]:
    return [
        artifacts.artifact_path(store.home, kept.hash, kept.suffix).read_bytes()
        for kept in store.artifacts(id)
        if kept.media == "image/png"
    ]


def test_a_job_makes_the_bytes_of_the_command(store, runner, asked, generate, tiny):
    ids = [store.submit(asked(count=2, sampler="euler-ancestral")), store.submit(asked(seed=6))]
    assert runner().run() == {COMPLETED: 2}
    options = ("a cube", "--steps", "3", "--seed", "5", "--count", "2", "--sampler", "euler-ancestral")
    assert generate(*options, "-o", "cli/").code == 0
    made = pictures(store, ids[0])
    assert made == [Path("cli", name).read_bytes() for name in ("0000.png", "0001.png")]
    kept = store.artifacts(ids[0])[0]
    assert kept.hash == hashlib.sha256(made[0]).hexdigest()
    assert kept.about["seed"] == 5 and kept.record["image"] == {"index": 0, "seed": 5}
    manifest = next(k for k in store.artifacts(ids[0]) if k.name == "manifest.json")
    told = json.loads(artifacts.artifact_path(store.home, manifest.hash, ".json").read_text())
    assert (
        told["model"]["hashes"].keys() >= {"unet", "vae", "text_encoder"} and told["request"]["width"] == 64
    )
    assert {"load", "encode", "sample", "decode", "write"} <= set(told["seconds"])


def test_the_second_job_opens_nothing(store, runner, asked, monkeypatch):
    opened, read = [], []
    open_model, load = assembly.open_model, _parts.load_net
    monkeypatch.setattr(assembly, "open_model", lambda *a, **k: opened.append(a) or open_model(*a, **k))
    monkeypatch.setattr(_parts, "load_net", lambda *a, **k: read.append(a) or load(*a, **k))
    for seed in (1, 2, 3):
        store.submit(asked(seed=seed, steps=seed))
    assert runner().run() == {COMPLETED: 3}
    assert len(opened) == 1 and len(read) == 3, "a network was read twice"


def test_weights_that_changed_are_opened_again(store, runner, asked, tiny, tmp_path):
    import shutil

    model = shutil.copytree(tiny, tmp_path / "model")
    first = runner()
    store.submit(asked(model=str(model)))
    first.run()
    before = first.shelf.model
    store.submit(asked(model=str(model)))
    first.run()
    assert first.shelf.model is before
    config = model / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text() + "\n")
    store.submit(asked(model=str(model)))
    first.run()
    assert first.shelf.model is not before


def test_learned_words_do_not_stay(store, runner, asked, tiny):
    """A job with a learned word leaves no model behind that knows it."""
    import torch
    from safetensors.torch import save_file

    save_file({"emb_params": torch.ones(1, 24)}, "glow.safetensors")
    plain = [
        store.submit(asked(prompt="a cube of glow")),
        store.submit(asked(prompt="x", embeddings=("glow.safetensors",))),
    ]
    plain.append(store.submit(asked(prompt="a cube of glow")))
    used = runner()
    assert used.run() == {COMPLETED: 3}
    assert pictures(store, plain[0]) == pictures(store, plain[2])


def test_a_checkpoint_of_other_settings_is_left_with_a_note(store, runner, asked, monkeypatch):
    from diffusers import UNet2DConditionModel

    id = store.submit(asked())
    with monkeypatch.context() as patch:
        stop_at(patch, store, id, UNet2DConditionModel, "forward", 2)
        runner().run()
    with store.change() as db:
        request = json.dumps(store.request(id) | {"steps": 4})
        db.execute("UPDATE requests SET request = ? WHERE job = ?", (request, id))
    control.retry(store, id)
    assert runner().run() == {COMPLETED: 1}
    notes = [event.data["text"] for event in store.events(job=id) if event.kind == "note"]
    assert any("belongs to other settings" in note for note in notes)


def stop_at(monkeypatch, store: Store, id: int, place: object, name: str, call: int) -> list[int]:
    """Cancel the job as the n-th call begins; the list counts the calls."""
    calls: list[int] = []
    whole = getattr(place, name)

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            control.cancel(Store(store.home), id)
        return whole(*args, **kwargs)

    monkeypatch.setattr(place, name, counted)
    return calls


@pytest.mark.parametrize("call", [1, 2, 3])
def test_loading_stops_after_the_part_in_hand(store, runner, asked, monkeypatch, call):
    from sfumato.pipelines.families import _opened

    places = [p for p in (_parts, _opened) if hasattr(p, "load_net") or hasattr(p, "load_part")]
    assert places
    id = store.submit(asked())
    calls = stop_at(monkeypatch, store, id, _parts, "read_headers", call)
    runner().run()
    assert store.get(id).state == CANCELLED and len(calls) == call


def test_encoding_stops_after_the_call_in_hand(store, runner, asked, monkeypatch):
    from transformers import CLIPTextModel

    id = store.submit(asked())
    calls = stop_at(monkeypatch, store, id, CLIPTextModel, "forward", 2)
    runner().run()
    assert store.get(id).state == CANCELLED and store.get(id).phase in ("load", "encode") and len(calls) == 2


@pytest.mark.parametrize("call", [1, 2, 4])
def test_sampling_stops_after_the_call_in_hand(store, runner, asked, monkeypatch, call):
    from diffusers import UNet2DConditionModel

    id = store.submit(asked(sampler="heun"))
    calls = stop_at(monkeypatch, store, id, UNet2DConditionModel, "forward", call)
    runner().run()
    job = store.get(id)
    assert (job.state, job.phase) == (CANCELLED, "sample") and len(calls) == call


@pytest.mark.parametrize("call", [1, 2])
def test_decoding_stops_after_the_image_in_hand(store, runner, asked, monkeypatch, call):
    """All three were sampled at once; those decoded before stay, and `retry` makes only the others."""
    whole, id = store.submit(asked(count=3, batch=3)), store.submit(asked(count=3, batch=3))
    control.pause(store, id)
    runner().run()
    control.resume(store, id)
    with monkeypatch.context() as patch:
        calls = stop_at(patch, store, id, TextToImage, "decode", call)
        runner(policy=Policy(checkpoint_seconds=60)).run()
    assert store.get(id).state == CANCELLED and len(calls) == call
    assert len(pictures(store, id)) == call - 1
    control.retry(store, id)
    calls = stop_at(monkeypatch, store, id, TextToImage, "decode", 99)
    steps = stop_at(monkeypatch, store, id, TextToImage, "_schedule", 99)
    assert runner().run() == {COMPLETED: 1} and len(calls) == 4 - call and len(steps) == 1
    assert pictures(store, id) == pictures(store, whole)


def test_pause_and_resume_give_the_same_bytes(store, runner, asked, monkeypatch):
    request = asked(steps=6, sampler="dpmpp-2m-sde", count=2)
    whole, id = store.submit(request), store.submit(request)
    control.pause(store, id)
    runner().run()
    from diffusers import UNet2DConditionModel

    for call in (3, 5):
        control.resume(store, id)
        with monkeypatch.context() as patch:
            seen: list[int] = []
            forward = UNet2DConditionModel.forward

            def counted(*args, call=call, seen=seen, forward=forward, **kwargs):
                seen.append(1)
                if len(seen) == call:
                    control.pause(Store(store.home), id)
                return forward(*args, **kwargs)

            patch.setattr(UNet2DConditionModel, "forward", counted)
            runner(policy=Policy(checkpoint_seconds=60)).run()
        assert (store.get(id).state, store.get(id).held) == (INTERRUPTED, 1)
    control.resume(store, id)
    assert runner().run() == {COMPLETED: 1}
    assert pictures(store, id) == pictures(store, whole)


def test_a_checkpoint_of_other_weights_is_left_with_a_note(store, runner, asked, monkeypatch, tmp_path):
    import tiny_models

    model = tiny_models.stable_diffusion(tmp_path / "model")
    id = store.submit(asked(model=str(model)))
    from diffusers import UNet2DConditionModel

    with monkeypatch.context() as patch:
        stop_at(patch, store, id, UNet2DConditionModel, "forward", 2)
        runner().run()
    control.retry(store, id)
    tiny_models.stable_diffusion(tmp_path / "other", gain=2.0)
    (tmp_path / "model").rename(tmp_path / "away")
    (tmp_path / "other").rename(tmp_path / "model")
    assert runner().run() == {COMPLETED: 1}
    notes = [event.data["text"] for event in store.events(job=id) if event.kind == "note"]
    assert any("belongs to other weights" in note for note in notes)


def test_bad_requests_fail_with_one_sentence(store, runner, asked):
    ids = [store.submit(asked(model="/gone")), store.submit(asked(width=60, height=64, size=None))]
    assert runner().run() == {FAILED: 2}
    for id in ids:
        error = store.get(id).error
        assert error and "\n" not in error and "Traceback" not in error
    assert "/gone" in store.get(ids[0]).error


def test_previews_are_files_that_are_replaced(store, runner, asked, monkeypatch):
    from PIL import Image

    id = store.submit(asked(steps=4))
    seen = []
    watch = TextToImage.decode

    def look(self, latents):
        seen.append(Image.open(store.job_folder(id) / "preview.png").copy().size)
        return watch(self, latents)

    monkeypatch.setattr(TextToImage, "decode", look)
    runner().run()
    job = store.get(id)
    assert seen and job.previews == 3 and (job.step, job.steps) == (4, 4)
