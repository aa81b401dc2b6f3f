"""A bridge on the command line: what it makes, what the record keeps of it, what is refused."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sfumato.pipelines.bridges import LORAS, WEIGHTS, open_bridge, with_bridge
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.text_to_image import TextToImage
from tiny_bridges import bridge_folder


@pytest.fixture(autouse=True)
def bridge(own_folder) -> None:
    bridge_folder(own_folder / "bridge", 24)


def test_the_bridge_reads_the_prompt(generate, sfumato, tiny) -> None:
    said = generate("a red cube", "--bridge", "bridge", "--seed", "3", "-o", "a.png", "--json")
    assert said.code == 0, said.err
    assert {"language_model", "text_adapter", "unet"} <= said.data["model"]["hashes"].keys()
    model = with_bridge(open_model(tiny), open_bridge("bridge"))
    made = TextToImage(model)("a red cube", width=64, height=64, steps=2, seed=3).images[0]
    assert made.tobytes() == Image.open("a.png").convert("RGB").tobytes()
    assert sfumato("replay", "a.png", "--check").code == 0


def test_another_bridge_is_noticed(generate, sfumato, own_folder) -> None:
    assert generate("x", "--bridge", "bridge", "-o", "a.png").code == 0
    file = own_folder / "bridge/adapter" / WEIGHTS
    save_file({name: torch.zeros_like(w) for name, w in load_file(file).items()}, file)
    said = sfumato("replay", "a.png", "--check")
    assert said.code != 0 and "weights" in said.err


def test_a_bridge_with_loras_and_weights_that_come_and_go(generate, own_folder) -> None:
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.weight"
    factors = {name.format("A"): torch.ones(4, 16), name.format("B"): torch.ones(16, 4)}
    assert generate("x", "--bridge", "bridge", "--seed", "3", "-o", "plain.png").code == 0
    save_file(factors, own_folder / "bridge" / LORAS)
    for file, given in (("held.png", ()), ("moved.png", ("--offload", "0.004"))):
        said = generate("x", "--bridge", "bridge", "--seed", "3", *given, "-o", file)
        assert said.code == 0, said.err
    plain, held, moved = (Image.open(f"{file}.png").tobytes() for file in ("plain", "held", "moved"))
    assert plain != held == moved


def test_refused(generate, own_folder) -> None:
    said = generate("x", "--bridge", "nowhere")
    assert said.code == 2 and "'nowhere' is no folder with a bridge.json" in said.err
    config = own_folder / "bridge/adapter/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"out_dim": 25}))
    said = generate("x", "--bridge", "bridge")
    assert said.code != 0 and "ff2.net.2" in said.err
