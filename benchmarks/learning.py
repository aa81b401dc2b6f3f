"""What `repa` and `microdit` gain: equal minutes from nothing with and without, error on held-out scenes.

Needs a work folder of `sfumato train builtin` that holds the autoencoder. Runs are short and stand in turn: plain,
repa, microdit, and plain once more, which shows the spread.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import harness
from sfumato.assets.recipes import flow
from sfumato.assets.recipes.learning.microdit import MicroDit
from sfumato.assets.recipes.learning.repa import Repa

CLAIMS = {
    "repa": "the same quality in a seventeenth of the steps (SiT-XL/2 on ImageNet)",
    "microdit": "competitive quality at a fourteenth of the cost (at 75% masked, with a final unmasked phase)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="work folder of `sfumato train builtin`")
    parser.add_argument("--minutes", type=float, default=3.0, help="of each run (default 3)")
    parser.add_argument("--scenes", type=int, default=16384, help="scenes of the pool (default 16384)")
    given = parser.parse_args()
    options = {"plain": {}, "repa": {"repa": Repa()}, "microdit": {"microdit": MicroDit()}, "again": {}}
    errors, steps = {}, {}
    for name, chosen in options.items():
        folder = given.work / f"learning-{name}"
        for left in (folder, folder.with_name(f"{folder.name}-reading")):
            shutil.rmtree(left, ignore_errors=True)
        model = flow.train(
            given.work,
            minutes=given.minutes,
            every_task=False,
            scenes=given.scenes,
            run=folder.name,
            **chosen,
        )
        errors[name] = flow.held_out_error(model, given.work, scenes=given.scenes)
        steps[name] = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["step"]
        shutil.rmtree(folder)
        print(name, round(errors[name], 4), "after", steps[name], "steps", flush=True)
    plain = (errors["plain"] + errors["again"]) / 2
    spread = abs(errors["plain"] - errors["again"])
    for name in CLAIMS:
        found = {
            "claim": CLAIMS[name],
            "measured": f"velocity error on 256 held-out scenes {errors[name]:.4f} after {given.minutes:g} minutes and "
            f"{steps[name]} steps from nothing; {plain:.4f} without, after {steps['plain']} steps (two runs, "
            f"{spread:.4f} apart)",
            "command": f"python benchmarks/learning.py --work W --minutes {given.minutes:g} --scenes {given.scenes}",
            "machine": harness.machine(),
        }
        file = harness.RESULTS / "effects" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
