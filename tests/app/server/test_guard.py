"""Who may ask, from where, how often, and with how much: identity, Host and Origin, rates, sizes, headers."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import stat

import pytest
from fastapi.routing import APIRoute
from sfumato.app.server.application import build_app
from sfumato.app.server.desk import Desk
from sfumato.app.server.guard import Guard
from sfumato.app.server.identity import known, open_to_all
from sfumato.app.server.rates import Rate
from sfumato.app.server.serving import Serving
from sfumato.app.server.tokens import Tokens

SUM = {"task": "sum", "request": {}}
OPEN = {"/healthz", "/readyz"}


def calls(dependant) -> set:
    return {dependant.call} | {call for inner in dependant.dependencies for call in calls(inner)}


def test_every_route_asks_who_it_is(home):
    """A route without it fails here, whatever it does; the two that are open say so themselves."""
    app = build_app(Serving(), home)
    assert len(app.routes) > 30
    for route in app.routes:
        assert isinstance(route, APIRoute), f"{route} is no route that this walk can look into"
        found = calls(route.dependant)
        if route.path in OPEN:
            assert open_to_all in found and route.methods == {"GET"}, route.path
        else:
            assert known in found, f"{route.path} lacks the dependency identity.known"


def test_every_route_refuses_without_a_token(serve, home):
    """The same from outside: nothing but the open routes answers a stranger."""
    token = Tokens(home).add("ada")
    api = serve(require_token=True)
    app = build_app(Serving(), home)
    with api.client() as client:
        for route in app.routes:
            assert isinstance(route, APIRoute)
            path = route.path.replace("{id}", "1").replace("{deed}", "cancel").replace("{place}", "first")
            for method in route.methods:
                code = client.request(method, path).status_code
                assert code == (200 if path in OPEN else 401), (method, path, code)
        assert client.get("/v1/jobs").headers["www-authenticate"].startswith("Bearer")
        for good in (f"Bearer {token}", f"Basic {base64.b64encode(f'me:{token}'.encode()).decode()}"):
            assert client.get("/v1/jobs", headers={"Authorization": good}).status_code == 200
        for bad in (
            f"Bearer {token}x",
            "Bearer",
            "Basic !",
            "Basic " + base64.b64encode(b"\xff").decode(),
            token,
        ):
            assert client.get("/v1/jobs", headers={"Authorization": bad}).status_code == 401
        assert client.post("/v1/jobs", content=b"{").status_code == 401, "a stranger's body is not even read"
        Tokens(home).remove("ada")
        assert client.get("/v1/jobs", headers={"Authorization": f"Bearer {token}"}).status_code == 401


def test_tokens_are_kept_as_hashes(home, sfumato):
    said = sfumato("serve", "token", "add", "my-laptop")
    token = said.out.strip()
    file = home / "tokens.json"
    assert said.code == 0 and token.startswith("sfu_") and len(token) > 50
    assert token not in file.read_text() and token.split("_", 2)[2] not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert Tokens(home).owner(token) == "my-laptop" and Tokens(home).owner(token[:-1]) is None
    assert Tokens(home).owner("\udcff") is None
    assert sfumato("serve", "token", "list", "--json").data[0]["name"] == "my-laptop"
    assert sfumato("serve", "token", "add", "my-laptop").code == 2
    assert sfumato("serve", "token", "add", "../x").code == 2
    assert sfumato("serve", "token", "remove", "my-laptop").code == 0
    assert "is not known" in sfumato("serve", "token", "remove", "my-laptop").err
    file.write_text("{")
    assert "is damaged" in sfumato("serve", "token", "list").err


@pytest.mark.parametrize(
    "arguments", [["--host", "0.0.0.0"], ["--require-token"], ["--allow-host", "studio.example"]]
)
def test_a_public_address_without_a_token_is_refused(home, sfumato, arguments):
    said = sfumato("serve", "--no-runner", "--port", "0", *arguments)
    assert said.code == 2 and "sfumato serve token add NAME" in said.err and said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--port", "70000"], "port: '70000' must be at most 65535"),
        (["--host", "127.0.0.1", "--port", "BUSY"], "can't be listened on"),
        (["--allow-path", "/gone"], "is no folder"),
        (["--allow-origin", "studio.example/x"], "is no origin"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(home, sfumato, arguments, sentence):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        said = sfumato("serve", "--no-runner", *[port if word == "BUSY" else word for word in arguments])
    assert said.code == 2 and sentence in said.err and said.err.count("\n") == 1


def test_a_cookie_reads_and_changes_nothing(serve, home):
    token = Tokens(home).add("ada")
    api = serve(require_token=True)
    with api.client() as client:
        set = client.post("/v1/session", headers={"Authorization": f"Bearer {token}"})
        cookie = set.headers["set-cookie"]
        assert set.status_code == 204 and "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
        assert client.cookies
        assert client.get("/v1/jobs").status_code == 200
        assert client.post("/v1/jobs", json=SUM).status_code == 401
        assert client.post("/v1/jobs/1/cancel").status_code == 401


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("localhost", 200),
        ("127.0.0.1:99", 200),
        ("[::1]:80", 200),
        ("studio.example", 421),
        ("evil.example:7860", 421),
        ("127.0.0.1.evil.example", 421),
        ("192.168.0.7", 421),
        ("", 421),
        ("[", 421),
    ],
)
def test_only_own_names_lead_here(client, host, code):
    """Else a page whose name its owner points at 127.0.0.1 could read everything."""
    assert client.get("/v1/jobs", headers={"Host": host}).status_code == code


def test_a_public_server_answers_to_addresses_and_the_names_it_was_told(serve, home):
    token = Tokens(home).add("ada")
    api = serve(host="0.0.0.0", allow_host=("Studio.example",), token=token)
    with api.client() as client:
        for host, code in (("studio.example", 200), ("192.168.0.7:80", 200), ("evil.example", 421)):
            assert client.get("/v1/jobs", headers={"Host": host}).status_code == code


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 201),
        ({"Origin": "OWN"}, 201),
        ({"Origin": "https://studio.example"}, 201),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "https://studio.example.evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 201),
    ],
)
def test_other_sites_change_nothing(serve, headers, code):
    api = serve(allow_origin=("https://studio.example",))
    with api.client() as client:
        sent = {name: api.url if value == "OWN" else value for name, value in headers.items()}
        assert client.post("/v1/jobs", json=SUM, headers=sent).status_code == code
        assert client.get("/v1/jobs", headers=sent).status_code == 200
        said = client.options(
            "/v1/jobs",
            headers={"Origin": sent.get("Origin", api.url), "Access-Control-Request-Method": "POST"},
        )
        own = sent.get("Origin") == "https://studio.example"
        assert ("access-control-allow-origin" in said.headers) == own


def test_a_plain_form_is_no_request(client):
    """What a form of another site can send without a preflight."""
    body = json.dumps(SUM)
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert client.post("/v1/jobs", content=body, headers={"Content-Type": kind}).status_code == 422


def test_rates_are_per_token(serve, home):
    tokens = Tokens(home)
    ada, bob = tokens.add("ada"), tokens.add("bob")
    api = serve(require_token=True, rate=3)
    with api.client() as client:

        def submit(token: str) -> int:
            said = client.post("/v1/jobs", json=SUM, headers={"Authorization": f"Bearer {token}"})
            if said.status_code == 429:
                assert 1 <= int(said.headers["retry-after"]) <= 20
            return said.status_code

        assert [submit(ada) for _ in range(4)] == [201, 201, 201, 429]
        assert submit(bob) == 201
        assert client.get("/v1/jobs", headers={"Authorization": f"Bearer {ada}"}).status_code == 200


def test_a_bucket_fills_again():
    now = [0.0]
    rate = Rate(60, clock=lambda: now[0])
    assert [rate.wait("a") for _ in range(60)] == [0.0] * 60
    assert rate.wait("a") == pytest.approx(1.0) and rate.wait("b") == 0
    now[0] = 1.01
    assert rate.wait("a") == 0 and rate.wait("a") > 0.9
    now[0] = 1000
    assert sum(rate.wait("a") == 0 for _ in range(70)) == 60


def test_a_body_is_cut_off_where_it_is_too_large(serve):
    with serve(upload_bytes=1000).client() as client:
        headers = {"Content-Type": "application/json"}
        told = client.post("/v1/jobs", content=b" " * 2000, headers=headers)
        untold = client.post("/v1/jobs", content=iter([b" " * 600] * 5), headers=headers)
        form = client.post("/v1/inputs/form", files={"file": ("a.png", b"x" * 2000)})
        for said in (told, untold, form):
            assert said.status_code == 413 and "is larger than 1000 bytes" in said.json()["error"]["message"]


def test_security_headers_are_everywhere(client):
    for path in ("/healthz", "/v1/jobs", "/nothing", "/v1/jobs/7"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer" and headers["cache-control"] == "no-store"
        assert "server" not in headers


@pytest.mark.parametrize(
    ("origin", "reached"), [(b"http://localhost:80", True), (b"https://evil.example", False)]
)
def test_other_sites_open_no_sockets(home, origin, reached):
    """There are none yet; pages that are mounted later may bring some."""
    seen: list[str] = []

    async def inner(scope, receive, send) -> None:
        seen.append(scope["type"])

    async def send(message) -> None:
        seen.append(message["type"])

    headers = [(b"host", b"localhost:80"), (b"origin", origin)]
    guard = Guard(inner, Desk(Serving(), home))
    asyncio.run(guard({"type": "websocket", "headers": headers}, None, send))
    assert seen == (["websocket"] if reached else ["websocket.close"])
