"""Flags over environment over file over defaults."""

from __future__ import annotations

from pathlib import Path

import pytest
from sfumato.app.requests import GenerateRequest, WorldRequest
from sfumato.app.settings import config_file, from_environment, make_request, merged
from sfumato.pipelines.errors import BadInput


def write(text: str, name: str = "c.yaml") -> Path:
    Path(name).write_text(text)
    return Path(name)


def test_precedence(monkeypatch):
    config = write("steps: 10\nguidance: 2\nseed: 1\ngenerate:\n  seed: 2\nworld:\n  seed: 3\n")
    monkeypatch.setenv("SFUMATO_STEPS", "20")
    monkeypatch.setenv("SFUMATO_GUIDANCE", "3")
    request = make_request(GenerateRequest, merged(GenerateRequest, {"steps": "30"}, config))
    assert (request.steps, request.guidance, request.seed, request.count) == (30, 3.0, 2, 1)
    assert make_request(WorldRequest, merged(WorldRequest, {}, config)).seed == 3


def test_toml_and_techniques(monkeypatch):
    config = write('sampler = "ddim:eta=0.5"\ntechniques = ["cfg:scale=3"]\n', "c.toml")
    values = merged(GenerateRequest, {}, config)
    request = make_request(GenerateRequest, values)
    assert request.sampler.settings == {"eta": 0.5} and request.techniques[0].id == "cfg"
    monkeypatch.setenv("SFUMATO_TECHNIQUES", "apg:scale=2,eta=[1,2];none")
    request = make_request(GenerateRequest, merged(GenerateRequest, {}, config))
    assert [str(t) for t in request.techniques] == ["apg:eta=[1, 2],scale=2", "none"]


def test_a_stronger_width_beats_a_weaker_size():
    config = write("size: 640x480\n")
    values = merged(GenerateRequest, {"width": "128"}, config)
    assert (values["width"], values["height"]) == ("128", 480)


def test_size_spellings():
    assert make_request(GenerateRequest, {"size": "64"}).height == 64
    assert make_request(GenerateRequest, {"size": "64\u00d732"}).height == 32
    with pytest.raises(BadInput, match="disagree"):
        make_request(GenerateRequest, {"size": "64x32", "width": 65})


@pytest.mark.parametrize(
    "text",
    [
        "stepz: 3\n",
        "generate:\n  stepz: 3\n",
        "[1, 2]\n",
        "a: [\n",
        "generate: 5\n",
        "!!python/object:os.x {}\n",
    ],
)
def test_bad_files(text):
    with pytest.raises(BadInput):
        make_request(GenerateRequest, merged(GenerateRequest, {}, write(text)))


def test_where_the_file_is(monkeypatch, own_folder):
    assert config_file() is None
    folder = own_folder / "config" / "sfumato"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("steps = 9\n")
    assert config_file() == folder / "config.toml"
    monkeypatch.setenv("SFUMATO_CONFIG", str(write("steps: 3\n")))
    assert config_file() == Path("c.yaml")
    assert config_file("c.yaml") == Path("c.yaml")


def test_commands_read_them(generate, monkeypatch):
    monkeypatch.setenv("SFUMATO_SEED", "77")
    monkeypatch.setenv("SFUMATO_OUTPUT", "env.png")
    monkeypatch.setenv("SFUMATO_SEAD", "1")
    said = generate("x", "--json", "-c", write("guidance: 2.5\nprompt: no\n"))
    assert said.data["request"]["seed"] == 77 and said.data["request"]["guidance"] == 2.5
    assert said.data["files"][0]["path"] == "env.png" and "SFUMATO_SEAD" in said.err
    assert said.data["request"]["prompt"] == "x"


def test_bad_environment(monkeypatch):
    monkeypatch.setenv("SFUMATO_TECHNIQUES", "[1")
    with pytest.raises(BadInput, match="JSON list"):
        from_environment(GenerateRequest)
    monkeypatch.setenv("SFUMATO_TECHNIQUES", "[1]")
    with pytest.raises(BadInput):
        make_request(GenerateRequest, merged(GenerateRequest, {}, None))


def test_requests_are_values():
    request = make_request(GenerateRequest, {"prompt": "x", "techniques": ["apg:scale=7"]})
    again = GenerateRequest.model_validate_json(request.model_dump_json())
    assert again == request
    with pytest.raises(ValueError):
        request.steps = 5
