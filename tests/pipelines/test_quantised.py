"""Folders with packed weights: written layer by layer, opened without the original, checked like any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors import safe_open
from sfumato.kernels.quant.packed import QuantConv2d, QuantLinear
from sfumato.pipelines.converts.dgq import Dgq
from sfumato.pipelines.converts.lorc import Lorc
from sfumato.pipelines.converts.squeeze import Squeeze
from sfumato.pipelines.converts.svdquant import SvdQuant
from sfumato.pipelines.converts.weight_only import WeightOnly
from sfumato.pipelines.converts.winograd import Winograd
from sfumato.pipelines.errors import BadInput, BadWeights
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.quantised import networks, quantise
from sfumato.pipelines.text_to_image import TextToImage
from sfumato.pipelines.weights import read_header, tensor_hash

FAMILIES = {
    "sd": (tiny_models.stable_diffusion, "unet"),
    "flux": (tiny_models.flux, "transformer"),
    "pixart": (lambda folder: tiny_models.pixart(folder, "PixArtSigmaPipeline"), "transformer"),
}
CONVERTS = {
    "nf4": WeightOnly("nf4", smallest=64),
    "int8": WeightOnly("int8", smallest=64),
    "lorc": Lorc(rank=2, smallest=64),
    "squeeze": Squeeze(smallest=64, outliers=0.02),
    "dgq": Dgq(group=8, smallest=64),
    "svdquant": SvdQuant(rank=2, smallest=64),
}


def pixels(model: Any) -> torch.Tensor:
    make = TextToImage(model, guidance=Cfg(1.0))
    return make("a red cube", width=64, height=64, steps=2, seed=7).pixels


def packed(net: Any) -> dict[str, Any]:
    return {n: m for n, m in net.named_modules() if isinstance(m, QuantLinear | QuantConv2d)}


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("sd", "nf4"),
        ("flux", "svdquant"),
        *[pytest.param("sd", m, marks=pytest.mark.slow) for m in CONVERTS if m != "nf4"],
        pytest.param("pixart", "lorc", marks=pytest.mark.slow),
    ],
)
def test_written_and_opened(family: str, method: str, tmp_path: Path) -> None:
    make, part = FAMILIES[family]
    folder, output = make(tmp_path / "plain"), tmp_path / "packed"
    others = [p for p in networks(folder) if p != part]
    converts = {part: CONVERTS[method], **{p: WeightOnly("int8", smallest=64) for p in others}}
    written = quantise(folder, output, converts, said=dict.fromkeys(converts, method))
    assert [w.part for w in written] == [part, *others] and all(
        w.layers and w.after < w.before for w in written
    )
    ours = open_model(output)
    assert len(packed(ours.denoise.net)) == written[0].layers
    plain = open_model(folder)
    assert ours.info()["parameters"] == plain.info()["parameters"]
    for name, opened in plain.parts.items():
        converts[name](opened.net)
        wanted, found = opened.net.state_dict(), ours.parts[name].net.state_dict()
        assert set(wanted) == set(found)  # streaming and converting in memory are the same
        assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert torch.allclose(pixels(ours), pixels(plain), atol=1e-5)
    assert ours.info()["hashes"] == {p.name: tensor_hash(p) for p in output.iterdir() if p.name in ours.parts}
    assert not list(tmp_path.glob(".*"))


def test_in_half_precision(tmp_path: Path) -> None:
    folder = tiny_models.flux(tmp_path / "plain")
    quantise(
        folder,
        tmp_path / "packed",
        {"transformer": CONVERTS["lorc"], "text_encoder_2": CONVERTS["int8"]},
        said={"transformer": "", "text_encoder_2": ""},
    )
    model = open_model(tmp_path / "packed", dtype=torch.bfloat16)
    net = model.denoise.net
    assert net.dtype == torch.bfloat16 and next(iter(packed(net).values())).weight.dtype == torch.int8
    assert bool(torch.isfinite(pixels(model)).all())


def test_the_header_says_it(tmp_path: Path) -> None:
    folder = tiny_models.flux(tmp_path / "plain")
    quantise(
        folder,
        tmp_path / "packed",
        {"transformer": SvdQuant(rank=2, smallest=64)},
        said={"transformer": "svdquant"},
    )
    file = next((tmp_path / "packed" / "transformer").glob("*.safetensors"))
    read_header(file)
    with safe_open(str(file), "pt") as stream:
        about = json.loads(stream.metadata()["_quantization_metadata"])
        name, spec = next(iter(about["layers"].items()))
        assert about["format_version"] == "1.0" and spec["format"] == "int4_group"
        assert spec["activation"] == {"bits": 4, "group_size": 64}
        assert {f"{name}.weight", f"{name}.weight_scale", f"{name}.low_up"} <= set(stream.keys())
    assert json.loads((tmp_path / "packed" / "transformer" / "config.json").read_text())


def test_refused(tmp_path: Path) -> None:
    folder = tiny_models.flux(tmp_path / "plain")
    small = {"transformer": WeightOnly(smallest=64)}
    with pytest.raises(BadInput, match="has no network 'unet'; it has"):
        quantise(folder, tmp_path / "x", {"unet": WeightOnly()}, said={"unet": ""})
    with pytest.raises(BadInput, match=r"budget: 100 bytes, and transformer would take"):
        quantise(folder, tmp_path / "x", small, said={"transformer": ""}, budget=100)
    with pytest.raises(BadInput, match="no checkpoint holds"):
        quantise(
            tiny_models.stable_diffusion(tmp_path / "sd"),
            tmp_path / "x",
            {"unet": Winograd(8)},
            said={"unet": ""},
        )
    assert not (tmp_path / "x").exists() and not list(tmp_path.glob(".*"))
    quantise(folder, tmp_path / "x", small, said={"transformer": ""})
    with pytest.raises(BadInput, match="exists; remove it"):
        quantise(folder, tmp_path / "x", small, said={"transformer": ""})
    with pytest.raises(BadInput, match="is packed already"):
        quantise(tmp_path / "x", tmp_path / "y", small, said={"transformer": ""})


@pytest.mark.parametrize(
    "old, new, said",
    [
        ('"nf4"', '"nf5"', "no format that is known"),
        ('"layers"', '"strata"', "cannot be read"),
        ('"group_size\\": 64', '"group_size\\": 32', "expected"),
        ('proj_mlp\\": {', 'proj_xyz\\": {', "proj_xyz"),
    ],
)
def test_damaged(old: str, new: str, said: str, tmp_path: Path) -> None:
    folder = tiny_models.flux(tmp_path / "plain")
    quantise(folder, tmp_path / "x", {"transformer": WeightOnly(smallest=64)}, said={"transformer": ""})
    file = next((tmp_path / "x" / "transformer").glob("*.safetensors"))
    data = file.read_bytes()
    old, new = (text.replace('"', '\\"').replace('\\\\"', '\\"') for text in (old, new))
    assert data.count(old.encode()) and len(old) == len(new)
    file.write_bytes(data.replace(old.encode(), new.encode()))
    with pytest.raises(BadWeights, match=said):
        open_model(tmp_path / "x")


MEMORY = """
import resource, sys, threading, time
from pathlib import Path
import psutil, torch
from sfumato.pipelines.converts.weight_only import WeightOnly
from sfumato.pipelines.families._packed import blank
from sfumato.pipelines.quantised import quantise
import diffusers
torch.set_num_threads(1)
folder, output, tiny = map(Path, sys.argv[1:])
blank(folder / "transformer", "diffusers.FluxTransformer2DModel")
quantise(tiny, output / "tiny", {"transformer": WeightOnly("int4", 64)}, said={"transformer": ""})
me, most, done = psutil.Process(), 0, False
before = me.memory_info().rss
def watch():
    global most
    while not done:
        most = max(most, me.memory_info().rss - before)
        time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
written = quantise(folder, output / "large", {"transformer": WeightOnly("int4")}, said={"transformer": ""})
done = True; thread.join()
print(most, written[0].after, written[0].before)
"""


@pytest.mark.slow
def test_memory(tmp_path: Path) -> None:
    """Beside what the libraries take a layer and what it is made of, not the output, nor the input."""
    import diffusers

    torch.manual_seed(0)
    small = {"num_layers": 4, "num_single_layers": 16, "attention_head_dim": 64, "num_attention_heads": 12}
    net = diffusers.FluxTransformer2DModel(
        in_channels=16, joint_attention_dim=64, pooled_projection_dim=64, axes_dims_rope=(16, 24, 24), **small
    )
    for name in ("plain", "tiny"):
        tiny_models.flux(tmp_path / name)
    net.save_pretrained(tmp_path / "plain" / "transformer")
    del net
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, *(str(tmp_path / name) for name in ("plain", "out", "tiny"))],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    most, after, before = (int(n) for n in run.stdout.split())
    print(most / after, after, before)
    assert after < before / 2.5 and most < 0.6 * after
