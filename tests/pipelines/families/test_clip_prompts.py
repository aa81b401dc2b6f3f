"""Weights, length and learned words through CLIP, against the encoder itself and against diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from agreement import PROMPT, Case, agree, opened, relative
from safetensors.torch import save_file
from sfumato.pipelines.errors import BadInput, BadWeights
from sfumato.pipelines.families._clip_prompts import MOST_CHUNKS, ClipPrompts, say
from sfumato.pipelines.learned_words import forget, learn
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.noise import SeededNoise


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.stable_diffusion(tmp_path_factory.mktemp("sd") / "sd")


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Any, Any]:
    return opened(folder)


@pytest.fixture(scope="module")
def clip(pair: tuple[Any, Any]) -> ClipPrompts:
    """Its last norm has a bias, as trained ones have: without, every chunk's mean is zero."""
    found = pair[0].learners[0]
    with torch.no_grad():
        for net in (found.clip, pair[1].text_encoder):
            net.final_layer_norm.bias += torch.linspace(-0.2, 0.6, 24)
    return found


@torch.no_grad()
def by_hand(clip: ClipPrompts, words: list[str], weights: list[float] | None = None) -> torch.Tensor:
    """One chunk [L,D] of words, each with its weight."""
    ids = [clip.words.tokenizer(word, add_special_tokens=False).input_ids for word in words]
    flat = [clip.words.tokenizer.bos_token_id, *(id for one in ids for id in one)]
    flat += [clip.words.tokenizer.eos_token_id] * (77 - len(flat))
    z = clip.clip(torch.tensor([flat])).last_hidden_state[0]
    if weights is None:
        return z
    m = torch.ones(77)
    m[1 : 1 + sum(map(len, ids))] = torch.tensor(
        [w for one, w in zip(ids, weights, strict=True) for _ in one]
    )
    weighed = z * m[:, None]
    return weighed * (z.mean() / weighed.mean())


def encode(clip: ClipPrompts, *prompts: str) -> torch.Tensor:
    with torch.no_grad():
        return say([clip], prompts)[0].text


def test_plain_prompts_are_what_the_encoder_says(clip: ClipPrompts) -> None:
    for prompts in ([""], [PROMPT], [PROMPT, "red " * 75, "画家, <|endoftext|> a|b"]):
        ids, _ = clip.words.ids(prompts)
        with torch.no_grad():
            found, wanted = say([clip], prompts)[0], clip.clip(ids)
        assert torch.equal(found.text, wanted[0]) and torch.equal(found.pooled, wanted.pooler_output)
        assert found.mask is None


def test_weights(clip: ClipPrompts) -> None:
    found = encode(clip, "a (red:1.3) [cube]")[0]
    assert torch.allclose(found, by_hand(clip, ["a", "red", "cube"], [1, 1.3, 1 / 1.1]), atol=1e-5)
    assert torch.allclose(found.mean(), by_hand(clip, ["a", "red", "cube"]).mean(), atol=1e-6)
    assert relative(found, encode(clip, "a red cube")[0]) > 0.01
    assert torch.equal(encode(clip, "a (red:1.0) cube"), encode(clip, "a red cube"))
    both = encode(clip, PROMPT, "a (red:1.3) cube")
    assert torch.equal(both[0], encode(clip, PROMPT, "a red cube")[0])


