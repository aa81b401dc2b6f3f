"""`sfumato replay`: the same bytes, or what differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_same_bytes(generate, sfumato, suffix):
    generate("a cube", "--sampler", "euler-ancestral", "-o", f"a{suffix}")
    said = sfumato("replay", f"a{suffix}", "-o", f"b{suffix}")
    assert said.code == 0 and "byte for byte" in said.out, said
    assert Path(f"a{suffix}").read_bytes() == Path(f"b{suffix}").read_bytes()


@pytest.mark.parametrize("batch", ["1", "2"])
def test_one_of_many(generate, sfumato, batch):
    generate("a cube", "--count", "3", "--batch", batch, "-o", "a/")
    for i in range(3):
        data = sfumato("replay", f"a/000{i}.png", "--check", "--json").data
        assert data["same_bytes"] and data["max_difference"] == 0 and "output" not in data


def test_default_output_is_a_new_folder(generate, sfumato):
    generate("a cube", "-o", "a.jpg")
    path = Path(sfumato("replay", "a.jpg", "--json").data["output"])
    assert (
        path.parts[0] == "out" and path.suffix == ".jpg" and path.read_bytes() == Path("a.jpg").read_bytes()
    )


def test_any_name_and_any_target(generate, sfumato):
    generate("a cube", "--count", "2", "-o", "a/")
    Path("a/0001.png").rename("a/picture.dat")
    assert sfumato("replay", "a/picture.dat", "-o", "b.webp").out.startswith(
        "b.webp: the same, byte for byte"
    )
    assert Image.open("b.webp").format == "WEBP"
    Image.open("a/picture.dat").save("c.bmp")
    assert sfumato("replay", "c.bmp").code == 2


def rewrite(path: str, change) -> None:
    """The same picture with a changed record."""
    image = Image.open(path)
    record = json.loads(image.info["sfumato"])
    change(record)
    info = PngImagePlugin.PngInfo()
    info.add_text("sfumato", json.dumps(record))
    image.save(path, pnginfo=info)


def test_other_versions_are_named(generate, sfumato):
    generate("a cube", "-o", "a.png")
    rewrite("a.png", lambda record: record["versions"].update(torch="1.0"))
    said = sfumato("replay", "a.png", "--check")
    assert said.code == 0 and "the same pixels" in said.out and "version of torch: 1.0 then" in said.err


def test_other_pixels_are_measured(generate, sfumato):
    generate("a cube", "--seed", "1", "-o", "a.png")
    rewrite("a.png", lambda record: record["request"].update(seed=2))
    said = sfumato("replay", "a.png", "--check", "--json")
    assert said.code == 1 and said.data["max_difference"] > 0 and not said.data["same_bytes"]


def test_moved_weights(generate, sfumato, tiny):
    generate("a cube", "-o", "a.png")
    rewrite("a.png", lambda record: record["request"].update(model="/gone"))
    assert sfumato("replay", "a.png", "--check").code == 2
    assert sfumato("replay", "a.png", "--check", "-m", tiny).code == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda r: r.update(schema=99), "newer sfumato"),
        (lambda r: r.update(schema="x"), "no known schema"),
        (lambda r: r.update(task="sculpt"), "can't be replayed"),
        (lambda r: r.update(image={"index": 7}), "image 7 of 1"),
        (lambda r: r.pop("image"), "damaged record"),
        (lambda r: r["request"].update(steps=-1), "steps: -1 must be at least 1"),
        (lambda r: r["request"].update(evil=1), "evil"),
        (lambda r: r["request"].update(techniques=[{"id": "os.system"}]), "os.system"),
    ],
)
def test_damaged_records(generate, sfumato, change, sentence):
    generate("a cube", "-o", "a.png")
    rewrite("a.png", change)
    said = sfumato("replay", "a.png")
    assert said.code == 2 and sentence in said.err and len(said.err.strip().splitlines()) == 1
    assert not Path("out").exists()
