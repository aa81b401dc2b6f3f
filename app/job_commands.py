"""`sfumato jobs ...`: queue requests, see what becomes of them, change one's mind, run them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from .builder import check_named
from .console import Console, table
from .deletion_commands import jobs_delete, jobs_gc
from .faults import DONE, FAILED, INTERRUPTED, refuse, unknown
from .options import request_command
from .requests import Request
from .settings import make_request
from .tasks import TASKS, Config, gathered

Id = Annotated[int, typer.Argument(help="number of a job: `sfumato jobs list` shows them", metavar="ID")]
Limit = Annotated[int, typer.Option("--limit", help="most jobs to show", min=1)]
Priority = Annotated[int, typer.Option("--priority", help="higher runs earlier", min=-1000, max=1000)]


def _store() -> Any:
    from .jobs.home import data_folder
    from .jobs.store import Store

    return Store(data_folder())


def _fresh_store() -> Any:
    """The store after a look for runners that died."""
    from .jobs.home import policy
    from .jobs.ledger import recover

    store = _store()
    recover(store, policy().strikes)
    return store


def submitter(request: type[Request]) -> Callable[..., None]:
    """The command that queues one kind of request."""

    def submit(
        values: dict[str, Any],
        console: Console,
        *,
        config: Config = None,
        priority: Priority = 0,
        paused: Annotated[bool, typer.Option("--paused", help="wait until it is resumed")] = False,
    ) -> None:
        from .jobs import control

        found = make_request(request, gathered(request, values, config, console))
        check_named(found)
        store = _store()
        id = store.submit(found, priority=priority)
        if paused:
            control.pause(store, id)
        console.data(_told(store, id), str(id))

    submit.__doc__ = f"Queue it: {request.__doc__}"
    return request_command(request)(submit)


def jobs_list(
    console: Console,
    state: Annotated[
        str | None,
        typer.Option("--state", help="queued, running, interrupted, completed, failed or cancelled only"),
    ] = None,
    limit: Limit = 50,
    offset: Annotated[int, typer.Option("--offset", help="jobs to skip", min=0)] = 0,
) -> None:
    """List what runs and what waits, in the order in which it is taken; with --state, the newest of that state."""
    from .jobs.store import STATES

    if state is not None and state not in STATES:
        raise unknown("state", state, STATES, f"known are {', '.join(STATES)}")
    store = _fresh_store()
    jobs = store.queue(limit=limit, offset=offset)
    if state is not None:
        jobs = store.history(states=[state], limit=limit + offset)[offset:]
    counts = store.counts()
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "no jobs yet"
    data = {"jobs": [job.plain() for job in jobs], "counts": counts}
    console.data(data, "\n".join([*([_table(jobs)] if jobs else []), told]))


def jobs_show(console: Console, id: Id) -> None:
    """Tell all about one job: its request, how far it is, what happened, its results and where they are."""
    from .jobs.artifacts import artifact_path

    store = _fresh_store()
    data = _told(store, id)
    data["events"] = [event._asdict() for event in store.events(job=id)]
    data["artifacts"] = [
        {**kept._asdict(), "path": str(artifact_path(store.home, kept.hash, kept.suffix))}
        for kept in store.artifacts(id)
    ]
    lines = [_table([store.get(id)])]
    lines += [f"error  {data['error']}"] if data["error"] else []
    lines += [f"{_clock(e['time'])}  {e['kind']}" for e in data["events"]]
    lines += [f"{kept['name']}  {kept['path']}" for kept in data["artifacts"]]
    console.data(data, "\n".join(lines))


def jobs_search(
    console: Console,
    words: Annotated[
        list[str] | None,
        typer.Argument(help="all must be in the request (prompt, model ...) or the error", metavar="[WORDS]"),
    ] = None,
    state: Annotated[str | None, typer.Option("--state", help="jobs in this state only")] = None,
    task: Annotated[str | None, typer.Option("--task", help="jobs of this task only")] = None,
    before: Annotated[
        int | None, typer.Option("--before", help="older than this job: the next page", metavar="ID")
    ] = None,
    limit: Limit = 50,
) -> None:
    """Search the history, newest first."""
    store = _fresh_store()
    jobs = store.history(words or (), states=[state] if state else (), task=task, before=before, limit=limit)
    console.data([job.plain() for job in jobs], _table(jobs) or "nothing found")


def jobs_cancel(console: Console, id: Id) -> None:
    """Cancel a job. One that runs stops before its next network call; what it has finished stays."""
    from .jobs import control

    _done(console, control.cancel(_fresh_store(), id))


def jobs_pause(console: Console, id: Id) -> None:
    """Pause a job. One that runs writes a checkpoint and stops; it waits until it is resumed."""
    from .jobs import control

    _done(console, control.pause(_fresh_store(), id))


def jobs_resume(console: Console, id: Id) -> None:
    """Let a paused job go on, from its checkpoint."""
    from .jobs import control

    _done(console, control.resume(_fresh_store(), id))


def jobs_retry(console: Console, id: Id) -> None:
    """Try a failed or cancelled job again; what it has finished is not made anew."""
    from .jobs import control

    _done(console, control.retry(_fresh_store(), id))


def jobs_move(
    console: Console,
    id: Id,
    before: Annotated[
        int | None, typer.Option("--before", help="to just before this waiting job", metavar="ID")
    ] = None,
    first: Annotated[bool, typer.Option("--first", help="to the head of the queue")] = False,
    last: Annotated[bool, typer.Option("--last", help="to the end of its priority")] = False,
    priority: Annotated[
        int | None, typer.Option("--priority", help="higher runs earlier", min=-1000, max=1000)
    ] = None,
) -> None:
    """Move a waiting job in the queue."""
    from .jobs import control

    if [before is not None, first, last, priority is not None].count(True) != 1:
        raise refuse("move", id, "needs one of --before, --first, --last and --priority")
    store = _fresh_store()
    if priority is not None:
        _done(console, control.prioritise(store, id, priority))
        return
    head = control.first(store)
    if first and head == id:
        _done(console, store.get(id))
        return
    _done(console, control.move(store, id, before=head if first else before))


def jobs_run(
    console: Console,
    forever: Annotated[bool, typer.Option("--forever", help="wait for more instead of ending")] = False,
    device: Annotated[
        str,
        typer.Option("--device", help="auto, cpu, mps or cuda:0; one runner each", metavar="NAME"),
    ] = "auto",
    alone: Annotated[
        bool,
        typer.Option("--alone", help="in this very process: it is not started again if a job takes it down"),
    ] = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="where jobs run: here, or on a Ray cluster")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            "--address", help="of the Ray cluster; one is started here if not given", metavar="ADDRESS"
        ),
    ] = None,
    replicas: Annotated[
        int, typer.Option("--replicas", help="jobs at once on Ray; 0 is one per device", min=0, max=1000)
    ] = 0,
) -> int:
    """Run the jobs that wait, in their order, until none is left. Ctrl+C writes a checkpoint and stops."""
    from .jobs.home import data_folder, policy

    if not alone:
        from .jobs.supervisor import supervise

        options = ["--device", device, "--format", console.format]
        options += [*(["--forever"] if forever else []), *(["--quiet"] if console.quiet else [])]
        options += ["--engine", engine, "--replicas", str(replicas)]
        options += ["--address", address] if address else []
        return supervise(options, data_folder(), console, strikes=policy().strikes)
    from .interruption import asked_to_stop
    from .jobs.runner import Runner, settle

    if engine == "ray":
        from .batch.ray_jobs import Cluster, run_on_ray

        return run_on_ray(Cluster(address, replicas), data_folder(), console, forever=forever)
    name, others = settle(device)
    with asked_to_stop(console.say) as stopping:
        runner = Runner(_store(), name, others, policy=policy(), stopping=stopping, say=console.say)
        ended = runner.run(forever=forever)
        told = ", ".join(f"{count} {state}" for state, count in ended.items()) or "nothing was waiting"
        console.data({"device": name, "ended": ended}, told)
        if stopping():
            return INTERRUPTED
    return FAILED if ended.get("failed") else DONE


def _told(store: Any, id: int) -> dict[str, Any]:
    data: dict[str, Any] = store.get(id).plain()
    return data | {"request": store.request(id)}


def _done(console: Console, job: Any) -> None:
    wanted = f", asked to {job.wanted}" if job.wanted else ""
    console.data(job.plain(), f"job {job.id}: {'paused' if job.held else job.state}{wanted}")


def _table(jobs: list[Any]) -> str:
    rows: list[tuple[str, ...]] = []
    for job in jobs:
        state = "paused" if job.held else job.state
        far = f"{job.step}/{job.steps}" if job.steps else job.phase
        rows.append((str(job.id), state, far, _clock(job.created), job.task, job.summary[:60]))
    return table(rows)


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


JOBS: dict[str, Callable[..., Any]] = {
    **{f"jobs submit {task.request.task}": submitter(task.request) for task in TASKS},
    "jobs list": jobs_list,
    "jobs show": jobs_show,
    "jobs search": jobs_search,
    "jobs cancel": jobs_cancel,
    "jobs pause": jobs_pause,
    "jobs resume": jobs_resume,
    "jobs retry": jobs_retry,
    "jobs move": jobs_move,
    "jobs delete": jobs_delete,
    "jobs gc": jobs_gc,
    "jobs run": jobs_run,
}
