"""Compiles every Triton kernel for one architecture, without a GPU: `python compiled_kernels.py 90`.

Says what came out.

To be run where TRITON_INTERPRET is not set.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import triton
from sfumato.kernels.triton import attention, four_bit, rows, scaled_product, sparse
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

FP8_FROM = 89
"""Below there are no such numbers."""


WIDE = (4096, 16384)
"""Features of FLUX's layers, to a power of two: a token is one block."""
STAGES = {
    "w4a8": 3,
    "w4a8 tall": 3,
    "w4a8 tall without a branch": 3,
    "attention": 3,
    "attention 256": 2,
    "sparse": 2,
    "fp8 attention": 3,
}
"""As the launches have them, where it is not four."""


def cases(capability: int) -> Iterator[tuple[str, Any, tuple[Any, ...], tuple[Any, ...]]]:
    """Name, kernel, types of its arguments but META, META."""
    i, f, half = "i32", "*fp32", "*bf16"
    types = ("*i8", "*i8", (f, f), half, half, (i, i, i), (i, i, i))
    yield "int8", scaled_product.product_kernel, types, (64, 128, 64, True, 2, True, False)
    for name in ("*fp16", "*bf16"):
        types = (name, "*i8", ("*bf16", "*i8"), name, name, (i, i, i), (i, i))
        yield f"w4a16 {name}", four_bit.w4a16_kernel, types, (16, 64, 64, True, 0, 64, True, False)
    types = ("*i8", "*i8", (f, "*i8", f, half, half), half, half, (i, i, i, i), (i, i))
    yield "w4a8", four_bit.w4a8_kernel, types, (64, 64, 64, True, 2, 64, 32, False)
    yield "w4a8 tall", four_bit.w4a8_kernel, types, (128, 64, 64, True, 0, 64, 32, False)
    yield "w4a8 tall without a branch", four_bit.w4a8_kernel, types, (128, 64, 64, True, 0, 64, 0, False)
    types = (half, (f, f, f, f, f), "*i8", f, (i, i, i), (i, i, i), "fp32")
    for rope in (1, 2):
        yield f"rows {rope}", rows.rows_kernel, types, (32, 128, True, rope, True, True, 127)
    for wide in WIDE:
        yield f"rows of {wide}", rows.rows_kernel, types, (1, wide, False, 0, False, False, 127)
    types = ("*i8", "*i8", half, (f, f, f), half, (i, i, i, i), (i,) * 6)
    yield "attention", attention.attention_kernel, types, (64, 64, 128, False, False)
    yield "attention 256", attention.attention_kernel, types, (64, 64, 256, False, False)
    types = (half, half, half, ("*i32", "*i32"), half, (i, i, i, i, i, "fp32"), (i,) * 12)
    yield "sparse", sparse.sparse_kernel, types, (128, 128, False, 64)
    if capability >= FP8_FROM:
        q8 = "*fp8e4nv"
        types = (q8, q8, (f, f), "*bf16", "*bf16", (i, i, i), (i, i, i))
        yield "fp8", scaled_product.product_kernel, types, (128, 128, 64, True, 1, False, False)
        types = ("*bf16", (f, f, f, f, f), q8, f, (i, i, i), (i, i, i), "fp32")
        yield "fp8 rows", rows.rows_kernel, types, (32, 128, False, 0, False, True, 448)
        for wide in WIDE:
            yield f"fp8 rows of {wide}", rows.rows_kernel, types, (1, wide, False, 0, False, False, 448)
        types = ("*i8", "*i8", q8, (f, f, f), "*bf16", (i, i, i, i), (i,) * 6)
        yield "fp8 attention", attention.attention_kernel, types, (64, 64, 128, True, False)


def leaves(types: tuple[Any, ...], at: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Where pointers and sizes stand, which in real layers are multiples of 16: only then loads run ahead."""
    for i, kind in enumerate(types):
        if isinstance(kind, tuple):
            yield from leaves(kind, (*at, i))
        elif kind != "fp32":
            yield (*at, i)


def compiled(capability: int) -> dict[str, dict[str, int]]:
    """Name -> bytes of machine code, instructions for tensor cores, and shared memory of a block."""
    found = {}
    for name, kernel, types, meta in cases(capability):
        signature = dict(zip(kernel.arg_names, (*types, "constexpr"), strict=True))
        even = {path: [["tt.divisibility", 16]] for path in leaves(types)}
        source = ASTSource(kernel, signature, {(len(types),): meta}, even)
        options = {"num_warps": 8 if meta[0] == 128 and meta[1] == 128 and "sparse" not in name else 4}
        if "rows of" in name:
            options["num_warps"] = rows.warps(meta[0], meta[1])
        options["num_stages"] = STAGES.get(name, 4)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        ptx = made.asm["ptx"]
        found[name] = {
            "bytes": len(made.asm["cubin"]),
            "tensor": ptx.count("mma"),
            "shared": made.metadata.shared,
        }
    return found


if __name__ == "__main__":
    print(json.dumps(compiled(int(sys.argv[1]))))
