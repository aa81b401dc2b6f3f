"""The repeated blocks of a network as machine code, made once and kept for later processes.

    store = Store(Path.home() / ".cache" / "sfumato" / "ahead")
    store.make(net, small, large)  # minutes: torch.export and AOTInductor; both functions call the network
    Compile("ahead", store=store)(net)  # seconds, in every process from then on

A package is native code: whoever opens one runs it. So its name is a hash of what it was made for (block, settings of
the network, versions, processor), it is looked for in this folder alone, and the folder must be writable by nobody
else. Code takes its weights from the network, so all layers of a kind share one package, and nothing is copied.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..sites import by_name, calls
from ._repeated import regions

OPTIONS: dict[str, Any] = {
    "aot_inductor.package_constants_in_so": False,  # weights stay the network's own
    "cpp.dynamic_threads": True,  # as many as the process has, not as the maker had
}
NEAR = 1e-3
"""How far a block's answer may be from torch's, as a share of it."""
Given = Mapping[str, Any]
"""Arguments of a block by name, without those that are None."""


class Made(NamedTuple):
    """One kind of block."""

    block: str
    """Its class."""
    file: Path | None
    """None if it could not be compiled so."""
    why: str = ""


class Store:
    """A folder of packages. Not made from text: a request can't name one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, net: nn.Module, *calls: Callable[[], object]) -> list[Made]:
        """Packages for what `net` repeats. Each call runs it once, the first with a batch of 2, at sizes that differ:
        a package is made from the first and must agree with torch at the others.
        """
        kinds: dict[str, list[nn.Module]] = {}
        for block in regions(net):
            kinds.setdefault(key(net, block), []).append(block)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with torch.no_grad():
            heard = [_heard(regions(net), call) for call in calls]
            return [self._kept(name, blocks, heard) for name, blocks in kinds.items()]

    def open(self, net: nn.Module, block: nn.Module) -> Callable[..., Any] | None:
        """What answers calls (block, ...) by code with this block's own weights; None if none was made here."""
        file = self.folder / f"{key(net, block)}.pt2"
        if not self._trusted(file):
            return None
        return by_name(type(block).forward, _Ahead(block, *_opened(block, file)).answer)

    def _trusted(self, file: Path) -> bool:
        """Whether it is there. One that others could have written is refused."""
        if not file.is_file():
            return False
        for place in (self.folder, file):
            about = place.lstat()
            if about.st_uid != os.getuid() or about.st_mode & 0o022:
                raise BadInput(
                    "compile",
                    f"compile: {place} could have been written by others, and opening it runs code; delete the folder "
                    "and run `sfumato models compile MODEL` again",
                )
        return True

    def _kept(self, name: str, blocks: list[nn.Module], heard: list[dict[nn.Module, Given]]) -> Made:
        kind = type(blocks[0]).__name__
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            made = Path(folder) / f"{name}.pt2"
            try:
                _package(blocks[0], heard[0][blocks[0]], made)
                far = max(_far(block, made, [one[block] for one in heard]) for block in blocks)
            except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
                return Made(kind, None, " ".join(str(error).split())[:200])
            if far > NEAR:
                return Made(kind, None, f"its answers differ from torch's by {far:.2g}")
            file = self.folder / made.name
            os.replace(made, file)
            return Made(kind, file)


class _Ahead:
    """Calls of one block: compiled, or by torch where a patch acts in it or it is called otherwise than it was."""

    def __init__(self, block: nn.Module, code: Any, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights  # the code holds no references of its own
        self.code = code
        self.names = tuple(code.get_metadata()["names"].split(","))
        self.inside = [module for module in block.modules() if module is not block]
        self.held: list[tuple[Mapping[str, Any], str, Any]] = [
            (held, name, part)
            for module in block.modules()
            for held in (module._parameters, module._modules)
            for name, part in held.items()
        ]
        self.processors = [(m, m.processor) for m in self.inside if "processor" in {*vars(m), *m._modules}]

    def answer(self, given: Given, compute: Callable[[], Any]) -> Any:
        told = _dense_ones({name: value for name, value in given.items() if name != "self"})
        if tuple(told) != self.names or torch.is_grad_enabled() or self._patched():
            return compute()
        return self.code(**told)

    def _patched(self) -> bool:
        return (
            any("forward" in vars(module) or module._forward_hooks for module in self.inside)
            or any(module.processor is not own for module, own in self.processors)
            or any(held.get(name) is not part for held, name, part in self.held)
        )


def key(net: Any, block: nn.Module) -> str:
    """What a package depends on."""
    config = {name: value for name, value in dict(net.config).items() if not name.startswith("_")}
    weights = [
        (name, list(w.shape), str(w.dtype), str(w.device.type)) for name, w in block.named_parameters()
    ]
    kind = f"{type(block).__module__}.{type(block).__qualname__}"
    told = [kind, weights, config, [version(name) for name in ("torch", "diffusers")], processor()]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:32]


@cache
def processor() -> str:
    """What machine code depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{torch.backends.cpu.get_cpu_capability()} {' '.join(sorted(flags.split()))}"


def _heard(blocks: list[nn.Module], call: Callable[[], object]) -> dict[nn.Module, Given]:
    """What each block is given as the network is called."""
    found: dict[nn.Module, Given] = {}
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(calls(block, partial(_told, found, block)))
        call()
    return found


def _told(
    found: dict[nn.Module, Given], block: nn.Module, given: Given, compute: Callable[[], object]
) -> object:
    found[block] = _dense_ones(given)
    return compute()


def _dense_ones(given: Given) -> Given:
    """Without those that are None."""
    return {name: _dense(value) for name, value in given.items() if value is not None}


def _dense(value: Any) -> Any:
    """Compiled code takes the order of numbers in memory for granted."""
    if isinstance(value, tuple):
        return tuple(map(_dense, value))
    return value.contiguous() if isinstance(value, Tensor) else value


def _package(block: nn.Module, given: Given, file: Path) -> None:
    from torch.export import Dim, export
    from torch.utils._pytree import tree_map

    sizes = tree_map(
        lambda x: dict.fromkeys(range(x.ndim), Dim.AUTO) if isinstance(x, Tensor) else None, given
    )
    options = OPTIONS | {"aot_inductor.metadata": {"names": ",".join(given)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, about torch
        program = export(block, (), dict(given), dynamic_shapes=sizes)
        torch._inductor.aoti_compile_and_package(program, package_path=str(file), inductor_configs=options)


def _opened(block: nn.Module, file: Path) -> tuple[Any, Mapping[str, Tensor]]:
    """The code, and the weights that it points to, which must live as long."""
    code = torch._inductor.aoti_load_package(str(file))
    held = {**dict(block.named_parameters()), **dict(block.named_buffers())}
    weights = {name: held[name].detach() for name in code.get_constant_fqns()}
    code.load_constants(weights, check_full_update=True, user_managed=True)
    return code, weights


def _far(block: nn.Module, file: Path, given: list[Given]) -> float:
    """The largest relative difference between the answers."""
    from torch.utils._pytree import tree_leaves

    (code, weights), far = _opened(block, file), 0.0
    for one in given:
        pairs = zip(tree_leaves(block(**one)), tree_leaves(code(**one)), strict=True)
        far = max(far, *(float((a - b).norm() / a.norm().clamp_min(1e-9)) for a, b in pairs))
    del weights  # which the code points to
    return far
