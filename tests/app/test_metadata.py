"""What our files say, how others' files are read, and how broken ones are refused."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin
from sfumato.app.comfy import read_graph
from sfumato.app.dialects import read_a1111, recover, write_a1111
from sfumato.app.metadata import read_metadata, user_comment
from sfumato.app.recovered import BrokenMetadata

PROMPT = 'a "red" cube, (shiny:1.2),\nsecond line: Größe, 立方体 🎨'
NEGATIVE = "blur, noise: none"


def png(path: str, **texts: str) -> str:
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_round_trip(generate, suffix):
    path = Path(f"a{suffix}")
    assert generate(PROMPT, "-n", NEGATIVE, "--seed", "9", "--guidance", "4.5", "-o", path).code == 0
    found = read_metadata(path)
    assert found.dialect == "sfumato" and (found.prompt, found.negative) == (PROMPT, NEGATIVE)
    assert (found.seed, found.steps, found.guidance, found.width, found.height) == (9, 2, 4.5, 64, 64)
    assert found.record["schema"] == 1 and found.record["versions"]["torch"]
    assert len(found.record["model"]["hashes"]) >= 3 and found.record["model"]["hash"] == found.model_hash


def test_a1111_block_is_read_without_our_key(generate):
    generate(PROMPT, "-n", NEGATIVE, "--seed", "9", "-o", "a.png")
    found = read_a1111(Image.open("a.png").info["parameters"])
    assert (found.prompt, found.negative, found.seed, found.width) == (PROMPT, NEGATIVE, 9, 64)
    assert found.unmapped["Version"].startswith("sfumato")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_third_party_reader_agrees(generate, suffix):
    """sd-parsers, an independent reader from PyPI."""
    sd_parsers = pytest.importorskip("sd_parsers")
    path = f"a{suffix}"
    generate("a red cube, shiny", "-n", "blur", "--seed", "9", "--guidance", "4.5", "-o", path)
    found = sd_parsers.ParserManager().parse(path)
    assert found is not None
    assert [p.value for p in found.prompts] == ["a red cube, shiny"]
    assert [p.value for p in found.negative_prompts] == ["blur"]
    (sampler,) = found.samplers
    assert int(sampler.parameters["seed"]) == 9 and float(sampler.parameters["cfg_scale"]) == 4.5
    assert int(sampler.parameters["steps"]) == 2 and sampler.model.name == "tiny-sd"


def test_no_dates_in_the_file(generate):
    generate("x", "--seed", "1", "-o", "a.png")
    generate("x", "--seed", "1", "-o", "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


A1111 = """masterpiece, cat
Negative prompt: dog
more dog
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 42, Size: 512x768, Model hash: abc, \
Model: v1-5, Hires prompt: "a, b: \\"c\\"", Version: v1.10.1"""
KSAMPLER = {"seed": ["8", 0], "steps": 25, "cfg": 6.5, "sampler_name": "euler", "scheduler": "karras"}
COMFY = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            **KSAMPLER,
            "model": ["4", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "cat", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "dog", "clip": ["4", 1]}},
    "8": {"class_type": "Seed", "inputs": {"seed": 42}},
    "9": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
}
FLUX = {
    "1": {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {
            "noise": ["2", 0], "guider": ["3", 0], "sampler": ["4", 0], "sigmas": ["5", 0], "latent_image": ["6", 0],
        },
    },
    "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 42}},
    "3": {"class_type": "BasicGuider", "inputs": {"model": ["7", 0], "conditioning": ["8", 0]}},
    "4": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
    "5": {"class_type": "BasicScheduler", "inputs": {"scheduler": "simple", "steps": 20, "model": ["7", 0]}},
    "6": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 512, "height": 768}},
    "7": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux1-dev.safetensors"}},
    "8": {"class_type": "FluxGuidance", "inputs": {"guidance": 3.5, "conditioning": ["9", 0]}},
    "9": {"class_type": "CLIPTextEncode", "inputs": {"text": "cat", "clip": ["10", 0]}},
}  # fmt: skip
INVOKE = {
    "positive_prompt": "cat", "negative_prompt": "dog", "width": 512, "height": 768, "seed": 42, "cfg_scale": 7.5,
    "steps": 30, "scheduler": "euler", "model": {"name": "v1-5", "hash": "blake3:1"}, "app_version": "5.4",
}  # fmt: skip
SWARM = {
    "sui_image_params": {
        "prompt": "cat", "negativeprompt": "dog", "model": "v1-5", "seed": 42, "steps": 20, "cfgscale": 7.0,
        "width": 512, "height": 768, "sampler": "euler", "scheduler": "normal", "swarm_version": "0.9",
    },
    "sui_models": [{"name": "v1-5", "param": "model", "hash": "0xabc"}],
    "sui_extra_data": {"date": "2026-01-01"},
}  # fmt: skip
FOOOCUS = {
    "prompt": "cat", "negative_prompt": "dog", "base_model": "v1-5", "base_model_hash": "abc", "sampler": "dpmpp_2m",
    "scheduler": "karras", "steps": 30, "resolution": "(512, 768)", "guidance_scale": 4, "seed": "42", "sharpness": 2,
}  # fmt: skip
DIALECTS = {
    "a1111": {"parameters": A1111},
    "comfyui": {"prompt": json.dumps(COMFY), "workflow": "{}"},
    "invokeai": {"invokeai_metadata": json.dumps(INVOKE)},
    "swarmui": {"parameters": json.dumps(SWARM)},
    "fooocus": {"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"},
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects(dialect, sfumato):
    found = read_metadata(Path(png("a.png", **DIALECTS[dialect])))
    assert found.dialect == dialect
    assert found.prompt.endswith("cat") and found.negative.startswith("dog")
    assert (found.seed, found.width, found.height) == (42, 512, 768)
    assert found.model.startswith("v1-5") and found.sampler and found.steps and found.guidance
    assert found.unmapped
    assert sfumato("inspect", "a.png", "--format", "json").data["metadata"]["dialect"] == dialect
    said = sfumato("replay", "a.png")
    assert said.code == 2 and dialect in said.err


def test_a1111_details():
    found = read_a1111(A1111)
    assert found.negative == "dog\nmore dog" and found.unmapped["Hires prompt"] == 'a, b: "c"'
    assert (found.sampler, found.schedule, found.model_hash) == ("DPM++ 2M", "Karras", "abc")
    assert read_a1111("only a prompt").prompt == "only a prompt"


def test_comfy_flux_graph():
    found = read_graph(FLUX)
    assert (found.prompt, found.negative, found.seed, found.steps) == ("cat", None, 42, 20)
    assert (found.guidance, found.sampler, found.schedule, found.model) == (
        3.5,
        "euler",
        "simple",
        "flux1-dev.safetensors",
    )


def test_comfy_takes_the_last_of_two_samplers():
    graph = json.loads(json.dumps(COMFY))
    graph["20"] = {
        "class_type": "KSampler",
        "inputs": {**graph["3"]["inputs"], "latent_image": ["3", 0], "steps": 9},
    }
    assert read_graph(graph).steps == 9


def test_comfy_in_webp_exif():
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = "prompt:" + json.dumps(COMFY)
    Image.new("RGB", (8, 8)).save("a.webp", exif=exif)
    assert read_metadata(Path("a.webp")).prompt == "cat"


def test_sd_cpp_xmp():
    xmp = '<x:xmpmeta><rdf:Description sdcpp:parameters="cat&#10;Steps: 5, Seed: 42"/></x:xmpmeta>'
    Image.new("RGB", (8, 8)).save("a.webp", xmp=xmp.encode())
    found = read_metadata(Path("a.webp"))
    assert (found.prompt, found.seed) == ("cat", 42)


@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
def test_user_comment_byte_order(order):
    assert user_comment(b"UNICODE\0" + "立 Steps: 5, Seed: 1".encode(order)) == "立 Steps: 5, Seed: 1"


DEEP = "[" * 200_000
CYCLE = {"1": {"class_type": "KSampler", "inputs": {"positive": ["2", 0], "latent_image": ["2", 0], "seed": ["2", 0]}},
         "2": {"class_type": "X", "inputs": {"a": ["1", 0], "b": ["2", 0]}}}  # fmt: skip
HOSTILE = [
    {"sfumato": "not json"},
    {"sfumato": "[1, 2]"},
    {"sfumato": DEEP},
    {"sfumato": '{"request": 5}'},
    {"sfumato": '{"request": {"sampler": []}, "used": []}'},
    {"sfumato": '{"schema": ' + "9" * 5000 + "}"},
    {"prompt": DEEP},
    {"prompt": '{"1": 5}'},
    {"prompt": '{"1": {"inputs": []}}'},
    {"prompt": json.dumps({str(i): {"inputs": {}} for i in range(20_000)})},
    {"invokeai_metadata": "null"},
    {"parameters": '{"sui_image_params": []}'},
    {"parameters": "{}", "fooocus_scheme": "fooocus", "sfumato": "{"},
]


@pytest.mark.parametrize("texts", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_metadata_is_one_error(texts, sfumato):
    png("a.png", **texts)
    for command in ("inspect", "replay"):
        said = sfumato(command, "a.png")
        assert said.code == 2 and len(said.err.strip().splitlines()) == 1 and len(said.err) < 500


def test_odd_but_readable():
    assert read_graph(CYCLE).prompt is None
    chain = {
        str(i): {"class_type": "KSampler", "inputs": {"latent_image": [str(i - 1), 0]}} for i in range(9_000)
    }
    assert read_graph(chain).dialect == "comfyui"
    assert read_a1111("x\n" + "Steps: 1, " + "a" * 1_000_000).steps == 1
    assert (
        recover(
            {"parameters": json.dumps({**FOOOCUS, "seed": [], "steps": True}), "fooocus_scheme": "fooocus"}
        ).seed
        is None
    )
    assert recover({"Comment": "hello"}) is None


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["parameters", "prompt", "sfumato", "invokeai_metadata", "fooocus_scheme"]), st.text()
    )
)
def test_any_text_is_read_or_refused(texts):
    with contextlib.suppress(BrokenMetadata):
        recover(texts)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["1", "inputs", "seed", "model"]), inner)
    ),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["prompt", "sfumato", "invokeai_metadata", "parameters"]), st.dictionaries(st.sampled_from(
    ["1", "2", "request", "image", "model", "used", "sui_image_params", "sui_models", "seed"]), JSON))  # fmt: skip
def test_any_json_is_read_or_refused(key, value):
    with contextlib.suppress(BrokenMetadata):
        recover({key: json.dumps(value), "fooocus_scheme": "fooocus"})


@settings(max_examples=100, deadline=None)
@given(
    st.text(alphabet=st.characters(blacklist_characters="\n\r", blacklist_categories=["Cs"])),
    st.text(max_size=20),
)
def test_quoted_values_survive(value, other):
    block = write_a1111("p", "", {"Steps": 1, "Odd": f"v{value}", "Seed": 5})
    found = read_a1111(block)
    assert found.seed == 5 and found.unmapped["Odd"].strip() == f"v{value}".strip()


def test_broken_images(generate, sfumato):
    generate("x", "-o", "a.png")
    whole = Path("a.png").read_bytes()
    generator = random.Random(0)
    cases = {
        "empty.png": b"",
        "text.png": b"hello",
        "cut.png": whole[: len(whole) // 2],
        "head.png": whole[:20],
    }
    for i in range(20):
        data = bytearray(whole)
        for _ in range(8):
            data[generator.randrange(len(data))] = generator.randrange(256)
        cases[f"flip{i}.png"] = bytes(data)
    for name, data in cases.items():
        Path(name).write_bytes(data)
        for command in ("inspect", "replay"):
            said = sfumato(command, name)
            assert said.code in (0, 1, 2)
            if not name.startswith("flip"):
                assert said.code == 2 and len(said.err.strip().splitlines()) == 1, said
    assert sfumato("inspect", "nowhere.png").code == 2
