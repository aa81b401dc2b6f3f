"""Who may see the pages, and what of Gradio is not there: its identity, its paths, its files, its headers."""

from __future__ import annotations

import contextlib
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute
from PIL import Image
from sfumato.app.server.application import build_app
from sfumato.app.server.desk import Desk
from sfumato.app.server.identity import known, open_to_all
from sfumato.app.server.serving import Serving
from sfumato.app.server.tokens import Tokens
from sfumato.app.ui.door import OPEN, SCRIPT, Door, foreign
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

FREE = {"/healthz", "/readyz", "/", "/manifest.json", "/favicon.ico"}
"""They tell nothing that a stranger may not know."""


def calls(dependant) -> set:
    return {dependant.call} | {call for inner in dependant.dependencies for call in calls(inner)}


@pytest.fixture
def door(tmp_path):
    """The door before an application that tells who came in and where to; with its token."""

    def behind(**serving):
        desk = Desk(Serving(**serving), tmp_path / "home")

        async def inner(scope, receive, send):
            await PlainTextResponse(f"inside {scope['path']}")(scope, receive, send)

        return TestClient(Door(inner, desk), base_url="http://localhost"), Tokens(tmp_path / "home").add(
            "ada"
        )

    return behind


def _routes(site) -> list:
    return list(site.server.config.app.routes)


def test_every_route_of_the_pages_asks_who_it_is(site):
    """The mounted application is behind the door, whatever routes it brings; all others are as without pages."""
    mounts = [route for route in _routes(site) if not isinstance(route, APIRoute)]
    assert [type(route) for route in mounts] == [Mount] and isinstance(mounts[0].app, Door)
    for route in _routes(site):
        if isinstance(route, APIRoute):
            found = calls(route.dependant)
            assert (open_to_all if route.path in FREE else known) in found, route.path


def test_without_the_switch_there_are_no_pages(tmp_path):
    paths = {route.path for route in build_app(Serving(), tmp_path / "home").routes}
    assert not paths & {"/", "/ui"}


def test_strangers_get_a_sign_in_page_and_nothing_else(door):
    client, token = door(require_token=True)
    page = client.get("/ui/")
    assert page.status_code == 401 and 'type="password"' in page.text and SCRIPT in page.text
    assert "script-src 'sha256-" in page.headers["content-security-policy"]
    for method, path in (
        ("GET", "/ui/config"),
        ("GET", "/ui/assets/x.js"),
        ("POST", "/ui/gradio_api/queue/join"),
    ):
        assert client.request(method, path).status_code == 401
    assert client.get("/ui/config", headers={"Authorization": f"Bearer {token}"}).text == "inside /ui/config"


def test_the_cookie_is_enough_for_this_servers_own_page_alone(door):
    client, token = door(require_token=True)
    client.cookies.set("sfumato_token", token)
    assert client.get("/ui/").text == "inside /ui/"
    post = "/ui/gradio_api/queue/join"
    for origin, code in (
        ("http://localhost", 200),
        ("http://localhost:81", 401),
        ("https://evil.example", 401),
        ("null", 401),
        ("http://[", 401),
        (None, 401),
    ):
        headers = {} if origin is None else {"Origin": origin}
        assert client.post(post, headers=headers).status_code == code, origin
    client.cookies.set("sfumato_token", token + "x")
    assert client.post(post, headers={"Origin": "http://localhost"}).status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=https://evil.example/x",
        "/gradio_api/file=http://evil.example/x",
        "/gradio_api/file=https://169.254.169.254/latest",
        "/gradio_api/stream/1",
        "/gradio_api/vibe-edit",
        "/gradio_api/process_recording",
        "/gradio_api/runs",
        "/gradio_api/component_server",
        "/gradio_api/openapi.json",
        "/gradio_api/deep_link",
        "/monitoring",
        "/login",
        "/custom_component/1/client/component/index.js",
        "/static/../../secret",
    ],
)
def test_what_pages_do_not_need_is_not_there(door, path):
    client, _ = door()
    if ".." not in path:  # a client would take these away
        assert client.get(f"/ui{path}").status_code == 404
    assert not OPEN.fullmatch(path) or ".." in path


def test_sockets_are_closed(door):
    client, _ = door()
    with pytest.raises(WebSocketDisconnect) as caught, client.websocket_connect("/ui/queue/join"):
        pass
    assert caught.value.code == 1008


def test_pages_are_held_to_a_rate(door):
    client, _ = door(reads=3)
    assert [client.get("/ui/").status_code for _ in range(4)] == [200, 200, 200, 429]


def test_pages_load_from_here_alone(site):
    with httpx.Client(base_url=site.url, trust_env=False, timeout=60) as client:
        page = client.get("/ui/")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "http" not in policy
        assert (
            page.headers["x-frame-options"] == "DENY" and page.headers["x-content-type-options"] == "nosniff"
        )
        assert page.headers["cache-control"] == "no-store"
        assert client.get("/", follow_redirects=False).headers["location"] == "/ui/"
        assert "analytics" in page.text and '"analytics_enabled":false' in page.text.replace(" ", "")


