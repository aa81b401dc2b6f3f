"""Where the time of a call goes: kernels of a GPU by what they do, and for how much of the call it had work at all."""

from __future__ import annotations

import time
from collections.abc import Callable

from harness import Row, row, synchronize
from torch.profiler import ProfilerActivity, profile

CALLS = 2
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("attention", ("flash", "fmha", "sdpa", "attention")),
    ("convolutions", ("conv", "fprop", "winograd", "implicit", "wgrad")),
    ("our products", ("product_kernel", "w4a8_kernel", "w4a16_kernel")),
    ("products", ("gemm", "nvjet", "cutlass", "cublas", "mm_", "matmul", "gemv", "::mm", "addmm", "linear")),
    ("our rounding", ("rows_kernel",)),
    ("compiled", ("triton_",)),
    ("copies", ("memcpy", "memset", "copy", "cat")),
)
"""Words in the names of kernels, or of torch's operators on a processor; the first that fits counts."""
REST = "norms, gates, sums"


def kind_of(name: str) -> str:
    low = name.lower()
    return next((kind for kind, words in KINDS if any(word in low for word in words)), REST)


def profiled(name: str, run: Callable[[], object], device: str) -> list[Row]:
    """Shares in percent, the largest first; on a GPU also how much of the call its kernels fill."""
    there = device.startswith("cuda")
    activities = [ProfilerActivity.CUDA] if there else [ProfilerActivity.CPU]
    synchronize()
    began = time.perf_counter()
    for _ in range(CALLS):
        run()
    synchronize()
    wall = time.perf_counter() - began
    with profile(activities=activities) as seen:
        for _ in range(CALLS):
            run()
        synchronize()
    spent: dict[str, float] = {}
    for event in seen.key_averages():
        micros = event.self_device_time_total if there else event.self_cpu_time_total
        if micros:
            kind = kind_of(event.key)
            spent[kind] = spent.get(kind, 0.0) + micros / 1e6
    total = sum(spent.values())
    if not total:
        return []
    parts = sorted(spent.items(), key=lambda part: -part[1])
    rows = [row(f"share of {name}: {kind}", [100 * s / total], "%") for kind, s in parts]
    if there:
        rows.append(row(f"share of the call that the GPU works, {name}", [100 * total / wall], "%"))
    return rows
