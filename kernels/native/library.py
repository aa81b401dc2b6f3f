"""Compiles the C++ files beside it once per machine and loads them. Without a compiler or the instructions it says why.

The library lies in the user's cache folder under a hash of its sources, compiler and processor. It takes its threads
from the OpenMP that torch has loaded, so that the two share one pool.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

LOG = logging.getLogger(__name__)
SOURCES = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-std=c++17", "-w")
COMPILERS = ("g++", "clang++")
SECONDS = 120


class Library(NamedTuple):
    """The loaded functions, or None and why there are none."""

    functions: ctypes.CDLL | None
    lacking: str = ""


@cache
def library() -> Library:
    """Compiled on the first call, which takes seconds; later ones, and later processes, find it."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return Library(
            None, f"kernels in C++ are for Linux on x86-64, this is {platform.platform(terse=True)}"
        )
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or "avx512_vnni" not in _flags():
        return Library(None, "kernels in C++ need a processor with AVX-512 and VNNI")
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        return Library(None, f"kernels in C++ need a compiler ({' or '.join(COMPILERS)}); none is installed")
    try:
        return Library(_load(_built(compiler)))
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split())[:200]
        return Library(None, f"{compiler} could not compile the kernels ({said})")
    except (OSError, subprocess.TimeoutExpired) as error:
        return Library(None, f"the kernels in C++ could not be built or loaded ({error})")


def _flags() -> str:
    return Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("flags")[2].partition("\n")[0]


def _built(compiler: str) -> Path:
    sources = sorted(SOURCES.glob("*.cpp"))
    texts = (path.read_text(encoding="utf-8") for path in (*sorted(SOURCES.glob("*.h")), *sources))
    told = [compiler, *FLAGS, _flags(), torch.__version__, *texts]
    folder = Path.home() / ".cache" / "sfumato" / "kernels"
    target = folder / f"{hashlib.sha256(chr(0).join(told).encode()).hexdigest()[:24]}.so"
    if target.exists():
        return target
    LOG.info("compiling the kernels for this processor, once: a few seconds")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        objects = []
        for source in sources:
            objects.append(f"{work}/{source.stem}.o")
            _run(compiler, *FLAGS, "-c", str(source), "-o", objects[-1])
        # without -fopenmp here: the functions of OpenMP are found in torch's own
        _run(compiler, "-shared", *objects, "-o", f"{work}/whole.so")
        os.replace(f"{work}/whole.so", target)
    return target


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)


def _load(file: Path) -> ctypes.CDLL:
    for found in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*")):
        ctypes.CDLL(str(found), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(file))
