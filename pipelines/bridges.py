"""A language model in place of a model's own text encoder, through an adapter that was trained for the two.

Paper: arXiv:2403.07860 (LaVi-Bridge), section 3. A bridge is a folder: `bridge.json`, `language_model/` and
`tokenizer/` as transformers writes them, `adapter/` (config.json and safetensors, the names of the authors'), and
`loras.safetensors`, whose factors act in the language model (`language_model.`) and in the model's network (`unet.` or
`transformer.`). Without that file neither network is changed.

Whatever else a family reads from a prompt, a pooled vector or sizes, is that of an empty prompt: every word goes
through the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from .errors import BadInput, BadWeights
from .families._common import Checkpoint, Text
from .families._parts import Part, load_net, load_processor_tokenizer
from .loading import MODELS, check_contained
from .loras import Loras
from .protocols import Model
from .weights import read_header, read_json

INDEX = "bridge.json"
LORAS = "loras.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"
"""Of the adapter, in its folder."""
LANGUAGE_MODELS = (
    *("GPT2LMHeadModel", "GPT2Model", "GemmaForCausalLM", "Gemma2ForCausalLM", "LlamaForCausalLM", "LlamaModel"),
    *("MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "T5EncoderModel"),
)  # fmt: skip
"""Classes of transformers that can stand at one end."""


class BridgeCard(BaseModel):
    """bridge.json: how the parts were trained to work together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = Field(77, ge=2, le=4096)
    """Prompts are padded to so many, with the marks at their ends."""
    masked: bool = False
    """Whether both networks are told which tokens are padding."""
    made_for: str = ""
    """Name of the model."""
    licence: str = ""


class FeedForward(nn.Module):
    """GELU-gated (arXiv:2002.05202, eq. 6): [..., in] to [..., out], four times as wide as `width` inside."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        gate = nn.Module()
        gate.proj = nn.Linear(width, 8 * width)
        self.net = nn.ModuleList([gate, nn.Identity(), nn.Linear(4 * width, out)])

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.net[0].proj(x).chunk(2, dim=-1)
        out: Tensor = self.net[2](value * nn.functional.gelu(gate))
        return out


class TextAdapter(nn.Module):
    """States of a language model [B,L,in] to what a network attends to [B,L,out], token by token (section 3.2)."""

    def __init__(self, in_dim: int, int_dim: int, out_dim: int) -> None:
        super().__init__()
        self.in_dim, self.int_dim, self.out_dim = in_dim, int_dim, out_dim
        self.norm1, self.ff1 = nn.LayerNorm(in_dim), FeedForward(in_dim, int_dim)
        self.norm2, self.ff2 = nn.LayerNorm(int_dim), FeedForward(int_dim, out_dim)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.ff2(self.norm2(self.ff1(self.norm1(states))))
        return out


@dataclass(frozen=True, eq=False)
class Bridge:
    """An opened bridge."""

    folder: Path
    card: BridgeCard
    words: Text
    language: Part
    adapter: Part

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """What the network attends to [B,L,D], and which tokens are no padding [B,L]."""
        ids, mask = (part.to(self.device) for part in self.words.ids(prompts))
        heard: Any = self.language.net
        given = {"attention_mask": mask} if self.card.masked else {}
        text: Tensor = self.adapter.net(heard(input_ids=ids, **given).last_hidden_state)
        return text, mask if self.card.masked else torch.ones_like(mask)

    @property
    def device(self) -> torch.device:
        return next(self.adapter.net.parameters()).device

    @property
    def width(self) -> int:
        adapter: Any = self.adapter.net
        return int(adapter.out_dim)


def find_bridge(reference: str | Path) -> Path:
    """The folder of a bridge: a path, or the name of one that came with the installation."""
    path = Path(reference).expanduser()
    for folder in (path, MODELS / str(reference)):
        if (folder / INDEX).is_file():
            return folder.resolve()
    known = sorted(found.parent.name for found in MODELS.glob(f"*/{INDEX}"))
    there = f"built in: {', '.join(known)}" if known else "none is built in"
    raise BadInput("bridge", f"bridge: {str(reference)!r} is no folder with a {INDEX}; {there}")


def open_bridge(
    reference: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Bridge:
    """Open a bridge with the care that models get: safetensors alone, all its weights and no others."""
    folder, place = find_bridge(reference), torch.device(device)
    check_contained(folder)
    try:
        card = BridgeCard.model_validate(read_json(folder / INDEX))
    except ValidationError as error:
        first = error.errors()[0]
        raise BadWeights(f"{folder / INDEX}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    home = folder / "language_model"
    kinds = read_json(home / "config.json").get("architectures")
    kind = kinds[0] if isinstance(kinds, list) and len(kinds) == 1 else None
    if kind not in LANGUAGE_MODELS:
        raise BadWeights(f"{home}: is a {kind!r}; {', '.join(LANGUAGE_MODELS)} can be bridged")
    whole = load_net(home, f"transformers.{kind}", dtype, place)
    body: Any = whole.net
    body = body.base_model
    body.config.use_cache = False  # a prompt is read once
    tokenizer = load_processor_tokenizer(folder, "tokenizer")
    adapter = _open_adapter(folder / "adapter", dtype, place)
    width, wanted = int(body.config.hidden_size), adapter.net.get_submodule("norm1").normalized_shape
    if wanted != (width,):
        raise BadWeights(f"{folder}: the language model is {width} wide, the adapter reads {wanted}")
    words = Text(tokenizer, min(card.tokens, int(tokenizer.model_max_length)))
    return Bridge(folder, card, words, Part(body, whole.files), adapter)


def with_bridge(model: Model, bridge: Bridge) -> Model:
    """The model, reading prompts through the bridge, whose LoRAs are merged into the model's network for good."""
    if not isinstance(model, Checkpoint):
        raise BadInput("model", f"{model.name} is no opened checkpoint; open it with open_model")
    with torch.no_grad():
        own = model.embed([""], False)
    text = own.get("text")
    if text is None or text.ndim != 3 or "text_2" in own or model.joint is not None:
        raise BadInput(
            "bridge", f"bridge: {model.name} ({model.family}) reads prompts otherwise than as one sequence"
        )
    made = f" (it was made for {bridge.card.made_for})" if bridge.card.made_for else ""
    if text.shape[2] != bridge.width:
        raise BadInput(
            "bridge",
            f"bridge: {bridge.folder.name} speaks in {bridge.width} features, {model.name} listens in "
            f"{text.shape[2]}; take a bridge that was made for this model{made}",
        )
    bridged = replace(
        model,
        text=bridge.words,
        embed=_embed(model.embed, bridge, "mask" in own),
        limits=model.limits._replace(tokens=bridge.words.limit),
        parts={**model.parts, "language_model": bridge.language, "text_adapter": bridge.adapter},
        learners=(),
    )
    file = bridge.folder / LORAS
    if file.is_file():
        loras = Loras(bridged)
        unused = loras.add("bridge", file).unused
        if unused:
            loras.remove("bridge")
            raise BadInput(
                "bridge",
                f"bridge: {bridge.folder.name} changes {unused[0]}, which {model.name} does not have; take a bridge "
                f"that was made for this model{made}",
            )
        loras.merge({"bridge": 1.0})
    return bridged


