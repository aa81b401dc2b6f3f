"""One picture in a fresh process, stage by stage: prints a JSON of seconds. `generate.py` runs this many times."""

import time

BEGAN = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402
from importlib import import_module  # noqa: E402
from pathlib import Path  # noqa: E402


def stages(reference: str, prompt: str, steps: int, output: Path) -> dict[str, float]:
    marks = {"": BEGAN}

    def mark(name: str) -> None:
        marks[name] = time.perf_counter()

    import_module("torch")
    mark("import torch")
    from sfumato.pipelines.loading import find_folder, open_model
    from sfumato.pipelines.text_to_image import TextToImage

    index = json.loads((find_folder(reference) / "model_index.json").read_text(encoding="utf-8"))
    for library, name in (entry for entry in index.values() if isinstance(entry, list) and entry[0]):
        getattr(import_module(library), name)  # diffusers and transformers import a class when it is named
    mark("import the rest")
    model = open_model(reference)
    mark("load the weights")
    result = TextToImage(model)(prompt, seed=7, steps=steps)
    mark("encode, sample and decode")
    result.images[0].save(output)
    mark("write")
    times = list(marks.values())
    names = list(marks)[1:]
    found = {name: b - a for name, a, b in zip(names, times, times[1:], strict=False)}
    split = found.pop("encode, sample and decode")
    return {
        **found,
        "encode": result.timings.encode,
        "sample": result.timings.sample,
        "decode": split - result.timings.encode - result.timings.sample,
    }


if __name__ == "__main__":
    print(json.dumps(stages(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))))
