"""Prompts of Qwen-Image-Edit, which its text encoder reads together with the pictures to edit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ._codecs import StillCodec
from ._parts import load_processor

PICTURES = ("image", "image_2", "image_3")
"""In the order in which a prompt counts them; their latents go by the same names."""
TOKENS = 1024
SHOWN = "<|vision_start|><|image_pad|><|vision_end|>"
PAD = "<|image_pad|>"
AREAS = {"QwenImageEditPipeline": (1024**2, 1024**2), "QwenImageEditPlusPipeline": (384**2, 1024**2)}
"""Pixels of a picture as the text encoder and as the network see it."""


@dataclass(frozen=True)
class Editor:
    """`ids` makes the embeds that wait for pictures, a call those of both."""

    pipe: Any
    shrink: Any
    """The text encoder's processor of pictures."""
    codec: StillCodec

    @property
    def pictures(self) -> tuple[str, ...]:
        """All that the model can take; the first edition takes one."""
        return PICTURES if self._numbered else PICTURES[:1]

    @property
    def _numbered(self) -> bool:
        return SHOWN not in self.pipe.prompt_template_encode

    def ids(self, prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
        """Tokens of the prompts and of what follows them, `ids` and `mask` [B,L]."""
        tail = self.pipe.prompt_template_encode.partition("{}")[2]
        found = self.pipe.tokenizer(
            [prompt + tail for prompt in prompts],
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=TOKENS,
            return_tensors="pt",
        )
        return {"ids": found.input_ids, "mask": found.attention_mask}

    def __call__(self, embeds: Mapping[str, Tensor], pictures: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        seen_area, kept_area = AREAS[type(self.pipe).__name__]
        shots = {name: _images(pictures[name]) for name in PICTURES if name in pictures}
        rows = max(len(embeds["ids"]), *(len(images) for images in shots.values()))
        seen = [
            self._sized(images[row % len(images)], seen_area)
            for row in range(rows)
            for images in shots.values()
        ]
        text = self._read(embeds["ids"], embeds["mask"], seen, len(shots), rows)
        latents = {
            name: self.codec.encode(_pixels([self._sized(image, kept_area) for image in images]))
            for name, images in shots.items()
        }
        return {**text, **latents}

    def _read(
        self, ids: Tensor, mask: Tensor, seen: list[Image.Image], each: int, rows: int
    ) -> dict[str, Tensor]:
        """What the text encoder makes of the prompts and, row by row, of `each` pictures."""
        pipe, encoder = self.pipe, self.pipe.text_encoder
        found = self.shrink(images=seen, return_tensors="pt").to(encoder.device)
        cells = (found["image_grid_thw"][:each].prod(-1) // self.shrink.merge_size**2).tolist()
        before = pipe.tokenizer(self._opening(cells), return_tensors="pt").input_ids
        ids = torch.cat([before.expand(rows, -1), ids.expand(rows, -1)], dim=1).to(encoder.device)
        mask = torch.cat([torch.ones_like(before).expand(rows, -1), mask.expand(rows, -1)], dim=1)
        states = encoder(
            input_ids=ids,
            attention_mask=mask.to(encoder.device),
            pixel_values=found["pixel_values"],
            image_grid_thw=found["image_grid_thw"],
            # without it the pictures' tokens get no rows and columns, which training gave them
            mm_token_type_ids=(ids == encoder.config.image_token_id).int(),
            output_hidden_states=True,
        ).hidden_states[-1]
        start = pipe.prompt_template_encode_start_idx
        text, mask = states[:, start:], mask[:, start:]
        return {"text": text} if bool(mask.all()) else {"text": text, "mask": mask.to(text.device)}

    def _opening(self, cells: Sequence[int]) -> str:
        """The template up to the prompt, with as many places as each picture has tokens."""
        head = self.pipe.prompt_template_encode.partition("{}")[0].removesuffix(SHOWN)
        for i, n in enumerate(cells):
            head += (f"Picture {i + 1}: " if self._numbered else "") + SHOWN.replace(PAD, PAD * n)
        return str(head)

    def _sized(self, image: Image.Image, area: int) -> Image.Image:
        """The picture at its own ratio with about so many pixels, sides in 32 px."""
        ratio = image.width / image.height
        width = math.sqrt(area * ratio)
        height, width = (round(side / 32) * 32 for side in (width / ratio, width))
        resized: Image.Image = self.pipe.image_processor.resize(image, height, width)
        return resized


def load_shrinker(folder: Path) -> Any:
    """The part for pictures of the folder's processor; the part for videos, which is not needed, wants torchvision."""
    from transformers import Qwen2VLImageProcessor

    return load_processor(folder, "processor", Qwen2VLImageProcessor)


def _images(picture: Tensor) -> list[Image.Image]:
    data = (picture.cpu() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(row) for row in data]


def _pixels(images: Sequence[Image.Image]) -> Tensor:
    """[B,3,H,W] in 0..1."""
    rows = [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in images]
    shape = (len(images), images[0].height, images[0].width, 3)
    return torch.stack(rows).reshape(shape).permute(0, 3, 1, 2) / 255
