"""What a server can be told: its address, what it opens to strangers, its limits. The command line is made from it."""

from __future__ import annotations

import ipaddress
from typing import ClassVar, Literal

from ..requests import Request, field


class Serving(Request):
    """Serve the HTTP API: jobs of one's own, OpenAI's and A1111's ways to ask for pictures."""

    task: ClassVar[str] = "serve"

    host: str = field(
        "127.0.0.1", "address to listen on; any but this machine's own needs a token", min_length=1
    )
    port: int = field(7860, "port to listen on; 0 takes a free one", ge=0, le=65535)
    runner: bool = field(
        True, "start a runner too, instead of `sfumato jobs run` elsewhere (on if not given)"
    )
    device: str = field("auto", "device of the runner: auto, cpu, mps or cuda:0")
    engine: Literal["local", "ray"] = field("local", "where jobs run: here, or on replicas of a Ray cluster")
    address: str | None = field(
        None, "of the Ray cluster, as HOST:6379; one is started here if not given", min_length=1
    )
    replicas: int = field(0, "jobs at once on Ray; 0 is one per device", ge=0, le=1000)
    require_token: bool = field(False, "ask for a token on this machine's own address too", group="security")
    allow_path: tuple[str, ...] = field(
        (), "folder whose models, LoRAs and lists may be named in requests; repeat for more", group="security"
    )
    allow_host: tuple[str, ...] = field(
        (), "name under which clients or a proxy reach the server; repeat for more", group="security"
    )
    allow_origin: tuple[str, ...] = field(
        (), "web page that may use the API, as https://studio.example; repeat for more", group="security"
    )
    urls: bool = field(
        False, "fetch pictures by URL, from public addresses only (off if not given)", group="security"
    )
    downloads: bool = field(
        False,
        "let the pages download models of the Hugging Face Hub (off if not given)",
        group="security",
    )
    queue: int = field(100, "waiting jobs beyond which no more are taken", group="limits", ge=1)
    rate: int = field(600, "changes per minute and token", group="limits", ge=1)
    reads: int = field(60_000, "reads per minute and token", group="limits", ge=1)
    upload_bytes: int = field(50_000_000, "largest body of a request", unit="bytes", group="limits", ge=1000)
    pixels: int = field(40_000_000, "largest picture that is taken in", unit="px", group="limits", ge=1)
    frames: int = field(1, "most frames of a picture that is taken in", group="limits", ge=1)
    ratio: int = field(300, "most bytes that one byte of a large picture may unfold to", group="limits", ge=2)
    drain: int = field(20, "seconds that open requests are given at the end", unit="s", group="limits", ge=0)

    @property
    def loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def guarded(self) -> bool:
        """Whether every request needs a token. A proxy in front of a loopback address makes it public too."""
        return self.require_token or bool(self.allow_host) or not self.loopback

    @property
    def alone(self) -> bool:
        """Whether nobody comes in but from this machine, and no other site's page."""
        return not self.guarded and not self.allow_origin


def is_loopback(host: str) -> bool:
    name = host.strip("[]").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
