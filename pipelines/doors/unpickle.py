"""A script, run as a child process: read tensors out of a pickle that is not trusted, and write safetensors.

It imports nothing of ours, so that it can run isolated. Arguments: source, target (an empty file), bytes of memory.
One line of JSON goes to stdout: {"tensors": n, "left_out": n} or {"refused": "why"}. Guards, in this order: no network
(a namespace of its own where the system permits, and no sockets), no further process, no file written but the target,
a limit on memory; and torch's own unpickler, which builds tensors and plain values and calls nothing else.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000
FORBIDDEN = (
    *("socket.", "subprocess.", "shutil.", "urllib.", "ftplib.", "smtplib.", "webbrowser.", "pty.spawn"),
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill", "os.putenv"),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink"),
    *("os.chmod", "os.chown", "os.truncate"),
)
"""Beginnings of the names of audit events."""
WRAPPERS = ("state_dict", "model_state_dict", "params_ema", "params", "model", "string_to_param")
"""Keys under which trainers put the weights."""
INERT = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
)
"""Leftovers of trainers in old checkpoints; an object that does nothing stands for them."""
DEPTH = 8


class Inert:
    """Stands for what is thrown away."""


def leave_the_network() -> None:
    """As long as this process has one thread. Not every system permits it; then the guard below is left."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_USER | NEW_NETWORK) != 0:
        libc.unshare(NEW_NETWORK)


def forbid(target: str) -> None:
    """An audit hook cannot be taken off again."""
    allowed = os.path.abspath(target)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(FORBIDDEN):
            raise PermissionError(f"{event} is not allowed here")
        if event == "open" and len(arguments) > 2 and isinstance(arguments[2], int):
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            place = arguments[0]
            if writes and not isinstance(place, int) and os.path.abspath(os.fsdecode(place)) != allowed:
                raise PermissionError("writing is not allowed here")

    sys.addaudithook(audit)


def limit_memory(room: int) -> None:
    """So many bytes more than the process has now."""
    import resource

    used = 0
    for line in Path("/proc/self/status").read_text().splitlines() if sys.platform == "linux" else ():
        if line.startswith("VmSize:"):
            used = int(line.split()[1]) * 1024
    if used:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = used + room if hard == resource.RLIM_INFINITY else min(used + room, hard)
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


def read(source: str) -> Any:
    import torch

    inert = [(Inert, name) for name in INERT]
    with torch.serialization.safe_globals(inert):
        return torch.load(source, map_location="cpu", weights_only=True)


def tensors_of(value: Any) -> tuple[dict[str, Any], int]:
    """The tensors by name, out of the usual wrappings, and how many other values were left out."""
    import torch

    for _ in range(DEPTH):
        inner = next(
            (value[k] for k in WRAPPERS if isinstance(value, dict) and isinstance(value.get(k), dict)), None
        )
        if inner is None:
            break
        if inner is value.get("string_to_param"):  # textual inversion: one entry, named *
            vectors = next((t for t in inner.values() if isinstance(t, torch.Tensor)), None)
            return ({} if vectors is None else {"emb_params": vectors}), 0
        value = inner
    pairs = list(named("", value, DEPTH))
    kept = {name: t for name, t in pairs if isinstance(t, torch.Tensor)}
    return kept, len(pairs) - len(kept)


def named(prefix: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and depth:
        for key, inner in value.items():
            yield from named(f"{prefix}.{key}" if prefix else str(key), inner, depth - 1)
    else:
        yield prefix, value


def examine(source: str, room: int) -> tuple[dict[str, Any], int] | str:
    """The tensors ready to be saved and how many other values there were; or why not."""
    import pickle

    import torch

    try:
        kept, left_out = tensors_of(read(source))
        strided = {n: t for n, t in kept.items() if t.layout == torch.strided and not t.is_quantized}
        return _apart(strided), left_out + len(kept) - len(strided)
    except pickle.UnpicklingError as error:
        return f"it holds more than tensors and plain values ({_reason(error)})"
    except (
        MemoryError,
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        OSError,
        EOFError,
    ) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return f"it wants more than {room:,} bytes of memory, which its size does not explain"
        return f"it is damaged, or no file of torch ({_reason(error)})"


def _apart(tensors: dict[str, Any]) -> dict[str, Any]:
    """safetensors keeps no tensors that share memory, so each but the first gets its own."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        where = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.detach().clone() if where in seen else tensor.detach().contiguous()
        seen.add(where)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def run(source: str, target: str, room: int) -> dict[str, Any]:
    leave_the_network()
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    limit_memory(room)
    forbid(target)
    found = examine(source, room)
    if isinstance(found, str):
        return {"refused": found}
    tensors, left_out = found
    if not tensors:
        return {"refused": "it holds no tensors"}
    save_file(tensors, target, metadata={"format": "pt"})
    return {"tensors": len(tensors), "left_out": left_out}


def _reason(error: Exception) -> str:
    """The sentence of the library that names what was found, without its advice on how to load it anyway."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return " ".join((named or lines or [type(error).__name__])[0].split())[:160]


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
