"""The page about the API: its examples run, and it names what is there."""

from __future__ import annotations

import re

from house.tree import ROOT, block
from sfumato.app.server.application import build_app
from sfumato.app.server.serving import Serving

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def test_the_examples_run(api, running, tmp_path):
    running()
    for number in (0, 1):
        source = block(PAGE, "python", number).replace("http://127.0.0.1:7860", api.url)
        exec(compile(source, f"docs/api.md {number}", "exec"), {"__name__": "example"})
    assert (tmp_path / "cube.png").stat().st_size > 1000


def test_the_routes_are_there(home):
    paths = {route.path for route in build_app(Serving(), home).routes}
    told = set(re.findall(r"`(?:GET |POST )?(/[\w/{}-]+)`", PAGE))
    assert len(told) > 12 and told - paths <= {"/sdapi/v1/"}, told - paths


def test_the_options_are_there():
    told = {name.replace("-", "_") for name in re.findall(r"--([a-z][a-z-]+)", PAGE)}
    assert told - set(Serving.model_fields) == {"no_runner"}
