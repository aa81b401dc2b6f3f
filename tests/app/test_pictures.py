"""Pictures on the command line: where a run starts, what is kept, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from sfumato.pipelines.from_image import FromImage
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.text_to_image import TextToImage

SIZE = 64


@pytest.fixture(autouse=True)
def files(own_folder: Path) -> None:
    """photo.png, and mask.png, whose left half is repainted."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save("photo.png")
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:, : SIZE // 2] = 255
    Image.fromarray(mask).save("mask.png")


def pixels(file: str) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def test_it_starts_from_the_picture(sfumato, tiny) -> None:
    """As from Python, at the picture's size and the strength that was asked for."""
    said = sfumato("generate", "x", "-m", tiny, "--steps", "4", "--seed", "3", "-i", "photo.png", "--strength", "0.5",
                   "-o", "a.png", "--json")  # fmt: skip
    assert said.code == 0, said.err
    assert (said.data["request"]["width"], said.data["request"]["height"]) == (SIZE, SIZE)
    image = torch.from_numpy(pixels("photo.png")).permute(2, 0, 1)[None] / 255
    model = open_model(tiny)
    made = TextToImage(model, start=FromImage(image, 0.5))("x", steps=4, seed=3).images[0]
    assert abs(pixels("a.png") - np.asarray(made).astype(int)).max() <= 1
    plain = TextToImage(model)("x", steps=4, seed=3, width=SIZE, height=SIZE).images[0]
    assert abs(pixels("a.png") - np.asarray(plain).astype(int)).max() > 8


def test_what_the_mask_keeps_is_kept_bit_for_bit(generate) -> None:
    assert generate("x", "-i", "photo.png", "--mask", "mask.png", "--strength", "1", "-o", "a.png").code == 0
    same = pixels("a.png") == pixels("photo.png")
    assert same[:, SIZE // 2 :].all()
    assert not same[:, : SIZE // 2].all()


def test_an_inpainting_network_looks_at_both(sfumato, tmp_path: Path) -> None:
    folder = tiny_models.stable_diffusion(
        tmp_path / "inpaint", pipeline="StableDiffusionInpaintPipeline", unet={"in_channels": 9}
    )
    ask = (
        "generate",
        "x",
        "-m",
        folder,
        "--steps",
        "2",
        "--seed",
        "1",
        "-i",
        "photo.png",
        "--mask",
        "mask.png",
    )
    said = sfumato(*ask, "-o", "a.png")
    assert said.code == 0, said.err
    image = torch.from_numpy(pixels("photo.png")).permute(2, 0, 1)[None] / 255
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., : SIZE // 2] = 1
    make = TextToImage(
        open_model(folder), pictures={"image": image, "mask": mask}, start=FromImage(image, 1.0, mask)
    )
    assert abs(pixels("a.png") - np.asarray(make("x", steps=2, seed=1).images[0]).astype(int)).max() <= 1


def test_models_say_which_picture_is_missing_and_need_no_strength_to_look(sfumato, tmp_path: Path) -> None:
    """FLUX Fill needs picture and mask; Kontext looks at a picture and starts from it only at a strength."""
    fill = tiny_models.flux(tmp_path / "fill", pipeline="FluxFillPipeline", channels=384)
    ask = ("generate", "x", "--steps", "2", "--seed", "1", "-i", "photo.png", "-o", "a.png", "-m")
    assert "needs the picture 'mask'; give --mask FILE" in sfumato(*ask, fill).err
    assert sfumato(*ask, fill, "--mask", "mask.png").code == 0
    kontext = tiny_models.flux(tmp_path / "kontext", pipeline="FluxKontextPipeline", channels=64)
    image = torch.from_numpy(pixels("photo.png")).permute(2, 0, 1)[None] / 255
    for strength, start in (((), None), (("--strength", "0.5"), FromImage(image, 0.5))):
        said = sfumato(*ask, kontext, *strength)
        assert said.code == 0, said.err
        make = TextToImage(open_model(kontext), pictures={"image": image}, start=start)
        made = np.asarray(make("x", width=SIZE, height=SIZE, steps=2, seed=1).images[0]).astype(int)
        assert abs(pixels("a.png") - made).max() <= 1


def test_another_size_scales_and_cuts(generate) -> None:
    Image.new("RGB", (200, 100), (10, 200, 30)).save("wide.png")
    said = generate("x", "-i", "wide.png", "-o", "a.png")
    assert said.code == 0, said.err
    assert Image.open("a.png").size == (SIZE, SIZE)


def test_replay_needs_the_same_picture(generate, sfumato) -> None:
    assert generate("x", "-i", "photo.png", "--mask", "mask.png", "-o", "a.png").code == 0
    said = sfumato("replay", "a.png", "-o", "b.png")
    assert said.code == 0, said
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    Image.open("photo.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save("photo.png")
    said = sfumato("replay", "a.png", "--check")
    assert said.code == 1
    assert "pictures: not the same as then" in said.err
    Path("photo.png").unlink()
    said = sfumato("replay", "a.png", "--check")
    assert said.code == 2
    assert said.err.startswith("image: ")


def test_a_photo_held_sideways_is_turned(generate) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its right side
    Image.open("photo.png").save("turned.png", exif=exif)
    ask = ("--strength", "0.5", "--seed", "1", "--steps", "2")
    generate("x", "-i", "turned.png", *ask, "-o", "a.png")
    Image.open("photo.png").transpose(Image.Transpose.ROTATE_270).save("upright.png")
    generate("x", "-i", "upright.png", *ask, "-o", "b.png")
    assert (pixels("a.png") == pixels("b.png")).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mask", "mask.png"), "mask: 'mask.png' needs a picture"),
        (("--strength", "0.5"), "strength: 0.5 needs a picture"),
        (("-i", "nowhere.png"), "does not exist"),
        (("-i", "broken.png"), "is not an image"),
        (("-i", "photo.png", "--mask", "black.png"), "black all over"),
        (("-i", "photo.png", "--strength", "0.1"), "less than one"),
        (("-i", "photo.png", "--strength", "2"), "strength"),
        (("--picture", "control=photo.png"), "is no picture that"),
        (("--picture", "image=photo.png"), "has an option of its own"),
        (("--picture", "photo.png"), "is not NAME=FILE"),
        (("--picture", "a=photo.png", "--picture", "a=mask.png"), "a second time"),
    ],
)
def test_refusals(generate, arguments, message) -> None:
    Path("broken.png").write_bytes(b"no picture")
    Image.new("L", (SIZE, SIZE)).save("black.png")
    said = generate("x", *arguments, "-o", "new/a.png")
    assert said.code == 2, said
    assert message in said.err, said.err
    assert not list(Path().rglob("a.png"))


def test_a_photo_of_any_size(generate, sfumato, tiny) -> None:
    """Sides become multiples that the model takes; far more pixels than the model's own become as many as those."""
    for size, made in {(70, 61): (72, 64), (400, 200): (88, 48), (128, 125): (128, 128)}.items():
        Image.new("RGB", size, "teal").save("own.png")
        said = sfumato("generate", "x", "-m", tiny, "--steps", "2", "-i", "own.png", "-o", "a.png")
        assert said.code == 0 and Image.open("a.png").size == made
        assert f"image: {size[0]}x{size[1]} pixels, made {made[0]}x{made[1]}; --size" in said.err
    assert "--size asks" not in generate("x", "-i", "photo.png", "-o", "b.png").err
