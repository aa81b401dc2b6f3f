"""Networks on a GPU, with random weights of real shapes: plain, as diffusers recommends, by the levels of `optimize`.

FLUX.1 dev, the UNets of SDXL and SD 1.5, DiT-XL/2, in bfloat16; each network in a process of its own, so that what one
breaks is not lost for the others. All candidates of a network are in memory at once and are called in turn. Errors are
relative to the plain network, which differs from float32 itself: that of `exact` is the yardstick. `fast` is `balanced`
with steps passed by, which takes trained weights to be measured (`sfumato train reuse MODEL`). What can't be prepared,
or for which `--minutes` leave no time, is named and left out.

    python benchmarks/gpu.py --device cuda
    python benchmarks/gpu.py --device cpu --small --dry --backend eager
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
import torch
from gpu_profile import profiled
from harness import Row, row
from networks import Case, cases
from sfumato.app.builder import build
from sfumato.app.chosen import Technique
from sfumato.app.levels import Facts, choice
from sfumato.kernels.triton_here import INSTALLED
from sfumato.pipelines.converts.channels_last import ChannelsLast
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Run = Callable[[], Tensor]
DTYPE = torch.bfloat16
HOPPER = Facts("cuda", "bfloat16", (9, 0))
PLAIN, PEER, EXACT = "plain", "diffusers' recommendation", "exact"
FEW = ("sd15", "sdxl")
"""Networks of many kinds of blocks, each of which takes seconds to compile: fewer candidates."""
JOINED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}
LEAST_MINUTES = 0.7
"""For which nothing is begun any more."""


@dataclass(frozen=True)
class Candidate:
    """How a network is prepared."""

    name: str
    techniques: tuple[str, ...] = ()
    of: str = ""
    """The candidate whose network it shares; empty for a network of its own."""
    patches: tuple[str, ...] = ()
    """Around each call."""
    graph: bool = False
    """Whether the call is recorded as one CUDA graph."""


@dataclass
class Prepared:
    """Candidates that run, and what is known of each."""

    runs: dict[str, Run] = field(default_factory=dict)
    nets: dict[str, nn.Module] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """To prepare and call it for the first time."""
    failed: dict[str, str] = field(default_factory=dict)


def facts(device: str) -> Facts:
    """Of the GPU; on a processor those of an H100, whose techniques run there too, slowly."""
    if not device.startswith("cuda"):
        return HOPPER
    lacking = None if INSTALLED else "needs the package triton"
    return HOPPER._replace(capability=torch.cuda.get_device_capability(device), triton=lacking)


def candidates(name: str, found: Facts) -> Iterator[Candidate]:
    """The most important first: time may run out."""
    levels = {level: choice(level, found).techniques for level in ("exact", "balanced", "small")}
    yield Candidate(PLAIN)
    yield Candidate(PEER)
    yield Candidate(EXACT, levels["exact"])
    yield Candidate("balanced", levels["balanced"])
    yield Candidate("balanced, one CUDA graph", of="balanced", graph=True)
    if name not in FEW:
        yield Candidate("small", levels["small"])
        yield Candidate("balanced, attention in 8 bits", of="balanced", patches=("attention:error=0.05",))
        yield Candidate("balanced, tuned", tuple(_tuned(text) for text in levels["balanced"]))


def _tuned(text: str) -> str:
    return f"{text},tuned=true" if text.startswith("compile") else text


def with_backend(text: str, backend: str) -> str:
    return f"{text},backend={backend}" if text.startswith("compile") else text


def network(case: Case, candidate: Candidate, device: str, backend: str) -> nn.Module:
    net = case.network(device, DTYPE)
    if candidate.name == PEER:
        recommended(net, backend)
    for text in candidate.techniques:
        build(Technique.model_validate(with_backend(text, backend)))(net)
    return net


def call_of(case: Case, candidate: Candidate, net: Any, device: str) -> Run:
    given = case.inputs(device, DTYPE)
    patches = [build(Technique.model_validate(text)) for text in candidate.patches]

    def run() -> Tensor:
        with torch.no_grad(), ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch(net))
            out: Tensor = net(**given, return_dict=False)[0]
        return out

    return recorded(run) if candidate.graph and device.startswith("cuda") else run


def recommended(net: Any, backend: str) -> None:
    """Channels last, projections fused, repeated blocks compiled: docs of diffusers, optimization/fp16."""
    ChannelsLast()(net)
    if "fuse_qkv_projections" in dir(net):
        net.fuse_qkv_projections()
        for module in net.modules():
            for name in (one for joint, ones in JOINED.items() if joint in module._modules for one in ones):
                delattr(module, name)  # never called any more, and memory is short
    kinds = {"BasicTransformerBlock", "FluxTransformerBlock", "FluxSingleTransformerBlock"}
    for module in net.modules():
        if type(module).__name__ in kinds:
            module.compile(fullgraph=True, backend=backend)


def recorded(run: Run) -> Run:
    """The call as one CUDA graph: the GPU waits for no Python. Its output is overwritten by the next call."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def again() -> Tensor:
        graph.replay()
        return out

    return again


def failures() -> tuple[type[Exception], ...]:
    """What a candidate may break with; Triton's own errors are of no kind that Python knows."""
    found: tuple[type[Exception], ...] = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError)
    if INSTALLED:
        from triton.errors import TritonError

        found = (*found, TritonError)
    return found


