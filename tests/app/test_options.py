"""A new request class is a new command: options, checks and schema follow from its fields."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

import pytest
import typer
from sfumato.app.chosen import Technique
from sfumato.app.options import request_command
from sfumato.app.requests import Request, field
from sfumato.app.settings import make_request
from typer.testing import CliRunner


class SculptRequest(Request):
    """Make a sculpture."""

    task: ClassVar[str] = "sculpt"

    prompt: str = field("", "what it shows", flags=("-p",))
    height_m: float = field(1.0, "height", unit="m", ge=0.1, le=10)
    material: Literal["clay", "stone"] = field("clay", "what it is made of", group="advanced")
    hollow: bool = field(False, "leave the inside empty")
    tools: tuple[str, ...] = field((), "tools to use", flags=("-t",))
    finish: Technique | None = field(None, "last step")


@pytest.fixture
def sculpt():
    """The command, which prints the request it was given."""
    app = typer.Typer(rich_markup_mode="markdown")

    def run(values: dict[str, Any], *, twice: bool = False) -> None:
        """Make a sculpture."""
        print(make_request(SculptRequest, values).model_dump_json() * (1 + twice))

    app.command()(request_command(SculptRequest)(run))

    def invoke(*arguments: str):
        return CliRunner().invoke(app, list(arguments))

    return invoke


def test_all_kinds_of_fields(sculpt):
    result = sculpt(
        "a horse",
        "--height-m",
        "2.5",
        "--material",
        "stone",
        "--hollow",
        "-t",
        "a",
        "--tools",
        "b",
        "--finish",
        "wax:n=2",
    )
    assert json.loads(result.output) == {
        "prompt": "a horse",
        "height_m": 2.5,
        "material": "stone",
        "hollow": True,
        "tools": ["a", "b"],
        "finish": {"id": "wax", "settings": {"n": 2}},
    }


def test_defaults_come_from_the_model(sculpt):
    assert json.loads(sculpt().output) == SculptRequest().model_dump(mode="json")
    assert json.loads(sculpt("--no-hollow", "-p", "x").output)["hollow"] is False


def test_help_shows_units_ranges_defaults_and_choices(sculpt):
    text = " ".join(sculpt("--help").output.replace("│", "").split())
    for words in (
        "0.1 to 10",
        "default 1.0",
        "clay|stone",
        "--no-hollow",
        "Make a sculpture",
        "Advanced options",
    ):
        assert words in text, text


@pytest.mark.parametrize(
    "arguments", [("--height-m", "0"), ("--height-m", "nan"), ("--material", "gold"), ("a", "-p", "b")]
)
def test_the_request_refuses(sculpt, arguments):
    result = sculpt(*arguments)
    assert result.exit_code != 0 and "Input" in type(result.exception).__name__