def test_no_file_of_this_machine_is_handed_out(site, tmp_path):
    """Gradio's routes of files know its own folder alone: neither the database nor the results nor anything else."""
    site.store.submit_all([])
    (site.home / "tokens.json").touch()
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    with httpx.Client(base_url=site.url, trust_env=False, timeout=60) as client:
        for path in (
            secret,
            site.home / "jobs.sqlite",
            site.home / "tokens.json",
            Path(__file__),
            Path("/etc/passwd"),
        ):
            assert client.get(f"/ui/gradio_api/file={path}").status_code in (403, 404), path
        uploads = site.home / "uploads"
        for path in (f"{uploads}/../jobs.sqlite", f"{uploads}/../tokens.json"):
            assert client.get(f"/ui/gradio_api/file={path}").status_code in (403, 404), path


def test_a_form_cannot_be_told_to_read_a_path_or_fetch_an_address(site, tmp_path):
    """What somebody could send in place of an upload: neither the door nor Gradio behind it takes it."""
    Image.new("RGB", (8, 8)).save(tmp_path / "mine.png")
    meta = {"_type": "gradio.FileData"}
    with httpx.Client(base_url=site.url, trust_env=False, timeout=60) as client:
        config = client.get("/ui/config").json()
        (reader,) = (one["id"] for one in config["components"] if one["props"].get("elem_id") == "reader")
        (index,) = (one["id"] for one in config["dependencies"] if one["targets"] == [[reader, "change"]])

        def send(path: str, **more) -> httpx.Response:
            file = {"path": path, "orig_name": "x.png", **more}
            body = {"data": [file], "fn_index": index, "session_hash": "abc", "event_data": None}
            return client.post("/ui/gradio_api/run/predict", json=body, headers={"Origin": site.url})

        uploads = site.home / "uploads"
        for path in (
            str(tmp_path / "mine.png"),
            "http://127.0.0.1:9/x.png",
            "https://example.com/x.png",
            "/etc/passwd",
            f"{uploads}/../jobs.sqlite",
            "jobs.sqlite",
        ):
            for more in ({"meta": meta}, {}, {"meta": meta, "url": "http://127.0.0.1:9/x.png"}):
                said = send(path, **more)
                assert said.status_code == 422 and "none that was uploaded here" in said.json()["detail"], (
                    path
                )
        with (tmp_path / "mine.png").open("rb") as file:
            sent = client.post("/ui/gradio_api/upload", files={"files": file}, headers={"Origin": site.url})
        assert "says nothing about how" in send(sent.json()[0], meta=meta).text
    blocks = next(route.app.app for route in _routes(site) if isinstance(route, Mount)).get_blocks()
    assert blocks.has_launched, "else Gradio does not ask whether a file was uploaded"


@pytest.mark.parametrize(
    ("body", "is_foreign"),
    [
        (b"", False),
        (b'{"data": [1, "path", null]}', False),
        (b'{"data": [{"path": null}]}', False),
        (b'{"data": [{"background": {"path": "UP/a.png"}}]}', False),
        (b'{"data": [{"layers": [{"path": "/etc/passwd"}]}]}', True),
        (b'{"path": 3}', True),
        (b'{"path": {"path": "UP/a.png"}}', True),
        (b'{"data": [{"path": "UP/link/x"}]}', True),
        (b"{", True),
        (b"[" * 100_000, True),
    ],
)
def test_calls_name_uploads_alone(tmp_path, body, is_foreign):
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "link").symlink_to(tmp_path)
    assert foreign(body.replace(b"UP", str(uploads).encode()), uploads) is is_foreign


def test_a_stopping_server_ends_the_streams_of_its_pages(tmp_path):
    """A page holds a stream open as long as it is looked at."""
    import asyncio

    desk = Desk(Serving(), tmp_path / "home")
    ended: list[bool] = []

    async def endless(scope, receive, send):
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def run() -> None:
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/ui/gradio_api/heartbeat/abc",
            "headers": [],
            "query_string": b"",
        }
        task = asyncio.create_task(Door(endless, desk)(scope, None, None))
        await asyncio.sleep(0.1)
        desk.drain()
        await asyncio.wait_for(task, 5)
        await asyncio.sleep(0)

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(run())
    assert ended == [True]


def test_the_command_says_what_is_missing(tmp_path, sfumato, monkeypatch):
    from importlib import util

    real = util.find_spec
    monkeypatch.setattr(
        util, "find_spec", lambda name, *rest: None if name == "gradio" else real(name, *rest)
    )
    said = sfumato("ui", "--no-browser", "--no-runner", "--port", "0")
    assert said.code == 1 and "gradio is not installed; pip install 'sfumato[ui]' brings it" in said.err


@pytest.mark.parametrize("arguments", [["--host", "0.0.0.0"], ["--require-token"]])
def test_a_public_address_without_a_token_is_refused(tmp_path, sfumato, arguments, monkeypatch):
    monkeypatch.setenv("SFUMATO_HOME", str(tmp_path / "home"))
    said = sfumato("ui", "--no-browser", "--no-runner", "--port", "0", *arguments)
    assert said.code == 2 and "sfumato serve token add NAME" in said.err
