"""Help is complete, and asking for it loads nothing heavy."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import typer
from sfumato.app import cli
from sfumato.app.requests import REQUESTS

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "gradio")


def commands(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            assert command.help, name
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = dict(commands(typer.main.get_command(cli.app)))


def test_the_commands():
    names = {" ".join(path) for path in ALL}
    assert {
        "generate",
        "world",
        "replay",
        "inspect",
        "techniques",
        "models list",
        "doctor",
        "schema",
    } <= names
    assert set(REQUESTS) <= names and "train builtin" in names


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_and_option_has_help(path, sfumato):
    command = ALL[path]
    assert command.help and command.help.strip()
    for parameter in command.params:
        assert parameter.help and parameter.help.strip(), f"{path} {parameter.name}"
    said = sfumato(*path, "--help")
    assert said.code == 0 and said.err == ""


@pytest.mark.parametrize("task", REQUESTS)
def test_every_field_is_declared_in_full(task):
    request = REQUESTS[task]
    assert inspect.getdoc(request)
    for name, schema in request.model_json_schema()["properties"].items():
        assert schema["description"], name
        assert "unit" in schema and schema["group"] in ("basic", "picture", "advanced"), name
        assert "default" in schema, name
        assert any(p.name == name for p in ALL[(task,)].params)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("generate", "--help"),
        ("techniques",),
        ("techniques", "cfg"),
        ("schema", "generate"),
        ("--version",),
    ],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(arguments):
    code = f"""
import sys
from sfumato.app.cli import main
code = main({list(arguments)!r})
heavy = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"loaded {{heavy}}" if heavy else code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_inspect_loads_nothing_heavy(generate, tiny):
    generate("x", "-o", "a.png")
    weights = next(tiny.rglob("*.safetensors"))
    code = "import sys\nfrom sfumato.app.cli import main\n"
    code += "".join(f"main(['inspect', {str(path)!r}])\n" for path in ("a.png", tiny, weights))
    code += "sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "a.png" in done.stdout, done.stderr


def test_version_and_unknown_command(sfumato):
    assert sfumato("--version").out.startswith("sfumato ")
    said = sfumato("generat", "x")
    assert said.code == 2 and "generate" in said.err
    assert sfumato("schema", "generat").code == 2


def test_format_before_and_after_the_command(sfumato):
    assert sfumato("--json", "techniques").data == sfumato("techniques", "--format", "json").data


def test_module_runs():
    done = subprocess.run(
        [sys.executable, "-m", "sfumato.app", "--version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.startswith("sfumato ")
