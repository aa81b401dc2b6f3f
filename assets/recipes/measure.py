"""What a generator is worth: held-out captions in, pictures out, read by the judge.

A caption's words are compared with what the judge reads. Things are matched to the caption's things so that as many
words as possible agree; "all right" means every word that the scene's canonical caption holds about shape, colour,
setting and relation, and the number of things.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import permutations
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

from ..still_life.grammar import caption
from ..still_life.judge import Reading, Seen, read, related
from ..still_life.sampling import sample_scene
from ..still_life.scene import Scene

Generate = Callable[[Sequence[str], Sequence[int]], Tensor]
"""(prompts, seeds) -> images [B,3,H,W] in 0..1."""
FIRST_SEED = 4_000_000


def match(scene: Scene, reading: Reading) -> list[Seen | None]:
    """The read thing that stands for each thing of the scene, chosen for the greatest agreement."""
    found: list[Seen | None] = [*reading.things, *[None] * len(scene.things)]

    def score(order: Iterable[Seen | None]) -> float:
        pairs = [(s, t) for s, t in zip(order, scene.things, strict=True) if s]
        return sum((s.shape == t.shape) + (s.color == t.color) + 0.1 * (s.size == t.size) for s, t in pairs)

    return list(max(permutations(found, len(scene.things)), key=score))


def judged(scene: Scene, reading: Reading | None) -> dict[str, list[bool]]:
    """Right or wrong, word by word, of one picture against the scene it was asked to show."""
    if reading is None:
        words = {"shape": len(scene.things), "color": len(scene.things), "relation": len(scene.relations)}
        return {k: [False] * n for k, n in words.items()} | {"setting": [False], "all": [False]}
    seen = match(scene, reading)
    both = list(zip(seen, scene.things, strict=True))
    out = {
        "shape": [s is not None and s.shape == t.shape for s, t in both],
        "color": [s is not None and s.color == t.color for s, t in both],
        "setting": [reading.setting == scene.setting],
        "relation": [_holds(seen, r.subject, r.relation, r.object) for r in scene.relations],
    }
    right = all(all(v) for v in out.values()) and len(reading.things) == len(scene.things)
    return out | {"all": [right]}


def _holds(seen: list[Seen | None], subject: int, relation: str, anchor: int) -> bool:
    a, b = seen[subject], seen[anchor]
    return a is not None and b is not None and related(a, relation, b)


def bars(generate: Generate, *, split: str = "test", count: int = 200, batch: int = 20) -> dict[str, float]:
    """Share right per kind of word over `count` held-out captions of a split."""
    scenes = [sample_scene(FIRST_SEED + i, split=split) for i in range(count)]
    tally: dict[str, list[bool]] = {}
    for at in range(0, count, batch):
        piece = scenes[at : at + batch]
        images = generate([caption(s) for s in piece], [at + i for i in range(len(piece))])
        for scene, reading in zip(piece, read(images), strict=True):
            for word, results in judged(scene, reading).items():
                tally.setdefault(word, []).extend(results)
    return {word: round(sum(results) / max(1, len(results)), 4) for word, results in tally.items()}


def sheet(images: Tensor, texts: Sequence[str], file: Path, *, columns: int = 6) -> None:
    """A contact sheet of pictures [B,3,H,W] in 0..1 with their captions below."""
    count, side, foot = len(images), images.shape[-1], 40
    rows = -(-count // columns)
    page = Image.new("RGB", (columns * side, rows * (side + foot)), "white")
    draw = ImageDraw.Draw(page)
    for i, (image, text) in enumerate(zip(images, texts, strict=True)):
        x, y = i % columns * side, i // columns * (side + foot)
        array = image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
        page.paste(Image.fromarray(array), (x, y))
        for line in range(3):
            draw.text((x + 2, y + side + 12 * line), text[line * 21 : (line + 1) * 21], fill="black")
    file.parent.mkdir(parents=True, exist_ok=True)
    page.save(file)


def prompts(count: int, *, split: str = "test", seed: int | None = 0) -> list[str]:
    """Held-out captions, in varied wording unless seed is None."""
    scenes = [sample_scene(FIRST_SEED + i, split=split) for i in range(count)]
    return [caption(s, None if seed is None else seed + i) for i, s in enumerate(scenes)]
