"""The phrases of the Still Life world: one table per kind, the canonical phrase first."""

from __future__ import annotations

from .camera import VIEWS
from .scene import COLORS

NOUNS: dict[str, tuple[str, ...]] = {
    "sphere": ("sphere", "ball"),
    "cube": ("cube", "box"),
    "cylinder": ("cylinder",),
    "cone": ("cone",),
    "torus": ("torus", "ring", "donut"),
    "capsule": ("capsule", "pill"),
    "pyramid": ("pyramid",),
    "mug": ("mug", "cup"),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "big", "huge"),
}
MATERIAL_WORDS: dict[str, tuple[str, ...]] = {
    "matte": ("matte", "dull"),
    "shiny": ("shiny", "glossy", "polished"),
    "metal": ("metal", "metallic"),
}
RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "in front of": ("in front of", "before"),
    "behind": ("behind", "in back of"),
    "on top of": ("on top of", "on", "resting on", "standing on"),
}
INVERSE: dict[str, str] = {
    "left of": "right of",
    "right of": "left of",
    "in front of": "behind",
    "behind": "in front of",
}
"""Relations that can be told from the other side."""
UNDER_WORDS = ("under", "below", "beneath")
"""The other side of "on top of"."""
SETTING_WORDS: dict[str, tuple[str, ...]] = {
    "studio": ("in a studio", "in the studio", "on a grey backdrop", "against a plain background"),
    "meadow": ("in a meadow", "on the grass", "on green grass", "in a green field"),
    "snow": ("in snow", "in the snow", "in a snowy field", "on snow in winter"),
    "desert": ("in the desert", "in a desert", "on sand", "on the sand"),
    "sea": ("at sea", "on the sea", "on the water", "on calm blue water"),
    "night": ("at night", "in the night", "under the stars", "under the night sky"),
}
LIGHT_WORDS: dict[str, tuple[str, ...]] = {
    "neutral": ("neutral", "white", "plain"),
    "warm": ("warm", "golden"),
    "cool": ("cool", "cold"),
}
SIDE_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("from the left", "from the left side"),
    "right": ("from the right", "from the right side"),
    "front": ("from the front",),
}
LEADS = ("", "", "", "", "a picture of ", "a photo of ", "a render of ")
ARTICLE_AN = ("orange",)

USER_WORDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("noun", ""): ("thing", "object", "something"),
    ("noun", "sphere"): ("orb", "globe"),
    ("noun", "cube"): ("block",),
    ("noun", "torus"): ("doughnut",),
    ("noun", "cylinder"): ("tube", "drum"),
    ("material", "shiny"): ("shining",),
    ("material", "metal"): ("steel", "chrome"),
    ("material", "matte"): ("matt",),
    ("size", "medium"): ("medium sized", "mid-sized"),
    ("size", "small"): ("mini",),
    ("size", "large"): ("giant",),
    ("made", "metal"): ("made of metal", "made from metal", "out of metal", "of metal"),
    ("relation", "left of"): ("left from", "to the left side of"),
    ("relation", "right of"): ("right from", "to the right side of"),
    ("relation", "on top of"): ("atop", "above", "on the top of", "upon"),
    ("inverse", "on top of"): ("underneath",),
    ("top", "on top of"): ("on top", "on the top"),
    ("setting", "meadow"): ("on grass", "in the grass", "in the meadow", "on a meadow", "in a field"),
    ("setting", "snow"): ("on snow", "on the snow", "in a snowy landscape", "in winter"),
    ("setting", "desert"): ("in sand", "in the sand"),
    ("setting", "sea"): ("at the sea", "on water", "in the sea", "on the ocean"),
    ("setting", "night"): ("by night", "under stars", "in the dark"),
    ("setting", "studio"): ("on a gray backdrop", "against a plain backdrop"),
    ("light_direction", "left"): ("from left",),
    ("light_direction", "right"): ("from right",),
    ("light_direction", "front"): ("from front",),
    ("view", "back"): ("seen from behind", "viewed from behind", "from behind", "from the back"),
    ("it", ""): ("it",),
    ("article", "a"): ("a", "an", "one"),
    ("article", "the"): ("the",),
    ("break", ""): (",", ".", ";", ":", "!", "and", "&", "with"),
}
"""(kind, meaning) to what people say and captions do not."""
INSTRUCTION_WORDS: dict[str, tuple[str, str]] = {
    **{w: ("setting", "studio") for w in ("studio", "a studio", "the studio", "a plain background")},
    **{w: ("setting", "meadow") for w in ("meadow", "a meadow", "the meadow", "grass", "the grass")},
    **{w: ("setting", "snow") for w in ("snow", "the snow", "winter")},
    **{w: ("setting", "desert") for w in ("desert", "a desert", "the desert", "sand")},
    **{w: ("setting", "sea") for w in ("sea", "the sea", "water", "the water")},
    **{w: ("setting", "night") for w in ("night", "the night", "nighttime")},
    **{w: ("step", "1") for w in ("larger", "bigger")},
    "smaller": ("step", "-1"),
    **{f"{p} the left": ("top", "left of") for p in ("to", "on")},
    **{f"{p} the right": ("top", "right of") for p in ("to", "on")},
    **{f"{p} the front": ("top", "in front of") for p in ("to", "in")},
    **{f"{p} the back": ("top", "behind") for p in ("to", "in")},
}
"""Phrases that only instructions use."""
STANDING = ("", "is ", "standing ", "stands ", "sitting ", "sits ", "lying ", "placed ", "that is ")
PICTURES = ("picture", "photo", "photograph", "render", "rendering", "image", "drawing", "painting", "scene")


def phrases() -> dict[str, tuple[str, str]]:
    """Every phrase that a text may hold, to its (kind, meaning)."""
    out = {w: meaning for meaning, words in USER_WORDS.items() for w in words}
    tables = {"noun": NOUNS, "size": SIZE_WORDS, "material": MATERIAL_WORDS, "setting": SETTING_WORDS}
    for kind, table in tables.items():
        out |= {w: (kind, name) for name, words in table.items() for w in words}
    out |= {color: ("color", color) for color in COLORS}
    out |= {w: ("relation", name) for name, words in RELATION_WORDS.items() for w in words}
    out |= {w: ("inverse", "on top of") for w in UNDER_WORDS}
    out |= {f"{s}{w}": m for w, m in list(out.items()) if m[0] in ("relation", "inverse") for s in STANDING}
    for name, words in LIGHT_WORDS.items():
        for lead in ("", "in ", "in a ", "under ", "by ", "with ", "with a ", "lit by ", "a ", "the "):
            out |= {f"{lead}{w} {n}": ("light_color", name) for w in words for n in ("light", "lighting")}
    sides = {w: ("light_direction", name) for name, words in SIDE_WORDS.items() for w in words}
    sides |= {w: m for w, m in out.items() if m[0] == "light_direction"}
    for lead in ("", "lit ", "light ", "lighting ", "with light ", "the light ", "with the light "):
        out |= {f"{lead}{w}": m for w, m in sides.items()}
    for view in VIEWS:
        leads = ["seen from the ", "viewed from the ", "seen from ", "viewed from ", "view from the "]
        leads += ["from the "] if " " in view else []
        out |= {f"{lead}{view}": ("view", view) for lead in leads}
    for noun in PICTURES:
        out |= {
            f"{a}{noun} {p}": ("filler", "") for a in ("a ", "the ", "") for p in ("of", "with", "showing")
        }
    return out | {"there is": ("filler", ""), "please": ("filler", "")}
