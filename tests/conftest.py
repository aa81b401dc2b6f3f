"""Before anything imports Triton: without a GPU its kernels run in the interpreter, which is chosen at that moment."""

import os
from pathlib import Path

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
