"""`sfumato serve ...`: the HTTP API, and the tokens that open it; `sfumato ui`: the pages, in one process with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from .console import Console, table
from .faults import Failure
from .server.serving import Serving
from .settings import make_request

NEEDED = ("fastapi", "uvicorn", "prometheus_client", "multipart")
"""Packages of the server."""

Browser = Annotated[bool, typer.Option("--browser/--no-browser", help="open the pages in the usual browser")]
Name = Annotated[str, typer.Argument(help="what the token is called, as my-laptop", metavar="NAME")]


def serve(values: dict[str, Any], console: Console) -> int:
    """Serve the HTTP API: jobs of one's own, OpenAI's and A1111's ways to ask for pictures.

    Listens to this machine alone unless told otherwise. Ends on Ctrl+C or SIGTERM; jobs go on at the next start.
    """
    from .jobs.home import data_folder

    serving = make_request(Serving, values)
    _installed("serve", NEEDED)
    from .server.process import serve as run

    return run(serving, data_folder(), console)


def ui(values: dict[str, Any], console: Console, *, browser: Browser = True) -> int:
    """Open the pages: every task as a form, the queue, the gallery. The HTTP API is there too.

    Listens to this machine alone unless told otherwise. Ends on Ctrl+C or SIGTERM; jobs go on at the next start.
    """
    import webbrowser

    from .jobs.home import data_folder

    serving = make_request(Serving, values)
    _installed("ui", (*NEEDED, "gradio", "markupsafe"))
    from .server.process import serve as run

    return run(serving, data_folder(), console, pages=True, ready=webbrowser.open if browser else None)


def _installed(extra: str, packages: tuple[str, ...]) -> None:
    from importlib.util import find_spec

    missing = [name for name in packages if not find_spec(name)]
    if missing:
        raise Failure(
            f"{extra}: {', '.join(missing)} is not installed; pip install 'sfumato[{extra}]' brings it"
        )


def token_add(console: Console, name: Name) -> None:
    """Make a token. It is shown this once; what is kept is a hash."""
    token = _tokens().add(name)
    console.say(f"the token of {name}, shown this once:")
    console.data({"name": name, "token": token}, token)


def token_list(console: Console) -> None:
    """List the tokens by name."""
    rows = [(name, _clock(stored.created)) for name, stored in _tokens().all().items()]
    data = [{"name": name, "created": created} for name, created in rows]
    console.data(data, table([(name, created) for name, created in rows]) or "no tokens yet")


def token_remove(console: Console, name: Name) -> None:
    """Remove a token: from now on it opens nothing."""
    _tokens().remove(name)
    console.data({"name": name}, f"{name} is removed")


def _tokens() -> Any:
    from .jobs.home import data_folder
    from .server.tokens import Tokens

    return Tokens(data_folder())


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


TOKENS: dict[str, Callable[..., Any]] = {
    "serve token add": token_add,
    "serve token list": token_list,
    "serve token remove": token_remove,
}
