"""Train `still-life-llama`: a language model that stands in for the text encoder of `still-life-unet` (LaVi-Bridge).

Paper: arXiv:2403.07860, section 3.2: the adapter and low-rank factors in both networks learn, all else is frozen.
Two stages: first the adapter learns to say, at the end of each word, what CLIP says there (both read from left to
right, so both have read the same); then all learn to denoise as the model does under its own encoder. The paper has
the second stage alone, against the noise itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from ...pipelines.bridges import INDEX, LORAS, WEIGHTS, TextAdapter
from ...pipelines.loading import open_model
from ..still_life.grammar import caption
from . import language, networks
from .captions import WORDINGS, draw, wordings
from .fitting import Fit, best_device, fit
from .latents import encoded
from .muon import Muon, muon_groups
from .pool import Pool, crowded
from .text import tokenize
from .unet import WEIGHT_CAP, scheduler

RANK = 16
BATCH = 64
WORD_BATCH = 256
INNER = 192
"""Width between the adapter's two layers."""
LANGUAGE, WORDS = 0.2, 0.2
"""Shares of the minutes for the language model, and for words without pictures; the rest is for denoising."""
MATCHED = 2
"""Wordings of each scene whose words are matched."""


class Student(nn.Module):
    """Language model, adapter and UNet; what learns is the adapter and the low-rank factors."""

    def __init__(self, llama: LlamaForCausalLM, unet: nn.Module) -> None:
        super().__init__()
        self.language = llama.model.requires_grad_(False)
        self.unet = unet.requires_grad_(False)
        self.adapter = TextAdapter(networks.LANGUAGE_WIDTH, INNER, networks.TEXT_WIDTH)
        for net, layers in ((self.language, ("q", "k", "v", "o")), (self.unet, ("q", "k", "v", "out.0"))):
            names = [f"{layer}_proj" if net is self.language else f"to_{layer}" for layer in layers]
            inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names), net, "bridge")

    def heard(self, ids: Tensor) -> Tensor:
        """[B,T,D] for the UNet, of token ids [B,T]."""
        said: Tensor = self.adapter(self.language(input_ids=ids).last_hidden_state)
        return said

    def factors(self) -> dict[str, Tensor]:
        """The low-rank factors under the names that peft saves."""
        found = {}
        for part, net in (("language_model", self.language), ("unet", self.unet)):
            for name, weight in net.named_parameters():
                if ".lora_" in name:
                    found[f"{part}.{name.replace('.bridge.', '.')}"] = weight.detach().half().contiguous()
        return found


class Lessons(NamedTuple):
    """Captions in both tokenizers, ids [N,T] each, and for each of CLIP's tokens the one of ours that ends with it."""

    clip: Tensor
    ours: Tensor
    same: Tensor
    """[N,T] places in `ours`; -1 where there is none."""


def lessons(work: Path, clip: CLIPTokenizer, ours: PreTrainedTokenizerFast, data: Pool) -> Lessons:
    """Some wordings of each scene, kept on disk."""
    file = work / f"crowded-words-{len(data)}.pt"
    if not file.exists():
        told = [
            caption(scene, seed=i * WORDINGS + k)
            for i, scene in enumerate(data.scenes)
            for k in range(MATCHED)
        ]
        theirs, mine = (language.padded(tokenizer, told, offsets=True) for tokenizer in (clip, ours))
        same = [
            ends_with(t, m)
            for t, m in zip(theirs.offset_mapping.tolist(), mine.offset_mapping.tolist(), strict=True)
        ]
        held = theirs.input_ids.short(), mine.input_ids.short(), torch.tensor(same, dtype=torch.int8)
        torch.save(held, file)
    return Lessons(*torch.load(file, weights_only=True))


def ends_with(theirs: list[list[int]], mine: list[list[int]]) -> list[int]:
    """For each token of theirs the place of the one of mine that ends at the same letter. Marks follow in their order.

    Both lists hold [begin, end) of each token in the text; marks are empty.
    """
    places = {end: k for k, (begin, end) in enumerate(mine) if end > begin}
    last = max(places.values(), default=0)
    found, after = [], 0
    for k, (begin, end) in enumerate(theirs):
        if end > begin:
            found.append(places.get(end, -1))
        elif k == 0:
            found.append(0)
        else:
            after += 1
            found.append(last + after if last + after < len(mine) else -1)
    return found


def train(work: Path, *, minutes: float, base: Path, scenes: int = 16384) -> Path:
    """Train a bridge to the UNet model in the folder `base`, and write it to `work/still-life-llama`."""
    data, place = crowded(work, scenes), best_device()
    words, folder = language.tokenizer_for(work, data), work / "still-life-llama"
    llama = language.train(work, data, minutes=minutes * LANGUAGE)
    llama.half().save_pretrained(folder / "language_model")
    words.save_pretrained(folder / "tokenizer")
    teacher = Teacher.of(base, place)
    torch.manual_seed(6)
    student = Student(llama.float(), open_model(base).denoise.net).to(place)
    match_words(student, teacher, lessons(work, teacher.words, words, data), minutes * WORDS, work)
    match_noise(student, teacher, words, data, minutes * (1 - LANGUAGE - WORDS), work)
    return write(folder, student.cpu(), base.name)