def prepare_all(case: Case, name: str, given: argparse.Namespace, until: float) -> Prepared:
    made = Prepared()
    for candidate in candidates(name, facts(given.device)):
        if time.monotonic() > until - 60 * LEAST_MINUTES and made.runs:
            made.failed[candidate.name] = "no time was left"
            continue
        if candidate.of and candidate.of not in made.nets:
            made.failed[candidate.name] = f"{candidate.of} is left out"
            continue
        began = time.monotonic()
        try:
            shared = made.nets.get(candidate.of)
            net = network(case, candidate, given.device, given.backend) if shared is None else shared
            run = call_of(case, candidate, net, given.device)
            finite = bool(run().isfinite().all())
        except failures() as error:
            made.failed[candidate.name] = f"{type(error).__name__}: {str(error)[:300]}"
            continue
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # of the network before it was converted
        if not finite:
            made.failed[candidate.name] = "its answer is not finite"
            continue
        made.runs[candidate.name], made.nets[candidate.name] = run, net
        made.seconds[candidate.name] = time.monotonic() - began
        print(
            f"{candidate.name}: ready after {made.seconds[candidate.name]:.1f} s", file=sys.stderr, flush=True
        )
    return made


def measured(case: Case, made: Prepared, device: str, repeats: int) -> list[Row]:
    """Times in turn, ratios, errors, memory, the share of the GPU's time by kind of kernel."""
    names = list(made.runs)
    wanted = made.runs[PLAIN]().clone()
    with FlopCounterMode(display=False) as counter:
        made.runs[PLAIN]()
    work = counter.get_total_flops() / 1e12
    taken = harness.interleave(made.runs, repeats=repeats, warmup=2)
    rows = [
        row(f"one call ({work:.2f} TFLOP), {name}", [1e3 * s for s in taken[name]], "ms") for name in names
    ]
    rows += [row(f"{PLAIN} / {name}", harness.ratios(taken[PLAIN], taken[name]), "x") for name in names[1:]]
    ours = [name for name in names if name not in (PLAIN, PEER)]
    if PEER in made.runs:
        bars = {EXACT: ">= 1.0", "balanced": ">= 1.3"}
        for name in ours:
            ratio = harness.ratios(taken[PEER], taken[name])
            headline = name in bars
            rows.append(row(f"{PEER} / {name}", ratio, "x", bar=bars.get(name, ""), headline=headline))
    rows += [row(f"work per second, {name}", [work / s for s in taken[name]], "TFLOP/s") for name in names]
    for name in names[1:]:
        off = float((made.runs[name]().float() - wanted.float()).norm() / wanted.float().norm())
        rows.append(row(f"relative error, {name}", [100 * off], "%"))
    rows += [row(f"first call, {name}", [made.seconds[name]], "s") for name in names]
    for name in names:
        rows += memory(name, made.nets[name], made.runs[name], device)
    for name in (PLAIN, PEER, EXACT, "balanced", "small"):
        if name in made.runs:
            rows += profiled(name, made.runs[name], device)
    return rows


def memory(name: str, net: nn.Module, run: Run, device: str) -> list[Row]:
    held = sum(t.nbytes for t in (*net.parameters(), *net.buffers()))
    rows = [row(f"weights, {name}", [held / 1e9], "GB")]
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        rows.append(row(f"a call beside, {name}", [(torch.cuda.max_memory_allocated() - before) / 1e9], "GB"))
    return rows


def one(name: str, given: argparse.Namespace) -> None:
    """Measure one network here."""
    until = time.monotonic() + 60 * given.minutes
    case = cases(given.small)[name]
    made = prepare_all(case, name, given, until)
    rows = measured(case, made, given.device, given.repeats)
    about = harness.machine(given.device) | {"failed": made.failed}
    for line in rows:
        print(line)
    for what, why in made.failed.items():
        print(f"{what}: left out, {why}", file=sys.stderr)
    if not given.dry:
        print(harness.write(f"gpu-{name}", f"{case.title}, on a GPU", rows, about, given.results))


def main() -> None:
    given = arguments().parse_args()
    if given.network:
        one(given.network, given)
        return
    until = time.monotonic() + 60 * given.minutes
    for name in cases():
        left = (until - time.monotonic()) / 60
        if left < LEAST_MINUTES:
            print(f"{name}: no time was left", file=sys.stderr)
            continue
        # the last --minutes counts
        subprocess.run(
            [sys.executable, __file__, name, *sys.argv[1:], "--minutes", f"{left:.2f}"], check=False
        )


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "network", nargs="?", choices=cases(), help="which network; all, one by one, if left out"
    )
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default cuda)")
    parser.add_argument("--small", action="store_true", help="tiny networks, to see that it runs")
    parser.add_argument("--minutes", type=float, default=8.0, help="to be done in, about (default 8)")
    parser.add_argument("--repeats", type=int, default=9, help="rounds that count (default 9)")
    parser.add_argument("--backend", default="inductor", help="of the compiler; eager only traces")
    parser.add_argument(
        "--results", type=Path, default=harness.RESULTS, help="folder (default benchmarks/results)"
    )
    parser.add_argument("--dry", action="store_true", help="print, write no result")
    return parser


if __name__ == "__main__":
    main()