def _embed(
    own: Callable[[Sequence[str], bool], Mapping[str, Tensor]], bridge: Bridge, masked: bool
) -> Callable[[Sequence[str], bool], Mapping[str, Tensor]]:
    """`masked`: whether the network cannot do without a mask."""

    def embed(prompts: Sequence[str], negative: bool) -> Mapping[str, Tensor]:
        embeds = dict(own([""] * len(prompts), negative))
        text, mask = bridge(prompts)
        embeds["text"] = text.to(embeds["text"])
        if masked or bridge.card.masked:
            embeds["mask"] = mask.to(embeds["mask"].dtype) if "mask" in embeds else mask
        return embeds

    return embed


def _open_adapter(home: Path, dtype: torch.dtype, device: torch.device) -> Part:
    from safetensors.torch import load_file

    config, file = read_json(home / "config.json"), home / WEIGHTS
    told = [config.get(name) for name in ("in_dim", "int_dim", "out_dim")]
    widths = [width for width in told if isinstance(width, int) and 0 < width <= 65536]
    if len(widths) != 3:
        raise BadWeights(f"{home}: in_dim, int_dim and out_dim are {told}; widths in 1..65536 are needed")
    with torch.device("meta"):
        adapter = TextAdapter(*widths)
    wanted = {name: list(weight.shape) for name, weight in adapter.state_dict().items()}
    held = {name: list(tensor.shape) for name, tensor in read_header(file).items()}
    if held != wanted:
        odd = sorted(name for name in {*held, *wanted} if held.get(name) != wanted.get(name))[0]
        raise BadWeights(
            f"{file}: {odd} is {held.get(odd)} and should be {wanted.get(odd)}; it is no adapter of these widths"
        )
    adapter.load_state_dict(load_file(file), assign=True)
    loras = home.parent / LORAS  # hashed with the adapter
    files = (file, loras) if loras.is_file() else (file,)
    return Part(adapter.to(device, dtype).eval().requires_grad_(False), files)
