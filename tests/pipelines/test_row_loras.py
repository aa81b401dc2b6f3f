"""LoRAs by the row: each image of a batch as if it were alone under its own, and factors under a budget of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import relative
from safetensors.torch import save_file
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.loras import Loras
from sfumato.pipelines.row_loras import LoraStore
from sfumato.pipelines.text_to_image import TextToImage

ROWS = ({"ink": 1.0}, {"oil": 0.6, "ink": -0.4}, {})
ENDS = {
    "sd": ("to_q", "to_k", "to_out.0", "conv1", "time_emb_proj", "proj_in"),
    "flux": ("to_q", "proj_mlp", "norm.linear", "add_k_proj", "x_embedder"),
}
ROUNDING = 2e-5
"""Two steps in float32: products of one row and of three are summed in another order."""


def write(net: torch.nn.Module, ends: tuple[str, ...], seed: int, rank: int, file: Path, part: str) -> Path:
    """Random factors, large enough to see, for the modules whose names end so."""
    rng, state = torch.Generator().manual_seed(seed), {}
    for name, module in net.named_modules():
        if name.endswith(ends) and hasattr(module, "weight"):
            weight = module.weight
            down = torch.randn(rank, *weight.shape[1:], generator=rng) / weight[0].numel() ** 0.5
            up = torch.randn(len(weight), rank, *[1] * (weight.ndim - 2), generator=rng) * 0.3
            state |= {f"{part}.{name}.lora_A.weight": down, f"{part}.{name}.lora_B.weight": up}
    assert state
    save_file(state, file)
    return file


@pytest.fixture(scope="module", params=["sd", "flux"])
def case(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    home = tmp_path_factory.mktemp(request.param)
    make = {"sd": tiny_models.stable_diffusion, "flux": tiny_models.flux}[request.param]
    folder = make(home / "model")
    model = open_model(folder)
    part = {"sd": "unet", "flux": "transformer"}[request.param]
    net, ends = model.parts[part].net, ENDS[request.param]
    files = {"ink": (ends, 1, 4), "oil": (ends[:3], 2, 7), "wax": (ends[1:], 3, 2)}
    return folder, {name: write(net, *how, home / f"{name}.safetensors", part) for name, how in files.items()}


def sampled(model: Any, count: int = 3, seed: int = 5) -> torch.Tensor:
    pipe = TextToImage(model)
    run = pipe.encode("a red cube", negative="a dog", width=64, height=64, steps=2, seed=seed, count=count)
    return pipe.sample(run)


def store_of(model: Any, files: dict[str, Path], budget: int = 2**31) -> LoraStore:
    store = LoraStore(model, budget)
    for name, file in files.items():
        store.add(name, file)
    return store


def test_each_row_is_its_own_run(case: tuple[Path, dict[str, Path]]) -> None:
    folder, files = case
    model, alone = open_model(folder), open_model(folder)
    loras, plain = Loras(alone), sampled(model)
    for name, file in files.items():
        loras.add(name, file)
    store = store_of(model, files)
    with store.rows(ROWS):
        batch = sampled(model)
    for image, row in enumerate(ROWS):
        loras.weigh(row)
        single = sampled(alone, 1, 5 + image)
        assert relative(batch[image : image + 1], single) < ROUNDING
        moved = float(relative(batch[image : image + 1], plain[image : image + 1]))
        assert moved > 0.01 if row else moved < ROUNDING
    assert torch.equal(sampled(model), plain), "the model is as it was"


def test_one_for_all_is_the_live_lora_to_the_bit(case: tuple[Path, dict[str, Path]]) -> None:
    folder, files = case
    model, other = open_model(folder), open_model(folder)
    loras, store = Loras(other), store_of(model, files)
    loras.add("oil", files["oil"])
    loras.weigh({"oil": 0.6})
    with store.rows([{"oil": 0.6}] * 3):
        assert torch.equal(sampled(model), sampled(other))
    with store.rows([{"oil": 0.0}, {}, {}]):
        assert torch.equal(sampled(model), sampled(open_model(folder)))


def test_text_encoders(tmp_path: Path) -> None:
    folder = tiny_models.stable_diffusion(tmp_path / "model")
    model, other = open_model(folder), open_model(folder)
    text = model.parts["text_encoder"].net
    file = write(text, ("q_proj", "fc1"), 4, 3, tmp_path / "words.safetensors", "text_encoder")
    loras, store = Loras(other), store_of(model, {"words": file})
    assert store.known["words"].parts == ("text_encoder",)
    loras.add("words", file)
    loras.weigh({"words": 0.9})
    with store.rows([{"words": 0.9}]):
        found = model.encode(["a red cube"], key="pos").embeds["text"]
    assert torch.equal(found, other.encode(["a red cube"], key="pos").embeds["text"])
    assert not torch.equal(found, model.encode(["a red cube"], key="pos").embeds["text"])


def test_the_budget_holds(case: tuple[Path, dict[str, Path]]) -> None:
    folder, files = case
    model = open_model(folder)
    sizes = {name: known.size for name, known in store_of(model, files).known.items()}
    assert all(0.5 * file.stat().st_size < sizes[name] < file.stat().st_size for name, file in files.items())
    budget = sum(sizes.values()) - 1
    store = store_of(model, files, budget)
    assert store.held == ("oil", "wax") and store.size <= budget and store.reads == 3
    with store.rows([{"oil": 1.0}]):
        pass
    assert store.held == ("wax", "oil") and store.reads == 3, "what is there is not read again"
    with store.rows([{"ink": 1.0}, {"oil": 1.0}]):
        assert set(store.held) == {"oil", "ink"} and store.reads == 4 and store.size <= budget
    with pytest.raises(BadInput, match="the budget is"), store.rows([dict.fromkeys(files, 1.0)]):
        pass


def test_what_is_refused(case: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    folder, files = case
    store = store_of(open_model(folder), files)
    for rows, told in (
        ([{"tar": 1.0}], "'tar' was not added"),
        ([{"ink": float("nan")}], "weight of 'ink' is nan"),
        ([], "no row is named"),
    ):
        with pytest.raises(BadInput, match=told), store.rows(rows):
            pass
    with pytest.raises(BadInput, match="is there already"):
        store.add("ink", files["ink"])
    with pytest.raises(BadInput, match="must be 1 or more"):
        LoraStore(store.model, 0)
    with store.rows([{"ink": 1.0}, {}]), pytest.raises(BadInput, match="can't tell them apart"):
        sampled(store.model, 3)
