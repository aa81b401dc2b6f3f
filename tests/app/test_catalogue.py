"""The catalogue, read from sources, and the builder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from sfumato.app.builder import build
from sfumato.app.catalogue import CatalogueError, catalogue, read_entry, techniques
from sfumato.app.chosen import Technique, parse_technique
from sfumato.pipelines.errors import BadInput

FILE = '''"""{id}: a made-up technique (alias {alias}).

Paper: arXiv:1234.56789, eq. 1,
    and eq. 2
Units and ranges: scale 0..1
Neutral: scale = 0
Tasks: image, 3d
"""
from dataclasses import dataclass, field

@dataclass(frozen=True)
class MadeUp:
    scale: float = 1.0
    """How much, 0..1."""
    layers: tuple[int, ...] = (1, 2)  # which blocks
    needed: int
    table: dict = field(default_factory=dict)

    def __call__(self, denoise, conds): ...
'''


def write(root: Path, name: str, text: str) -> Path:
    path = root / "pipelines" / "guidance" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_an_entry(tmp_path):
    path = write(tmp_path, "made_up.py", FILE.format(id="made-up", alias="mu"))
    entry = read_entry(path, "guidance", tmp_path)
    assert (entry.id, entry.kind, entry.aliases, entry.tasks) == (
        "made-up",
        "guidance",
        ("mu",),
        ("image", "3d"),
    )
    assert entry.paper == "arXiv:1234.56789, eq. 1, and eq. 2" and entry.summary == "a made-up technique"
    assert [(s.name, s.default, s.help) for s in entry.settings] == [
        ("scale", 1.0, "How much, 0..1."),
        ("layers", (1, 2), "which blocks"),
        ("needed", ..., ""),
        ("table", "field(default_factory=dict)", ""),
    ]


def test_duplicates_and_broken_files(tmp_path):
    write(tmp_path, "a.py", FILE.format(id="same", alias="x"))
    write(tmp_path, "b.py", FILE.format(id="same", alias="y"))
    with pytest.raises(CatalogueError, match=r"b\.py and .*a\.py share the id 'same'"):
        catalogue(tmp_path)
    for text, words in (("def f(:", "line 1"), ('"""x: y"""', "no public"), ("def f(): ...", "docstring")):
        with pytest.raises(CatalogueError, match=words):
            read_entry(write(tmp_path, "c.py", text), "guidance", tmp_path)


ENTRIES = techniques()


@pytest.mark.parametrize("name", ENTRIES)
def test_every_technique(name, sfumato):
    """Listed in full, with help for each setting, and its page can be printed."""
    entry = ENTRIES[name]
    assert entry.summary and entry.paper and entry.tasks, entry.file
    assert set(entry.tasks) <= {"image", "video", "3d"}
    for setting in entry.settings:
        assert setting.help, f"{entry.file}: {setting.name} has no help"
    said = sfumato("techniques", name)
    assert said.code == 0 and entry.summary in said.out and "Neutral:" in said.out


@pytest.mark.parametrize(
    "name", [n for n, e in ENTRIES.items() if not any(s.default is ... for s in e.settings)]
)
def test_every_technique_builds_from_json(name):
    """Its settings, written as text, give the same object."""
    first = build(Technique(id=name))
    if not dataclasses.is_dataclass(first):
        with pytest.raises(BadInput, match="takes none"):
            build(Technique(id=name, settings={"x": 1}))
        return
    plain = {k: v for k, v in dataclasses.asdict(first).items() if isinstance(v, int | float | str | tuple)}
    text = str(Technique(id=name, settings=plain))
    assert build(Technique.model_validate(text)) == first == build(Technique(id=name, settings=plain))


def test_listing(sfumato):
    data = sfumato("techniques", "--format", "json").data
    assert isinstance(data, list) and {"id", "kind", "paper", "tasks", "settings"} <= set(data[0])
    assert {e["kind"] for e in sfumato("techniques", "--kind", "sampler", "--json").data} == {"sampler"}
    said = sfumato("techniques", "ddmi")
    assert said.code == 2 and "did you mean 'ddim'" in said.err
    assert sfumato("techniques", "euler").code == 0
    assert sfumato("techniques", "--kind", "samplers").code == 2


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("apg", {}),
        ("apg:scale=7,momentum=-0.5", {"scale": 7, "momentum": -0.5}),
        ("a:x=[1,2],y=true,z=null,w=hello", {"x": [1, 2], "y": True, "z": None, "w": "hello"}),
        ('a:x="b,c=d",y-z=1', {"x": "b,c=d", "y_z": 1}),
        ('a:x={"k": [1, 2]},', {"x": {"k": [1, 2]}}),
    ],
)
def test_parsing(text, settings):
    assert parse_technique(text)["settings"] == settings


@pytest.mark.parametrize("text", ["", ":x=1", "a:x", "a:=1", "a:x=1,x=2"])
def test_bad_text(text):
    with pytest.raises(ValueError):
        parse_technique(text)


BACKEND = (
    *("svdquant", "mixdq", "ptq4dm", "noisyquant", "dgq", "lorc", "squeeze", "marlin", "minifloat"),
    *("attn-tile", "linfusion", "harmonica", "swiftdiffusion", "s-lora", "superpipeline"),
    *("flash-offload", "batchplan", "ulysses"),
)


@pytest.mark.parametrize("name", BACKEND)
def test_every_system_answers_to_its_name(name, sfumato):
    said = sfumato("techniques", name)
    assert said.code == 0 and "Paper: arXiv:" in said.out
    entry = catalogue().get(name)
    if entry is None:
        assert said.out.startswith(f"{name} is ")
    elif entry.kind == "system":
        assert "Use: " in said.out and "Settings:" not in said.out


def test_a_name_may_stand_for_settings(sfumato):
    marlin = build(Technique(id="marlin"))
    assert marlin == build(Technique(id="weight-only", settings={"format": "int4"}))
    assert build(Technique.model_validate("marlin:smallest=8")).smallest == 8
    said = sfumato("techniques", "marlin")
    assert "marlin is weight-only:format=int4" in said.out and "format: str = 'int4'" in said.out
    assert "format: str = 'nf4'" in sfumato("techniques", "weight-only").out
    assert sfumato("techniques", "fp8").out.startswith("fp8 is w8a8\n")


def test_defaults_are_values(tmp_path):
    """Names of constants, of the file itself or of another, are told as what they are."""
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "shared.py").write_text('FEW = 3\nENDS = ("b", *("c", "d"))\n')
    text = FILE.format(id="x", alias="y").replace(
        "@dataclass", "from ..shared import ENDS, FEW\nOWN = 'a'\n\n@dataclass"
    )
    text = text.replace("scale: float = 1.0", "scale: float = FEW").replace("(1, 2)", "(OWN, *ENDS)")
    entry = read_entry(write(tmp_path, "x.py", text), "guidance", tmp_path)
    assert [s.default for s in entry.settings[:2]] == [3, ("a", "b", "c", "d")]


@pytest.mark.parametrize("name", ENTRIES)
def test_no_default_is_source_text(name):
    wrong = [s for s in ENTRIES[name].settings if isinstance(s.default, str) and s.default.isupper()]
    assert not wrong and not any("*(" in str(s.default) for s in ENTRIES[name].settings)
