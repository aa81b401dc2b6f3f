"""The server's process: its socket, its runner, and an end in which nothing is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from ..console import Console
from ..faults import refuse
from ..jobs.supervisor import end_with_parent
from .application import build_app
from .desk import Desk
from .serving import Serving
from .tokens import Tokens

NICENESS = 10
PATIENCE = 60.0
"""Seconds that the runner is given for its checkpoint."""
BACKLOG = 1024


class Server(uvicorn.Server):
    """Tells who waits before it closes the door."""

    def __init__(self, config: uvicorn.Config, desk: Desk, ready: Callable[[], object] | None = None) -> None:
        super().__init__(config)
        self.desk, self.ready = desk, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.ready is not None and self.started:
            self.ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.desk.drain()
        super().handle_exit(sig, frame)


def serve(
    serving: Serving,
    home: Path,
    console: Console,
    *,
    pages: bool = False,
    ready: Callable[[str], object] | None = None,
) -> int:
    """Until SIGTERM or Ctrl+C: then open requests end, and the runner writes its checkpoint.

    `ready` is told the address once it answers.
    """
    check(serving, home)
    link = listening(serving)
    host, port = link.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    child = start_runner(serving, home, console) if serving.runner else None
    alive = None if child is None else lambda: child.poll() is None
    app = build_app(serving.model_copy(update={"port": port}), home, runner=alive, pages=pages)
    desk = app.state.desk
    desk.inputs.sweep(desk.store)
    config = configured(app, serving, verbose=console.verbose)
    before = [signal.signal(number, _ignore) for number in (signal.SIGINT, signal.SIGTERM)]
    console.data({"url": url, "home": str(home), "pid": os.getpid()}, f"serving {url}")
    try:
        Server(config, desk, ready and (lambda: ready(url))).run(sockets=[link])
    finally:
        link.close()
        if child is not None:
            stop_runner(child, console)
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
    return 0


def configured(app: FastAPI, serving: Serving, *, verbose: bool = False) -> uvicorn.Config:
    """Headers of proxies are not believed: who asks is told by his token alone."""
    return uvicorn.Config(
        app,
        log_level="info" if verbose else "warning",
        access_log=verbose,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=serving.drain,
        backlog=BACKLOG,
        lifespan="on",
    )


def _ignore(number: int, frame: FrameType | None) -> None:
    """Uvicorn hands the signal on when it has ended; by then there is nothing more to do."""


def check(serving: Serving, home: Path) -> None:
    """What can't be served safely is not served at all."""
    if serving.guarded and not Tokens(home).all():
        why = "is reachable from elsewhere" if not serving.loopback else "asks for tokens"
        raise refuse(
            "host", serving.host, f"{why}, and there is no token; `sfumato serve token add NAME` makes one"
        )
    if serving.address is not None and serving.engine != "ray":
        raise refuse("address", serving.address, "is for a cluster; add --engine ray")
    if serving.engine == "ray" and not find_spec("ray"):
        raise refuse("engine", "ray", "needs Ray; pip install 'sfumato[batch]' brings it")
    for path in serving.allow_path:
        if not Path(path).expanduser().is_dir():
            raise refuse("allow_path", path, "is no folder; name one that is there")
    for origin in serving.allow_origin:
        if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
            raise refuse("allow_origin", origin, "is no origin; write it as in https://studio.example")


def listening(serving: Serving) -> socket.socket:
    family = socket.AF_INET6 if ":" in serving.host else socket.AF_INET
    try:
        link = socket.create_server((serving.host.strip("[]"), serving.port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such name"
        remedy = f"can't be listened on ({reason}); choose another --port or --host"
        raise refuse("port", f"{serving.host}:{serving.port}", remedy) from error
    link.setsockopt(
        socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
    )  # asyncio does so for its own sockets alone: 40 ms
    return link


def start_runner(serving: Serving, home: Path, console: Console) -> subprocess.Popen[bytes]:
    """`sfumato jobs run --forever` in a group of its own, so that Ctrl+C reaches it from here alone."""
    command = [sys.executable, "-m", "sfumato.app", "jobs", "run", "--forever", "--device", serving.device]
    command += ["--engine", serving.engine, "--replicas", str(serving.replicas)]
    command += ["--address", serving.address] if serving.address else []
    return subprocess.Popen(
        [*command, *(["--quiet"] if console.quiet else [])],
        env={**os.environ, "SFUMATO_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        preexec_fn=behind if sys.platform == "linux" else None,
        process_group=0,
    )


def behind() -> None:
    """In the child: it gives the processor up to the server, whose answers are short, whenever that asks for it."""
    end_with_parent()
    os.nice(NICENESS)


def stop_runner(child: subprocess.Popen[bytes], console: Console) -> None:
    with suppress(ProcessLookupError):
        child.terminate()
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        console.say(f"the runner did not end within {PATIENCE:g} s; its job goes on from its last checkpoint")
        child.kill()
        child.wait()
