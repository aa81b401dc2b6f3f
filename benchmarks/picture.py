"""A whole picture on a processor: 8 bits and reuse across steps against a pipeline of OpenVINO's networks in 8 bits.

Times are those of Stable Diffusion 1.5 at 512 x 512 with random weights: guided steps of one sampler, and the decoder.
The peer's UNet is quantised by NNCF, its decoder runs as OpenVINO does unless told otherwise. What the picture loses is
measured on the built-in UNet, whose pictures mean something: PSNR to full precision without reuse, and *all right*, the
share of pictures of held-out captions in which the judge reads every word right.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import harness
import processors
import quality
from harness import Row
from memory import sd_shaped
from sfumato.app.converting import converted
from sfumato.app.reuse import AND, parsed, way
from sfumato.assets.recipes.reuse import Way
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.patches.int8_attention import Int8Attention
from sfumato.pipelines.text_to_image import Images, TextToImage
from torch import Tensor, nn

REUSE = AND.join(f"{name}:interval=4,start=0.25,power=1.3" for name in ("deepcache", "cfg-skip"))
PEER = "OpenVINO 8 bits"


class Elsewhere(nn.Module):
    """A UNet that another program runs, called as diffusers calls its own."""

    def __init__(self, config: Any, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.config = config
        self.run = run

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: None = None,
        timestep_cond: None = None,
        added_cond_kwargs: None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        return (self.run(sample, timestep.long(), encoder_hidden_states),)


def plain(folder: Path) -> Any:
    """The model of the folder with the weights that the peer's networks were made of."""
    model: Any = open_model(folder)
    cases = processors.cases()
    model.denoise.net.load_state_dict(processors.network(cases["unet"]).net.state_dict())
    decoding: Any = processors.network(cases["vae"])
    for name in ("decoder", "post_quant_conv"):
        getattr(model.codec.vae, name).load_state_dict(getattr(decoding, name).state_dict())
    return model


def theirs(folder: Path, kept: Path) -> TextToImage:
    """The same sampler, guidance and text encoder around OpenVINO's UNet and decoder."""
    model, cases = plain(folder), processors.cases()
    model.denoise.net = Elsewhere(
        model.denoise.net.config, processors.openvino_of(cases["unet"], PEER, kept, {})
    )
    decode = processors.openvino_of(cases["vae"], "OpenVINO float32", kept, {})
    model.codec.vae.decode = lambda z, return_dict: (decode(z),)
    return TextToImage(model)


def in_8_bits(model: Any) -> Any:
    """As `--optimize balanced` makes it on a processor, but for attention, which is the pipeline's."""
    return converted(model, parsed(f"int8{AND}winograd"))


def ours(model: Any, reuse: str | None) -> TextToImage:
    chosen = way(reuse, model.defaults.guidance) if reuse else Way()
    return TextToImage(model, patches=(Int8Attention(), *chosen.patches), guidance=chosen.guidance)


def times(repeats: int, steps: int, kept: Path) -> list[Row]:
    folder = sd_shaped(kept / "sd15")
    model, made = in_8_bits(plain(folder)), dict[str, list[Images]]()
    pipes = {"8 bits": ours(model, None), "8 bits and reuse": ours(model, REUSE)}
    if all(importlib.util.find_spec(name) for name in ("openvino", "nncf")):
        pipes[PEER] = theirs(folder, kept)

    def run(name: str) -> None:
        made.setdefault(name, []).append(pipes[name]("a red cube", steps=steps, seed=1))

    taken = harness.interleave({name: partial(run, name) for name in pipes}, repeats=repeats)
    rows = []
    for name, seconds in taken.items():
        rows.append(harness.row(f"a picture, {name}", seconds, "s"))
        rows.append(
            harness.row(f"decoded, {name}", [one.timings.decode for one in made[name][-repeats:]], "s")
        )
    if PEER in taken:
        for name in [*pipes][:2]:
            wanted = ">= 2.5" if name.endswith("reuse") else ""
            ratio = harness.ratios(taken[PEER], taken[name])
            rows.append(
                harness.row(
                    f"a picture: {PEER} / ours, {name}", ratio, "x", bar=wanted, headline=bool(wanted)
                )
            )
    return rows


def losses(count: int, steps: int) -> list[Row]:
    """Against full precision without reuse, on the built-in UNet."""
    packed = in_8_bits(open_model("still-life-unet"))
    full = quality.pictures(TextToImage(open_model("still-life-unet")), count, steps)
    rows = [harness.row("built-in UNet, plain: all right", [quality.all_right(full)], "share")]
    for name, reuse, bar in (("8 bits", None, ""), ("8 bits and reuse", REUSE, ">= 30")):
        made = quality.pictures(ours(packed, reuse), count, steps)
        rows += quality.rows(f"built-in UNet, {name}", made, full, judged=True, bar=bar)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (default 20)")
    parser.add_argument(
        "--judged", type=int, default=100, help="captions of the built-in model (default 100)"
    )
    parser.add_argument("--folder", type=Path, help="where the peer's converted networks are kept")
    parser.add_argument("--dry", action="store_true", help="print, write no result")
    given = parser.parse_args()
    about = harness.machine()
    with tempfile.TemporaryDirectory() as work:
        rows = losses(given.judged, given.steps) if given.judged else []
        rows += times(given.repeats, given.steps, given.folder or Path(work)) if given.repeats else []
    for line in rows:
        print(line)
    if not given.dry:
        print(harness.write("picture", "A whole picture on a processor", rows, about))


if __name__ == "__main__":
    main()
