"""One bounded, coverage-guided run of a reader of untrusted headers: `python guided_child.py TARGET CORPUS RUNS`.

libFuzzer, through atheris, mutates files and keeps those that reach new lines of the reader. A crash, a hang of 5 s or
more memory than twice the input and 2 MB (what the interpreter takes beside it) ends the process with an error.
"""

import resource
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sfumato.pipelines.weights", "sfumato.pipelines.doors.gguf_header"]):
    from sfumato.pipelines.doors.gguf_header import read_gguf
    from sfumato.pipelines.errors import BadWeights
    from sfumato.pipelines.weights import read_header, read_json

READERS: dict[str, Callable[[Path], object]] = {
    "safetensors": read_header,
    "gguf": read_gguf,
    "json": read_json,
}
MARGIN = 2_000_000
ADDRESSES = 2 << 30
"""Bytes of address space."""


def main(target: str, corpus: str, runs: str) -> None:
    read = READERS[target]
    file = Path(corpus).with_name("input")
    tracemalloc.start()
    # libFuzzer's own limit counts the memory of whoever started this process
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))

    def once(data: bytes) -> None:
        file.write_bytes(data)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            read(file)
        except BadWeights as refused:
            assert "\n" not in str(refused) and len(str(refused)) < 1000, str(refused)
        used = tracemalloc.get_traced_memory()[1] - before
        assert used < 2 * len(data) + MARGIN, f"{used} bytes of memory for a file of {len(data)}"

    options = [
        f"-runs={runs}",
        "-timeout=5",
        "-rss_limit_mb=0",
        "-malloc_limit_mb=256",
        "-seed=1",
        "-max_len=4096",
        "-verbosity=1",
    ]
    atheris.Setup([sys.argv[0], *options, corpus], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
