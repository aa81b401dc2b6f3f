"""When memory runs out all the same: the run goes on, rung by rung down the ladder of `planning.py`."""

from __future__ import annotations

import errno
import gc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch

from ..kernels.mapped import give_back
from ..pipelines.errors import BadInput, SfumatoError
from ..pipelines.placement import bring_back, offload_model
from ..pipelines.protocols import Model
from ..pipelines.tiles import coded
from .faults import Failure, OutOfMemory
from .planning import GB, after_failure
from .requests import SamplingRequest
from .work import Work

if TYPE_CHECKING:
    from .generation import Run

T = TypeVar("T")

SIGNS = ("can't allocate memory", "std::bad_alloc", "could not create a memory object")
"""What torch and oneDNN say on a processor."""
NO_CODE = "could not create a primitive"
"""What oneDNN says, and nothing else, where there is no room for the code that it writes; what it can't do it calls a
primitive descriptor."""


def built(make: Callable[[], T]) -> T:
    """Run a part of the pipeline; what it refuses becomes a sentence of ours."""
    try:
        return make()
    except SfumatoError:
        raise
    except ValueError as error:
        raise BadInput("techniques", str(error)) from error
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            "out of GPU memory; ask for a smaller size, --batch 1 or --dtype bfloat16"
        ) from error
    except (MemoryError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOMEM:
            raise
        raise OutOfMemory("out of memory; ask for a smaller size, --batch 1 or --dtype bfloat16") from error
    except RuntimeError as error:
        if str(error) != NO_CODE and not any(sign in str(error) for sign in SIGNS):
            raise
        raise OutOfMemory("out of memory; ask for a smaller size, --batch 1 or --dtype bfloat16") from error


def place(model: Model, request: SamplingRequest) -> None:
    """Let the model work as a settled request says."""
    if request.decode != "auto":
        coded(model, request.decode)
    if request.offload:
        offload_model(model, int(request.offload * GB))
    else:
        bring_back(model)


def eased(run: Run, work: Work, phase: str, act: Callable[[Run], T]) -> tuple[Run, T]:
    """act(run); as often as memory runs out, again one rung down. The run as it is from then on, and what came out."""
    while True:
        give_back()  # so that each phase holds what was planned
        try:
            return run, act(run)
        except OutOfMemory as error:
            told = str(error)
        gc.collect()  # the failed attempt is gone with its traceback
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        found = after_failure(run.request, run.weights, phase)
        if found is None:
            raise Failure(told)
        request, how = found
        work.note(f"memory ran out while the run was to {phase}; it goes on: {how}")
        run = replace(run, request=request)
        with suppress(OutOfMemory):  # the next attempt will say whether it helped as far as it went
            built(partial(place, run.model, request))