class Teacher(NamedTuple):
    """The model as it is."""

    words: CLIPTokenizer
    clip: CLIPTextModel
    unet: nn.Module
    vae: AutoencoderKL
    blank: Tensor
    """What stands beside x where all is to be painted, [1,1+C,h,w]."""

    @classmethod
    def of(cls, base: Path, place: torch.device) -> Teacher:
        model: Any = open_model(base, device=place)
        size = (model.defaults.height, model.defaults.width)
        pictures = {"image": torch.full((1, 3, *size), 0.5), "mask": torch.ones(1, 1, *size)}
        blank = model.attach(model.encode([""], key="pos"), pictures).embeds["beside"]
        clip, unet, vae = (model.parts[name].net for name in ("text_encoder", "unet", "vae"))
        return cls(model.text.tokenizer, clip, unet, vae, blank.to(place))

    def heard(self, ids: Tensor) -> Tensor:
        """[B,T,D]."""
        said: Tensor = self.clip(ids).last_hidden_state
        return said


def match_words(student: Student, teacher: Teacher, known: Lessons, minutes: float, work: Path) -> None:
    """The adapter and the language model's factors learn to say what CLIP says at the end of each word."""
    ids, ours, same = (part.to(teacher.blank.device) for part in known)
    size = teacher.heard(ids[:WORD_BATCH].long()).var().detach()
    part = nn.ModuleDict({"language": student.language, "adapter": student.adapter})

    def loss(step: int, rng: torch.Generator) -> dict[str, Tensor]:
        chosen = torch.randint(len(ids), (WORD_BATCH,), generator=rng, device=ids.device)
        with torch.no_grad():
            wanted = teacher.heard(ids[chosen].long())
        places = same[chosen].long()
        said = student.heard(ours[chosen].long())
        said = said.gather(1, places.clamp(min=0)[..., None].expand(-1, -1, said.shape[2]))
        error = (said - wanted).square().mean(2) / size
        return {"loss": error[places >= 0].mean()}

    learned = fit(part, _optimiser(part), loss, _settings(minutes), work / "bridge-words")
    part.load_state_dict(learned.state_dict())


def match_noise(
    student: Student,
    teacher: Teacher,
    words: PreTrainedTokenizerFast,
    data: Pool,
    minutes: float,
    work: Path,
) -> None:
    """All that learns, learns to denoise as the teacher does."""
    place = teacher.blank.device
    z = encoded(work, teacher.vae, data, "crowded").to(place)
    theirs = wordings(work, teacher.words, data).to(place)
    ours = language.sentences(work, words, data).to(place)
    nothing = tokenize(teacher.words, [""], networks.TEXT_TOKENS)[0].to(place)
    silence = language.padded(words, [""]).input_ids[0].to(place)
    alphas = scheduler().alphas_cumprod.to(place)

    def loss(step: int, rng: torch.Generator) -> dict[str, Tensor]:
        drawn = draw(theirs, nothing, BATCH, rng)
        heard = torch.where(drawn.empty[:, None], silence, ours[drawn.scene, drawn.wording].long())
        clean = z[drawn.scene].float()
        noise = torch.randn(clean.shape, generator=rng, device=place)
        k = torch.randint(len(alphas), (BATCH,), generator=rng, device=place)
        a = alphas[k].view(-1, 1, 1, 1)
        beside = teacher.blank.expand(BATCH, -1, -1, -1)
        x = torch.cat([a.sqrt() * clean + (1 - a).sqrt() * noise, beside], 1)
        with torch.no_grad():
            wanted = teacher.unet(x, k, teacher.heard(drawn.ids), return_dict=False)[0]
        said = student.unet(x, k, student.heard(heard), return_dict=False)[0]
        error = (said - wanted).square().mean((1, 2, 3))
        return {"loss": ((1 / alphas[k]).clamp(max=WEIGHT_CAP) * error).mean()}

    learned = fit(student, _optimiser(student), loss, _settings(minutes), work / "bridge-run")
    student.load_state_dict(learned.state_dict())


def _optimiser(module: nn.Module) -> Muon:
    return Muon(muon_groups(module, plain=("lora_",)))


def _settings(minutes: float) -> Fit:
    return Fit(minutes, lr=1e-3, ema=0.99, warmup=50)


def write(folder: Path, student: Student, made_for: str) -> Path:
    """The adapter, the factors and the card beside the language model."""
    (folder / "adapter").mkdir(exist_ok=True)
    weights = {name: weight.half() for name, weight in student.adapter.state_dict().items()}
    save_file(weights, folder / "adapter" / WEIGHTS)
    adapter = student.adapter
    config = {
        "_class_name": "TextAdapter",
        "in_dim": adapter.in_dim,
        "int_dim": adapter.int_dim,
        "out_dim": adapter.out_dim,
    }
    (folder / "adapter" / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(student.factors(), folder / LORAS)
    card = {"tokens": networks.TEXT_TOKENS, "made_for": made_for, "licence": "Apache-2.0"}
    (folder / INDEX).write_text(json.dumps(card, indent=1) + "\n")
    return folder
