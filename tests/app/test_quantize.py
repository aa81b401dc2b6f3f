"""`sfumato models quantize`: from a model to a folder that opens without it; one sentence for what cannot be."""

from __future__ import annotations

import pytest
from sfumato.app.quantize_command import parse_size
from sfumato.pipelines.errors import BadInput


def test_quantize_inspect_generate(sfumato, tiny, tmp_path):
    said = sfumato(
        *("models", "quantize", tiny, "-o", "small", "--method", "weight-only:smallest=64", "--bits", "4"),
        *("--also", "text_encoder", "--json"),
    )
    assert said.code == 0, said.err
    unet, text = said.data["parts"]
    assert unet["formats"] == {"nf4": unet["layers"]} and unet["after"] < unet["before"] / 3
    assert (
        text["part"] == "text_encoder"
        and text["after"] <= text["before"]
        and set(text["formats"]) <= {"int8_tensorwise"}
    )
    found = sfumato("models", "inspect", "small", "--json").data
    assert found["parts"]["unet"]["packed"] == unet["formats"] and "packed" not in found["parts"]["vae"]
    assert f"packed, {unet['layers']} layers in nf4" in sfumato("models", "inspect", "small").out
    file = next((tmp_path / "small" / "unet").glob("*.safetensors"))
    assert sfumato("models", "inspect", file, "--json").data["packed"] == unet["formats"]
    assert sfumato("models", "verify", "small").code == 0
    made = sfumato(
        "generate", "x", "-m", "small", "--size", "64", "--steps", "1", "--seed", "1", "-o", "a.png", "--json"
    )
    assert made.code == 0, made.err


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["svdquant:rank=2,smallest=64", "ptq4dm:smallest=64", "noisyquant:smallest=64", "mixdq"]
)
def test_methods_that_calibrate(method, sfumato, tiny, tmp_path):
    if method == "mixdq":
        pytest.importorskip("scipy")
    before = sum(f.stat().st_size for f in (tiny / "unet").glob("*.safetensors"))
    budget = round(0.6 * before)
    said = sfumato(
        *("models", "quantize", tiny, "-o", "small", "--method", method, "--prompts", "1"),
        *("--budget", str(budget), "--json"),
    )
    assert said.code == 0, said.err
    assert said.data["parts"][0]["layers"] and said.data["parts"][0]["after"] <= budget
    made = sfumato("generate", "x", "-m", "small", "--size", "64", "--steps", "1", "-o", "a.png")
    assert made.code == 0, made.err


@pytest.mark.parametrize(
    "options, said",
    [
        (["--method", "ddim"], "not a convert"),
        (["--method", "winograd"], "packs none of the layers"),
        (["--method", "mixdq"], "chooses formats by --budget"),
        (["--method", "mixdq", "--budget", "1kB"], "of the smallest formats"),
        (["--method", "ptq4dm", "--prompts", "0"], "nothing to calibrate"),
        (["--method", "dgq", "--bits", "4"], "leave --bits out"),
        (["--method", "lorc:rank=-1"], "rank must be in"),
        (["--method", "lorc:seen=1"], "lorc:seen"),
        (["--budget", "4 apples"], "is no size"),
        (["--budget", "1kB"], "takes at least in 4 bits"),
        (["--budget", "1kB", "--bits", "3"], "takes at least in 3 bits"),
        (["--budget", "1kB", "--method", "svdquant", "--bits", "5"], "takes at least in 5 bits"),
        (["--budget", "1kB", "--method", "dgq"], "the budget is 1,000"),
        (["--also", "tail"], "has no network 'tail'"),
    ],
)
def test_refused(options, said, sfumato, tiny, tmp_path):
    answer = sfumato("models", "quantize", tiny, "-o", "small", *options)
    lines = [line for line in answer.err.strip().splitlines() if not line.startswith(("packing", "calibr"))]
    assert answer.code == 2 and len(lines) == 1 and said in lines[0], answer
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    "text, size", [("4GB", 4 * 10**9), ("1.5 GiB", 3 * 2**29), ("300", 300), ("2kb", 2000)]
)
def test_sizes(text, size):
    assert parse_size(text) == size
    with pytest.raises(BadInput):
        parse_size(f"-{text}")
