"""JSON in model folders is distrusted: whatever stands in it, opening ends soon, in a model or in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import original_names as original
import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st
from sfumato.pipelines.errors import BadWeights, SfumatoError
from sfumato.pipelines.loading import families, open_model

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["diffusers", "transformers", "UNet2DConditionModel", "CLIPTextModel", "os", "system"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
PARTS = ("_class_name", "unet", "vae", "text_encoder", "tokenizer", "scheduler", "feature_extractor")
CONFIGS = {
    "unet/config.json": (
        "block_out_channels",
        "layers_per_block",
        "down_block_types",
        "attention_head_dim",
        "act_fn",
    ),
    "text_encoder/config.json": ("hidden_size", "num_hidden_layers", "hidden_act", "vocab_size", "dtype"),
    "scheduler/scheduler_config.json": (
        "beta_start",
        "beta_schedule",
        "num_train_timesteps",
        "prediction_type",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.stable_diffusion(tmp_path_factory.mktemp("hostile") / "sd")


@pytest.fixture(scope="module")
def single(folder: Path) -> Path:
    return original.save(
        folder.with_name("v1.safetensors"),
        original.under(original.LDM, original.ldm_unet(original.weights(folder, "unet"), 1)),
        original.under("first_stage_model.", original.ldm_vae(original.weights(folder, "vae"))),
        original.under(
            "cond_stage_model.transformer.", original.clip(original.weights(folder, "text_encoder"))
        ),
    )


def attempt(folder: Path, file: str, changes: dict[str, Any], single: Path | None = None) -> None:
    """Open with changes to one JSON file, which is put back afterwards."""
    target = folder / file
    before = target.read_text()
    target.write_text(json.dumps({**json.loads(before), **changes}))
    try:
        open_model(single or folder, parts=folder if single else None)
    except SfumatoError as error:
        assert "\n" not in str(error) and len(str(error)) < 900
    finally:
        target.write_text(before)


@settings(max_examples=60, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(PARTS), VALUES, min_size=1, max_size=2))
def test_any_index(folder: Path, changes: dict[str, Any]) -> None:
    attempt(folder, "model_index.json", changes)


@settings(max_examples=40, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(PARTS), VALUES, min_size=1, max_size=2))
def test_any_index_of_parts(folder: Path, single: Path, changes: dict[str, Any]) -> None:
    attempt(folder, "model_index.json", changes, single)


@settings(max_examples=60, deadline=None)
@given(
    place=st.sampled_from([(file, name) for file, names in CONFIGS.items() for name in names]), value=VALUES
)
def test_any_config(folder: Path, place: tuple[str, str], value: Any) -> None:
    attempt(folder, place[0], {place[1]: value})


@given(value=VALUES)
def test_no_family_minds_an_odd_name(value: Any) -> None:
    for family in families():
        assert family.recognise({"_class_name": value}) in (True, False)


@pytest.mark.parametrize("parts", [False, True], ids=["folder", "parts"])
def test_endless_networks(folder: Path, single: Path, tmp_path: Path, parts: bool) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    file = copy / "unet/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "layers_per_block": 10**12}))
    with pytest.raises(BadWeights, match="wants layers_per_block = 1000000000000; at most 1000 are built"):
        open_model(single if parts else copy, parts=copy if parts else None)
