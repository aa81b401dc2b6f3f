"""The command line: `sfumato`, one sub-command per verb. Tasks are in `tasks.py`, others in `commands.py`.

Data goes to stdout, talk to stderr. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import inspect
import os
import sqlite3
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .console import Console, complain
from .faults import INTERRUPTED, describe
from .options import request_command

ABOUT = "Images, video and 3D with diffusion and flow models; every technique works with every model family."
JOBS_ABOUT = "Queue requests, run them in the background, see what became of them. Alone, the queue."
MODELS_ABOUT = "Which models there are, what a file is, and ways to get them in. Alone, the list."

app = typer.Typer(
    name="sfumato",
    help=ABOUT,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Format = Annotated[Literal["text", "json"] | None, typer.Option("--format", help="shape of stdout")]
Json = Annotated[bool, typer.Option("--json", help="short for --format json")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no talk on stderr but errors")]
Verbose = Annotated[bool, typer.Option("--verbose", help="more talk, and tracebacks of errors")]


def _common(
    format: Format = None, json: Json = False, quiet: Quiet = False, verbose: Verbose = False
) -> None:
    """Only its signature counts: the options that every command has."""


def _show_version(given: bool) -> None:
    if given:
        print(f"sfumato {version('sfumato')}")
        raise typer.Exit(0)


@app.callback(help=ABOUT)
def root(
    ctx: typer.Context,
    format: Format = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    version: Annotated[
        bool, typer.Option("--version", help="print the version", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options before the command; each command has them too."""
    ctx.obj = Console("json" if json else format or "text", quiet, verbose)


def with_console(function: Callable[..., Any], *, group: bool = False) -> Callable[..., Any]:
    """A command `function(console, ...)` with the common options in place of `console`.

    Of a `group`, it is what the group does if no command of its own follows.
    """
    context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    own = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters(function) if p.name != "console"
    ]
    shared = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters(_common)]

    def command(*, ctx: typer.Context, **given: Any) -> None:
        base = ctx.obj if isinstance(ctx.obj, Console) else Console()
        format = "json" if given.pop("json") else given.pop("format", None) or base.format
        given.pop("format", None)
        console = Console(format, given.pop("quiet") or base.quiet, given.pop("verbose") or base.verbose)
        if group and ctx.invoked_subcommand is not None:
            ctx.obj = console
            return
        console.listen()
        code = function(console=console, **given)
        if code:
            raise typer.Exit(code)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    signature = inspect.Signature([context, *own, *shared])
    command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    command.__signature__ = signature  # type: ignore[attr-defined]
    return command


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function, eval_str=True).parameters.values())


def _alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a group does without a command of its own: `function(console)`. Options before the command hold for it."""

    def callback(
        ctx: typer.Context,
        format: Format = None,
        json: Json = False,
        quiet: Quiet = False,
        verbose: Verbose = False,
    ) -> None:
        base = ctx.obj if isinstance(ctx.obj, Console) else Console()
        shape = "json" if json else format or base.format
        ctx.obj = Console(shape, quiet or base.quiet, verbose or base.verbose)
        if ctx.invoked_subcommand is None:
            function(console=ctx.obj)

    return callback


def register() -> None:
    """Commands of the tasks, then the others."""
    from .batch_commands import BATCH_ABOUT
    from .commands import COMMANDS
    from .serve_commands import serve, ui
    from .server.serving import Serving
    from .tasks import TASKS

    for task in TASKS:
        app.command(task.request.task)(with_console(request_command(task.request)(task.command)))
    groups = {
        "": app,
        "train": typer.Typer(help="Train built-in models from their recipes.", no_args_is_help=True),
        "models": typer.Typer(help=MODELS_ABOUT, invoke_without_command=True),
        "jobs": typer.Typer(help=JOBS_ABOUT, invoke_without_command=True),
        "jobs submit": typer.Typer(help="Queue a request of a task.", no_args_is_help=True),
        "batch": typer.Typer(help=BATCH_ABOUT, no_args_is_help=True),
        "serve": typer.Typer(help=serve.__doc__, invoke_without_command=True),
        "serve token": typer.Typer(help="Tokens: who may use the server.", no_args_is_help=True),
    }
    groups["serve"].callback(help=serve.__doc__)(with_console(request_command(Serving)(serve), group=True))
    app.command("ui")(with_console(request_command(Serving)(ui)))
    for name, about in (("models", MODELS_ABOUT), ("jobs", JOBS_ABOUT)):
        groups[name].callback(help=about)(_alone(COMMANDS[f"{name} list"]))
    for name, function in COMMANDS.items():
        group, _, verb = name.rpartition(" ")
        groups[group].command(verb)(with_console(function))
    for name in ("jobs submit", "serve token", "models", "train", "jobs", "batch", "serve"):
        group, _, verb = name.rpartition(" ")
        groups[group].add_typer(groups[name], name=verb)


register()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code. Expected faults are one sentence on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # compiled blocks are kept where the machine's other kernels lie, not in its folder for temporary files
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "sfumato" / "compiled"))
    try:
        result = typer.main.get_command(app).main(args=arguments, prog_name="sfumato", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except typer.TyperException as error:
        complain(f"sfumato: {error.format_message()} (--help shows what is possible)")
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # `sfumato techniques | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, RuntimeError, OSError, MemoryError, sqlite3.Error) as error:
        described = describe(error)
        if described is None:
            raise
        if "--verbose" in arguments:
            traceback.print_exc()
        code, sentence = described
        complain(sentence)
        return code
