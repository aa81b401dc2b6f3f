"""What comes in: pictures and bombs, places in requests, URLs."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import os
import socket
import struct
import threading
import zlib
from pathlib import Path

import pytest
from PIL import Image
from sfumato.app.jobs.store import Store
from sfumato.app.requests import REQUESTS, GenerateRequest
from sfumato.app.server.inputs import Caps, Inputs
from sfumato.app.server.places import Places
from sfumato.app.server.remote import fetch, is_public
from sfumato.pipelines.errors import BadInput


def png(width: int = 8, height: int = 8, colour: str = "red") -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(target, "PNG")
    return target.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises much, in few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1 + 3 * width) * height, 9) if width * height < 10**8 else b"x"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def clip(frames: int) -> bytes:
    target = io.BytesIO()
    images = [Image.new("RGB", (8, 8), (80 * i, 0, 0)) for i in range(frames)]
    images[0].save(target, "WEBP", save_all=True, append_images=images[1:])
    return target.getvalue()


def gif() -> bytes:
    target = io.BytesIO()
    Image.new("P", (8, 8)).save(target, "GIF")
    return target.getvalue()


def test_three_ways_to_send_a_picture(client, api):
    data = png()
    text = base64.b64encode(data).decode()
    answers = [
        client.post("/v1/inputs", json={"data": text}),
        client.post("/v1/inputs", json={"data": f"data:image/png;base64,{text}"}),
        client.post("/v1/inputs/form", files={"file": ("../../evil.png", data)}),
    ]
    assert [said.status_code for said in answers] == [201] * 3
    wanted = {"id": hashlib.sha256(data).hexdigest(), "bytes": len(data), "media": "image/png"}
    assert all(said.json() == {**wanted, "width": 8, "height": 8} for said in answers)
    assert [path.name for path in (api.home / "inputs").iterdir()] == [f"{wanted['id']}.png"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "no PNG, JPEG or WebP"),
        (b"GIF89a", "no PNG, JPEG or WebP"),
        (gif(), "no PNG, JPEG or WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no PNG, JPEG or WebP"),
        (png()[:-30], "broken picture"),
        (bomb(100_000, 100_000), "have more than 40000000 pixels"),
        (bomb(7000, 7000), "has more than 40000000 pixels"),
        (bomb(6000, 6000), "unfolds to more than 300 times as much"),
        (clip(3), "'3 frames' are more than 1"),
    ],
    ids=["empty", "stub", "gif", "svg", "cut", "pixels", "many", "ratio", "frames"],
)
def test_what_is_no_sound_picture_is_refused(client, data, sentence):
    said = client.post("/v1/inputs/form", files={"file": ("a.png", data)})
    assert said.status_code == 422 and sentence in said.json()["error"]["message"], said.text
    assert said.json()["error"]["param"] == "file"


def test_a_plain_large_picture_is_no_bomb(client):
    assert client.post("/v1/inputs/form", files={"file": ("a.png", png(3000, 3000))}).status_code == 201


@pytest.mark.parametrize("text", ["%%%", "", "data:image/png;base64,%", "/etc/passwd"])
def test_what_is_no_base64_is_refused(client, text):
    said = client.post("/v1/inputs", json={"data": text})
    assert said.status_code == 422 and "\n" not in said.json()["error"]["message"]


def test_old_inputs_go_but_not_those_that_a_job_needs(client, api, home):
    needed, other = (
        client.post("/v1/inputs", json={"data": base64.b64encode(png(9, i)).decode()}).json()["id"]
        for i in (8, 9)
    )
    request = {"prompt": "x", "image": needed}
    made = client.post("/v1/jobs", json={"task": "generate", "request": request}).json()
    assert made["request"]["image"] == needed, "the server's own path is not told"
    for file in (home / "inputs").iterdir():
        os.utime(file, (1, 1))
    assert Inputs(home, Caps(10**6, 10**6, 1, 300)).sweep(Store(home)) == 1
    assert [file.stem for file in (home / "inputs").iterdir()] == [needed] and other


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """One open folder, with a way out by a link, beside what must stay closed."""
    opened, closed = tmp_path / "open", tmp_path / "closed"
    for folder in (opened / "model", closed / "model"):
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text("{}")
    (closed / "key.txt").write_text("secret")
    (opened / "words.safetensors").write_text("x")
    (opened / "way-out").symlink_to(closed)
    (opened / "ring").symlink_to(opened / "ring")
    home = tmp_path / "home"
    return Places((opened,), home, Inputs(home, Caps(10**6, 10**6, 1, 300)))


@pytest.mark.parametrize(
    "field", ["model", "parts", "bridge", "wildcards", "lora_folder", "embeddings", "image", "mask"]
)
@pytest.mark.parametrize(
    "path",
    ["CLOSED/model", "CLOSED/key.txt", "../closed/model", "OPEN/../closed/model", "OPEN/way-out/model",
     "way-out/key.txt", "way-out", "ring", "..", ".", "~", "~root", "/etc/passwd", "/proc/self/environ", "a\0b",
     "file:///etc/passwd", "\\\\host\\share", "x" * 5000, "model/" * 2000],
)  # fmt: skip
def test_no_field_leads_out(places, field, path, tmp_path):
    if path == "." and field not in ("image", "mask"):
        return  # the open folder itself
    text = path.replace("CLOSED", str(tmp_path / "closed")).replace("OPEN", str(tmp_path / "open"))
    value = (text,) if field == "embeddings" else text
    with pytest.raises(BadInput) as refused:
        places.admitted(GenerateRequest(prompt="x", **{field: value}), Store(places.home))
    assert "secret" not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "values",
    [
        {"loras": ("/etc/passwd",)},
        {"loras": ("../closed/key",)},
        {"loras": ("~root:0.5",)},
        {"pictures": ("control=/etc/passwd",)},
        {"pictures": (f"../x={'0' * 64}",)},
        {"techniques": ({"id": "cfg", "settings": {"scale": "/etc/passwd"}},)},
        {"techniques": ({"id": "cfg", "settings": {"scale": [{"a": "../x"}]}},)},
        {"sampler": {"id": "ddim", "settings": {"path": "x"}}},
    ],
)
def test_no_inner_text_leads_out(places, values):
    with pytest.raises(BadInput):
        places.admitted(GenerateRequest(prompt="x", **values), Store(places.home))


def test_what_is_open_is_spelled_out(places, tmp_path):
    store, opened = Store(places.home), tmp_path / "open"
    asked = GenerateRequest(
        prompt="a cube / ../ ~",
        model="model",
        parts=str(opened / "model"),
        embeddings=("words.safetensors",),
        loras=("words.safetensors:0.5", "by-name"),
    )
    found = places.admitted(asked, store)
    assert (found.prompt, found.model, found.parts) == (asked.prompt, f"{opened}/model", f"{opened}/model")
    assert found.embeddings == (f"{opened}/words.safetensors",)
    assert [lora.name for lora in found.loras] == [f"{opened}/words.safetensors", "by-name"]
    assert places.admitted(GenerateRequest(prompt="x"), store).model == "still-life"
    assert not list(places.folder().iterdir())


@pytest.mark.parametrize("task", REQUESTS)
def test_every_text_of_a_request_says_what_it_holds(task):
    """A text that is marked as nothing can't hold a path over HTTP; those that may must be known here."""
    plain = {"decode", "device", "dtype", "maps", "view"}
    for name, info in REQUESTS[task].model_fields.items():
        if "str" not in str(info.annotation):
            continue
        extra = info.json_schema_extra
        assert isinstance(extra, dict)
        holds = extra.get("holds", "")
        assert holds in ("words", "model", "bridge", "place", "picture", "pictures", ""), name
        assert holds or name in plain, f"{name}: say in field(holds=...) what it stands for"


