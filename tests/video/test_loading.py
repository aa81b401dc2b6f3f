"""The door to models of both kinds, and what a length must be."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.loading import open_model as open_image_model
from sfumato.video.lengths import check_frames
from sfumato.video.loading import families, open_clip_model, open_model
from sfumato.video.protocols import Lengths


def test_no_pipeline_belongs_to_two_families() -> None:
    names = [name for family in families() for name in family.pipelines]
    assert len(set(names)) == len(names)
    assert {"FluxPipeline", "WanPipeline", "StableVideoDiffusionPipeline"} <= set(names)


def test_images_open_too_but_are_no_clips(tmp_path: Path) -> None:
    folder = tiny_models.stable_diffusion(tmp_path)
    assert open_model(folder).family == "sd"
    with pytest.raises(BadInput, match="makes pictures"):
        open_clip_model(folder)


def test_the_door_of_images_knows_no_clips(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    with pytest.raises(BadInput, match="'WanPipeline', which is not supported"):
        open_image_model(tmp_path)


@pytest.mark.parametrize(
    ("frames", "near"), [(2, "1 or 5"), (80, "77 or 81"), (0, "1 or more"), (2.5, "whole")]
)
def test_lengths(frames: int, near: str) -> None:
    check_frames(81, Lengths(4, 81, 16))
    check_frames(2, Lengths(1, 16, 8))
    with pytest.raises(BadInput, match=near):
        check_frames(frames, Lengths(4, 81, 16))
