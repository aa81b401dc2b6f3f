"""The few answers of the Hub that a download asks for, over HTTP."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(BaseHTTPRequestHandler):
    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, whole: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        files = {f.relative_to(self.folder).as_posix(): f for f in self.folder.rglob("*") if f.is_file()}
        oids = {name: hashlib.sha1(f.read_bytes()).hexdigest() for name, f in files.items()}
        headers = {"X-Repo-Commit": COMMIT}
        if path.startswith(f"/api/models/someone/tiny/tree/{COMMIT}"):
            listed = [
                {"type": "file", "path": n, "size": f.stat().st_size, "oid": oids[n]}
                for n, f in files.items()
            ]
            body = json.dumps(listed).encode()
        elif path.startswith("/api/models/someone/tiny"):
            siblings = [{"rfilename": n, "size": f.stat().st_size} for n, f in files.items()]
            body = json.dumps({"id": "someone/tiny", "sha": COMMIT, "siblings": siblings}).encode()
        elif (name := path.removeprefix(f"/someone/tiny/resolve/{COMMIT}/")) in files:
            body = files[name].read_bytes()
            headers |= {"ETag": f'"{oids[name]}"', "Accept-Ranges": "bytes"}
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if whole:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        return


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Where `folder` is to be had as someone/tiny, and the paths that were asked for."""
    Server.folder, Server.asked = folder, []
    made = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_port}", Server.asked
    finally:
        made.shutdown()
        thread.join()
        made.server_close()