def test_length(clip: ClipPrompts) -> None:
    words = ["red", "a", "cube", "on"] * 40
    tokens = [clip.words.tokenizer(word, add_special_tokens=False).input_ids for word in words]
    ends = torch.tensor([len(one) for one in tokens]).cumsum(0).tolist()
    assert ends[-1] > 150
    found = encode(clip, " ".join(words))
    assert found.shape[1] == 77 * -(-ends[-1] // 75)
    parted = encode(clip, "red a BREAK cube")[0]
    assert torch.allclose(parted, torch.cat([by_hand(clip, ["red a"]), by_hand(clip, ["cube"])]), atol=1e-5)
    exact = encode(clip, "red " * 150)[0]
    assert torch.allclose(exact, by_hand(clip, ["red"] * 75).repeat(2, 1), atol=1e-5)


def test_prompts_of_several_lengths_in_a_batch(pair: tuple[Any, Any], clip: ClipPrompts) -> None:
    model, prompts = pair[0], ["a red cube", "a BREAK blue cone", "(big:1.4) " * 40]
    x = SeededNoise.batch(0, 3, model.latent_shape(64, 64))()
    with torch.no_grad():
        together = model.denoise(x, 0.6, model.encode(prompts, key="pos"))[0].eps
        for i, prompt in enumerate(prompts):
            alone = model.denoise(x[i : i + 1], 0.6, model.encode([prompt], key="pos"))[0].eps
            assert relative(together[i : i + 1], alone) < 1e-5
        assert (
            relative(together[:1], model.denoise(x[:1], 0.6, model.encode(["red"], key="pos"))[0].eps) > 1e-4
        )


def test_nothing_is_dropped(pair: tuple[Any, Any]) -> None:
    model = pair[0]
    assert model.dropped("(red:1.2) " * 75 * MOST_CHUNKS) == ""
    assert model.dropped("red " * 75 * MOST_CHUNKS + "the end") == "the end"
    assert model.dropped("red BREAK " * MOST_CHUNKS + "(the:2) end") == "the end"
    assert model.limits.tokens == 75 * MOST_CHUNKS + 2
    assert model.encode(["a " * 9000], key="pos").embeds["text"].shape[1] == 77 * MOST_CHUNKS


def test_other_families_read_plain_language(tmp_path: Path) -> None:
    model = open_model(tiny_models.flux(tmp_path / "flux"))
    texts = [model.encode([p], key="pos").embeds["text"] for p in ("a red (cube)", "a (red:1.3) (cube)")]
    assert torch.equal(*texts)
    ids = model.text.ids(["a red (cube)"])[0]
    assert torch.equal(texts[0], model.parts["text_encoder_2"].net(ids)[0])
    assert (
        model.reads("a (red:1.3) cube") == "a red cube" and model.reads("a (red) [cube]") == "a (red) [cube]"
    )


VECTORS = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("key", ["<cat>", "emb_params"])
def test_learned_words_are_those_of_diffusers(
    key: str, pair: tuple[Any, Any], clip: ClipPrompts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pipe = pair
    before = encode(clip, "a <cat> on")
    save_file({key: VECTORS}, tmp_path / "cat.safetensors")
    token = f"<cat-{key.strip('<>')}>"
    pipe.load_textual_inversion({token: VECTORS}, token=token)
    assert learn(model, tmp_path / "cat.safetensors") == "<cat>"
    with torch.no_grad():
        theirs = pipe.encode_prompt(f"a {token} on", "cpu", 1, False)[0]
    assert torch.allclose(encode(clip, "a <cat> on"), theirs, atol=1e-6)
    assert relative(encode(clip, "a <cat> on"), before) > 0.01
    assert encode(clip, "red " * 74 + "<cat>").shape[1] == 2 * 77
    with pytest.raises(BadInput, match="known already"):
        learn(model, tmp_path / "cat.safetensors")
    forget(model, "<cat>")
    assert torch.equal(encode(clip, "a <cat> on"), before)


def test_bad_embeddings(pair: tuple[Any, Any], tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    for tensors, said in (
        ({"emb_params": torch.ones(1, 23)}, "24 wide"),
        ({"emb_params": torch.ones(99, 24)}, "99 vectors"),
        ({"a": torch.ones(2, 24), "b": torch.ones(2, 24)}, "no learned word"),
        ({"emb_params": torch.full((1, 24), float("nan"))}, "finite"),
    ):
        save_file(tensors, file)
        with pytest.raises(BadWeights, match=said):
            learn(pair[0], file)
    (tmp_path / "x.pt").write_bytes(b"PK")
    with pytest.raises(BadWeights, match="can run code"):
        learn(pair[0], tmp_path / "x.pt")
    with pytest.raises(BadInput, match="no file"):
        learn(pair[0], tmp_path / "gone.safetensors")


def test_still_diffusers_without_syntax(tmp_path: Path, folder: Path) -> None:
    agree(*opened(folder), 4.0, 2, (64, 64), Case())
