"""How many scenes of the Still Life world are rendered per second."""

from __future__ import annotations

from collections.abc import Callable

from harness import Options, Row, finish, interleave, machine, options, row
from sfumato.assets.still_life.render import MAPS, render
from sfumato.assets.still_life.sampling import sample_scene

CASES = {
    "128 px, picture": (16, 128, ("rgb",)),
    "128 px, all maps": (16, 128, MAPS),
    "512 px, picture": (2, 512, ("rgb",)),
}
"""Name -> scenes at once, side in pixels, maps."""
GPU_SCENES = 16
"""A GPU draws this many times more at once."""


def case(scenes: int, side: int, maps: tuple[str, ...], device: str) -> Callable[[], object]:
    drawn = [sample_scene(seed) for seed in range(scenes)]
    return lambda: render(drawn, size=side, maps=maps, device=device)


def measure(given: Options) -> list[Row]:
    more = GPU_SCENES if given.device.startswith("cuda") else 1
    counts = {name: scenes * more for name, (scenes, _, _) in CASES.items()}
    cases = {name: case(counts[name], side, maps, given.device) for name, (_, side, maps) in CASES.items()}
    seconds = interleave(cases, repeats=given.repeats)
    return [
        row(name, [counts[name] / s for s in taken], "scenes/s", headline=i == 0)
        for i, (name, taken) in enumerate(seconds.items())
    ]


def main() -> None:
    given = options(__doc__ or "")
    about = machine(given.device)
    finish("world", "Rendering the Still Life world", measure(given), about, given)


if __name__ == "__main__":
    main()
