"""`sfumato models ...`: which models there are, what a file is, and ways to get them in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .compile_command import models_compile
from .console import Console, table
from .faults import refuse
from .quantize_command import models_quantize

Name = Annotated[str, typer.Argument(help="a remembered name: `sfumato models` lists them", metavar="NAME")]
Place = Annotated[
    str, typer.Argument(help="a file, a folder, or owner/name of a pulled model", metavar="PATH_OR_ID")
]


def models_list(console: Console) -> None:
    """List all models that can be named: built-in, remembered, pulled, and in shared folders; and the families."""
    from ..pipelines.doors.hub import all_pulled
    from .catalogue import catalogue
    from .inspection import builtin_models
    from .model_facts import facts
    from .model_paths import paths_file, read_model_paths, shared_files
    from .registration import place_of
    from .registry import read_registry

    file = paths_file()
    builtin, remembered, pulled = builtin_models(), read_registry(), all_pulled()
    shared = shared_files(read_model_paths(file)) if file else {}
    families = [e for e in catalogue().values() if e.kind == "family"]
    rows: list[tuple[str, ...]] = [("built-in", m["name"], m["text"]) for m in builtin]
    known = {name: facts(place_of(entry.place)) for name, entry in remembered.items()}
    rows += [("remembered", name, f"{known[name].text}, {m.place}") for name, m in remembered.items()]
    rows += [("pulled", name, "") for name in pulled]
    rows += [(kind, f.name, str(f.parent)) for kind, files in shared.items() for f in files]
    rows += [("family", e.id, e.summary) for e in families]
    data = {
        "builtin": builtin,
        "remembered": {
            name: {**m.model_dump(), "about": known[name]._asdict()} for name, m in remembered.items()
        },
        "pulled": pulled,
        "shared": {kind: [str(f) for f in files] for kind, files in shared.items()},
        "families": [e.plain() for e in families],
    }
    console.data(data, table(rows) or "no built-in models are installed and no families are known")


def models_add(
    console: Console,
    place: Place,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="what to call it; the name of the file or folder if not given", metavar="NAME"
        ),
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            "--parts",
            help="for a single file: the diffusers folder with its tokenizers",
            metavar="FOLDER",
        ),
    ] = None,
    hashed: Annotated[
        bool,
        typer.Option("--hash/--no-hash", help="remember the hash, for `models verify`; reads the whole file"),
    ] = True,
) -> None:
    """Remember a model or a LoRA under a name, where it lies; nothing is copied."""
    from .registration import add, settled
    from .registry import locate, registry_file

    found = settled(place)
    parts = None if parts is None else settled(locate(parts, field="parts").place)
    chosen, entry = add(found, name=name, parts=parts, hashed=hashed, say=console.say)
    data = {"name": chosen, **entry.model_dump(), "registry": str(registry_file())}
    console.data(data, f"{chosen}: {entry.kind or entry.role}, {found}")


def models_remove(console: Console, name: Name) -> None:
    """Forget a remembered name. The weights stay where they are."""
    from .registry import forget

    entry = forget(name)
    console.data({"name": name, "place": entry.place}, f"{name} is forgotten; {entry.place} is still there")


def models_inspect(console: Console, place: Place) -> None:
    """Say what a file or folder is: family, role, parameters, precision; rank and target of a LoRA.

    Headers alone are read, so it is quick however large the weights are.
    """
    from .inspection import told
    from .registration import about, settled

    found = about(settled(place))
    console.data(found, told(found))


def models_verify(console: Console, place: Place) -> int:
    """Check headers, and that the tensors are those that were added. Exit code 1 if something is wrong."""
    from .checks import verify
    from .registration import path_of, settled
    from .registry import read_registry

    entry = read_registry().get(place)
    target = settled(place) if entry is None else entry.place
    report = verify(path_of(target), entry.hashes if entry else {})
    data = {"name": place, "place": target, **report}
    lines = [f"PROBLEM  {text}" for text in report["problems"]] or [
        f"{place}: {report['files']} files, headers are sound"
        + (
            ", tensors are those that were added"
            if report["compared"]
            else "; no hash is remembered to compare with"
        )
    ]
    console.data(data, "\n".join(lines))
    return 1 if report["problems"] else 0


def models_convert(
    console: Console,
    file: Annotated[str, typer.Argument(help="a .ckpt, .pt, .pth or .bin file", metavar="FILE")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="the .safetensors file to write", metavar="FILE")
    ],
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", help="seconds; 60 and one per 20 MB if not given", min=1, metavar="SECONDS"
        ),
    ] = None,
) -> None:
    """Make safetensors of a pickled file, without running what it holds.

    A child process reads it: no network, no other files, bounded memory and time, tensors and plain values only.
    """
    from ..pipelines.doors.convert import convert

    made = convert(Path(file).expanduser(), Path(output).expanduser(), timeout=timeout)
    if made.left_out:
        console.say(f"{made.left_out} values are no tensors and were left out")
    data = {"file": str(made.path), "tensors": made.tensors, "left_out": made.left_out}
    console.data(data, str(made.path))


def models_pull(
    console: Console,
    place: Annotated[str, typer.Argument(help="owner/name or owner/name@revision", metavar="ID")],
    weights: Annotated[
        bool, typer.Option("--weights/--no-weights", help="configs and tokenizers only: enough for --parts")
    ] = True,
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant", help="weights in this precision where there are such, as fp16", metavar="NAME"
        ),
    ] = None,
) -> None:
    """Download a model from the Hugging Face Hub, and print the commit that came.

    Safetensors, configs and tokenizers only, never code. Afterwards `--model owner/name` opens it, offline.
    """
    from ..pipelines.doors.hub import pull

    console.say(f"downloading {place}")
    found = pull(place, weights=weights, variant=variant)
    pinned = f"{found.repository}@{found.commit}"
    data = {**found._asdict(), "model": pinned, "folder": str(found.folder)}
    console.data(data, f"{pinned}\n{found.folder}")


def models_measure(
    console: Console,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:1")] = "cpu",
    dtype: Annotated[
        str, typer.Option("--dtype", help="number type: float32, bfloat16 or float16")
    ] = "float32",
) -> None:
    """Measure this machine anew for the times that --dry-run predicts; takes about a second."""
    import torch

    from .rates import costs_file, rates
    from .weighing import BYTES

    if dtype not in BYTES:
        raise refuse("dtype", dtype, f"must be one of {', '.join(BYTES)}")
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise refuse("device", device, "is not there; leave it out for the processor")
    found = rates(device, dtype, anew=True)
    rows: list[tuple[str, ...]] = [(name, f"{value / 1e9:.1f} G per second") for name, value in found.items()]
    console.data({"device": device, "dtype": dtype, "file": str(costs_file()), "rates": found}, table(rows))


MODELS: dict[str, Callable[..., Any]] = {
    "models list": models_list,
    "models add": models_add,
    "models remove": models_remove,
    "models inspect": models_inspect,
    "models verify": models_verify,
    "models convert": models_convert,
    "models pull": models_pull,
    "models quantize": models_quantize,
    "models compile": models_compile,
    "models measure": models_measure,
}