def test_urls_are_off_until_switched_on(client, serve):
    said = client.post("/v1/inputs", json={"url": "https://example.com/a.png"})
    assert said.status_code == 422 and "--urls" in said.json()["error"]["message"]
    assert client.post("/v1/inputs", json={}).status_code == 422


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://localhost/", "http://[::1]/", "http://0.0.0.0/", "http://[::ffff:127.0.0.1]/",
     "http://2130706433/", "http://0x7f.1/", "http://169.254.169.254/latest/meta-data", "http://10.0.0.1/",
     "file:///etc/passwd", "ftp://example.com/a", "gopher://127.0.0.1/", "http://user:pw@example.com/", "http://", "x",
     "http://[", "http://exa mple.com/\r\nX: y", "http://127.0.0.1:99999/"],
)  # fmt: skip
def test_inner_addresses_are_refused(serve, url):
    with serve(urls=True).client() as client:
        said = client.post("/v1/inputs", json={"url": url})
        assert said.status_code == 422 and said.json()["error"]["param"] == "url", said.text
        assert "\n" not in said.json()["error"]["message"]


@pytest.mark.parametrize(
    ("address", "public"),
    [("8.8.8.8", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.1.1.1", False), ("100.64.0.1", False),
     ("169.254.169.254", False), ("192.0.0.1", False), ("224.0.0.1", False), ("0.0.0.0", False), ("::", False),
     ("fe80::1%eth0", False), ("fc00::1", False), ("::ffff:10.0.0.1", False), ("64:ff9b::7f00:1", False),
     ("2002:7f00:1::", False), ("255.255.255.255", False)],
)  # fmt: skip
def test_which_addresses_are_public(address, public):
    assert is_public(address) is public


class Picture(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/on":
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.2:{self.server.server_port}/a.png")
            self.end_headers()
            return
        if self.path == "/ring":
            self.send_response(302)
            self.send_header("Location", "/ring")
            self.end_headers()
            return
        data = png() if self.path == "/a.png" else bytes(10_000)
        self.send_response(200 if self.path != "/gone" else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def site():
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), Picture)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_the_guard_looks_at_what_is_connected_to(site, monkeypatch):
    """As if 127.0.0.1 were the open internet, and 127.0.0.2 an inner address."""

    def outer(address: str) -> bool:
        return address == "127.0.0.1"

    assert fetch(f"http://127.0.0.1:{site}/a.png", 10**6, allowed=outer) == png()
    with pytest.raises(BadInput, match="not public"):
        fetch(f"http://127.0.0.1:{site}/on", 10**6, allowed=outer)
    with pytest.raises(BadInput, match="leads on more than 3 times"):
        fetch(f"http://127.0.0.1:{site}/ring", 10**6, allowed=outer)
    with pytest.raises(BadInput, match="more than 100 bytes"):
        fetch(f"http://127.0.0.1:{site}/long", 100, allowed=outer)
    with pytest.raises(BadInput, match="answers 404"):
        fetch(f"http://127.0.0.1:{site}/gone", 100, allowed=outer)
    asked: list[str] = []
    real = socket.getaddrinfo

    def turncoat(host: str, *rest: object, **more: object):
        """A name that is outer at the first look and inner at every later one."""
        asked.append(host)
        return real("127.0.0.1" if len(asked) == 1 else "127.0.0.2", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", turncoat)
    assert fetch(f"http://turncoat.example:{site}/a.png", 10**6, allowed=outer) == png()
    assert asked == ["turncoat.example"], "one look, and what it gave was connected to"
    with pytest.raises(BadInput, match="not public"):
        fetch(f"http://turncoat.example:{site}/a.png", 10**6, allowed=outer)
