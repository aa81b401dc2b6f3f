"""Run by test_loop in a process of its own: samples with a checkpoint per step and kills itself at step 4.

Arguments: the checkpoint file, and `kill` or `resume`; on resume the result goes to FILE.result.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from sfumato.pipelines.checkpoint import Checkpoint
from sfumato.pipelines.guidance.cfg import Cfg
from sfumato.pipelines.loop import Control
from sfumato.pipelines.noise import SeededNoise
from sfumato.pipelines.pipeline import Pipeline
from sfumato.pipelines.samplers.dpmpp_2m_sde import Dpmpp2mSde
from toys import ToyDenoiser, biases, paths

TS = [1.0, 0.9, 0.75, 0.6, 0.45, 0.3, 0.15, 0.0]


def sample(control: Control) -> torch.Tensor:
    noise = SeededNoise.batch(3, 2, (4, 6, 6))
    pipeline = Pipeline(ToyDenoiser(paths()["vp"]), Dpmpp2mSde(), Cfg(3.0))
    return pipeline(noise(), biases(), TS, noise=noise, control=control)


def main() -> None:
    file, mode = Path(sys.argv[1]), sys.argv[2]

    def save(checkpoint: Checkpoint) -> None:
        checkpoint.save(file)
        if mode == "kill" and checkpoint.step == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    resume = Checkpoint.load(file) if mode == "resume" else None
    result = sample(Control(on_checkpoint=save, fingerprint="run", resume=resume))
    torch.save(result, f"{file}.result")


if __name__ == "__main__":
    main()
