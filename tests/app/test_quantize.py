"""`sfumato models quantize`: from a model to a folder that opens without it; one sentence for what cannot be."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open
from sfumato.app.catalogue import ROOT, techniques
from sfumato.app.quantize_command import parse_size
from sfumato.app.quantize_methods import methods
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
        (["--method", "ddim"], "packs no weights; choose from dgq, lorc"),
        (["--method", "winograd"], "packs no weights"),
        (["--method", "int8"], "packs no weights"),
        (["--method", "products"], "packs no weights"),
        (["--method", "compile"], "packs no weights"),
        (["--method", "linfusion"], "packs no weights"),
        (["--method", "svdqant"], "did you mean 'svdquant'?"),
        (["--method", "mixdq"], "chooses formats by --budget"),
        (["--method", "mixdq", "--budget", "1kB"], "of the smallest formats"),
        (["--method", "mixdq:share=1", "--budget", "1MB"], "less than its smallest formats"),
        (["--method", "mixdq:budget=5", "--budget", "1MB"], "is given as --budget"),
        (["--method", "svdquant:seen=null"], "is measured here"),
        (["--method", "ptq4dm", "--prompts", "0"], "nothing to calibrate"),
        (["--method", "dgq", "--bits", "4"], "leave --bits out"),
        (["--method", "mixdq", "--bits", "4", "--budget", "1MB"], "leave --bits out"),
        (
            ["--method", "noisyquant", "--bits", "4"],
            "has in 8 bits; for its activations write noisyquant:bits=4",
        ),
        (["--method", "noisyquant:bits=2"], "bits must be in 3..8"),
        (["--method", "minifloat", "--bits", "5"], "bits must be 8, 6 or 4"),
        (["--method", "svdquant:inputs=3"], "inputs must be 0, 4 or 8"),
        (["--method", "lorc:rank=-1"], "rank must be in"),
        (["--method", "lorc:seen=1"], "lorc:seen"),
        (["--method", "lorc:bits=3", "--bits", "8"], "is not what lorc:bits=3 says"),
        (["--method", "weight-only:format=int8", "--bits", "4"], "is not what weight-only:format=int8 says"),
        (["--method", "weight-only:format=int9", "--bits", "4"], "format must be one of"),
        (["--bits", "7"], "choose 2 to 6 or 8"),
        (["--budget", "4 apples"], "is no size"),
        (["--budget", "1kB"], "takes at least in 4 bits"),
        (["--budget", "1kB", "--bits", "3"], "takes at least in 3 bits"),
        (["--budget", "1kB", "--method", "svdquant", "--bits", "5"], "takes at least in 5 bits"),
        (["--budget", "1kB", "--method", "dgq"], "takes at least in 4 bits"),
        (["--budget", "1kB", "--method", "ptq4dm"], "takes at least in 8 bits"),
        (["--budget", "1kB", "--method", "noisyquant:bits=4"], "takes at least in 8 bits"),
        (["--budget", "1kB", "--method", "weight-only:format=e3m2"], "takes at least in 6 bits"),
        (["--also", "tail", "--method", "ptq4dm"], "has no network 'tail'"),
        (["--also", "unet"], "is the network itself"),
        (["--also", "vae", "--also", "vae=lorc"], "is named twice"),
        (["--also", "vae=ptq4dm"], "must be calibrated"),
        (["--also", "vae=int8"], "also: 'int8' packs no weights"),
        (["--also", "vae=lorc:bits=9"], "bits must be in"),
    ],
)
def test_refused(options, said, sfumato, tiny, tmp_path):
    """Before anything is calibrated or packed, which both would be said."""
    answer = sfumato("models", "quantize", tiny, "-o", "small", *options)
    lines = answer.err.strip().splitlines()
    assert answer.code == 2 and len(lines) == 1 and said in lines[0], answer
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("method", ["svdquant:smallest=64", "weight-only:smallest=64"])
def test_what_is_there_already_is_refused_before_it_begins(method, sfumato, tiny, tmp_path):
    (tmp_path / "taken").mkdir()
    answer = sfumato("models", "quantize", tiny, "-o", "taken", "--method", method)
    assert answer.code == 2 and answer.err.count("\n") == 1 and "exists; remove it" in answer.err
    packed = ("models", "quantize", tiny, "-o", "small", "--method", "weight-only:smallest=64")
    assert sfumato(*packed).code == 0
    answer = sfumato("models", "quantize", "small", "-o", "smaller", "--method", method)
    assert answer.code == 2 and answer.err.count("\n") == 1 and "is packed already" in answer.err


@pytest.mark.parametrize(
    "given, network",
    [
        ((), "weight-only:smallest=64"),
        (("--bits", "4"), "weight-only:format=nf4,smallest=64"),
        (("--bits", "3", "--also", "vae=lorc:bits=5,smallest=64"), "weight-only:format=int3,smallest=64"),
    ],
)
def test_every_file_says_what_was_done_to_it(given, network, sfumato, tiny, tmp_path):
    said = sfumato(
        *("models", "quantize", tiny, "-o", "small", "--method", "weight-only:smallest=64", *given),
        *("--also", "text_encoder", "--json"),
    )
    assert said.code == 0, said.err
    assert said.data["method"] == method_in(tmp_path / "small" / "unet") == network
    assert method_in(tmp_path / "small" / "text_encoder") == "weight-only:format=int8"
    if "vae" in str(given):
        assert method_in(tmp_path / "small" / "vae") == "lorc:bits=5,smallest=64"
        assert set(said.data["parts"][1]["formats"]) == {"int5_group"}


def method_in(home):
    with safe_open(str(next(home.glob("*.safetensors"))), "pt") as file:
        return json.loads(file.metadata()["sfumato"])["method"]


def test_methods_are_the_converts_that_pack():
    """Told by a class attribute; by what their files do it is found out here."""
    packing = {
        entry.id
        for entry in techniques("convert").values()
        if "pack_layers(" in (ROOT / entry.file).read_text()
    }
    assert set(methods()) == packing and len(packing) == 9


@pytest.mark.parametrize(
    "text, size", [("4GB", 4 * 10**9), ("1.5 GiB", 3 * 2**29), ("300", 300), ("2kb", 2000)]
)
def test_sizes(text, size):
    assert parse_size(text) == size
    with pytest.raises(BadInput):
        parse_size(f"-{text}")
