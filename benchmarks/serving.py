"""Serving: what asking how far a job is costs, with 100 clients that ask twice a second while a job runs.

- *poll*: from the request's first byte to the answer's last, on lines that stay open, over a few seconds; one value per
  round, its 99th percentile. The clients are one process, the server another, its runner a third.
- *as fast as possible*: one client that asks again at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness import Options, Row, finish, machine, options, row
from sfumato.app.jobs import control
from sfumato.app.jobs.store import RUNNING, Store
from sfumato.app.requests import GenerateRequest

CLIENTS = 100
PAUSE = 0.5
SECONDS = 5.0
PROMPT = "a large green cube, in snow"


class Line:
    """One HTTP/1.1 connection, kept open: a client library would cost more than the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self.reader, self.writer, self.host = reader, writer, host

    async def get(self, path: str) -> tuple[int, bytes]:
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode())
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        return int(head.split(" ", 2)[1]), await self.reader.readexactly(length)


async def opened(url: str) -> Line:
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    return Line(*await asyncio.open_connection(parts.hostname, parts.port), parts.netloc)


async def polling(url: str, path: str, clients: int, seconds: float) -> list[float]:
    """Milliseconds of every answer."""
    taken: list[float] = []

    async def client(number: int) -> None:
        line = await opened(url)
        await asyncio.sleep(PAUSE * number / clients)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            began = time.perf_counter()
            code, _ = await line.get(path)
            taken.append(1000 * (time.perf_counter() - began))
            assert code == 200
            await asyncio.sleep(PAUSE)
        line.writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return taken


async def alone(url: str, path: str, seconds: float) -> float:
    """Answers per second."""
    line, count, began = await opened(url), 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        await line.get(path)
        count += 1
    line.writer.close()
    return count / (time.perf_counter() - began)


@contextmanager
def serving(home: Path, device: str) -> Iterator[str]:
    command = [
        sys.executable,
        "-m",
        "sfumato.app",
        "serve",
        "--port",
        "0",
        "--device",
        device,
        "--json",
        "--quiet",
    ]
    with subprocess.Popen(
        command, env={**os.environ, "SFUMATO_HOME": str(home)}, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout
            text = ""
            while "}" not in text:
                text += server.stdout.readline()
            told: dict[str, Any] = json.loads(text)
            yield str(told["url"])
        finally:
            server.terminate()


def measured(given: Options, *, clients: int = CLIENTS, seconds: float = SECONDS) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), given.device) as url:
        store = Store(Path(folder))
        request = GenerateRequest(
            prompt=PROMPT, steps=given.steps, count=10_000, model=given.model, device=given.device
        )
        id = store.submit(request)
        while store.get(id).state != RUNNING or store.get(id).step < 2:
            time.sleep(0.05)
        path = f"/v1/jobs/{id}"
        asyncio.run(polling(url, path, clients, 1.0))
        rounds = [asyncio.run(polling(url, path, clients, seconds)) for _ in range(given.repeats)]
        rates = [asyncio.run(alone(url, path, seconds / 5)) for _ in range(given.repeats)]
        assert store.get(id).state == RUNNING
        control.cancel(store, id)
    what = f"poll a running job, {clients} clients"
    return [
        row(f"{what}, 99 %", [percentile(times, 99) for times in rounds], "ms", bar="<= 10", headline=True),
        row(f"{what}, 50 %", [percentile(times, 50) for times in rounds], "ms"),
        row("as fast as possible, one client", rates, "answers/s"),
    ]


def percentile(values: list[float], share: int) -> float:
    return statistics.quantiles(values, n=100)[share - 1]


def main() -> None:
    given = options((__doc__ or "").partition("\n")[0])
    about = machine(given.device)
    finish("serving", "Serving", measured(given), about, given)


if __name__ == "__main__":
    main()
