"""The bridge's recipe: words matched between tokenizers, and one training at a toy size."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sfumato.assets.recipes import bridge, builtin, language, networks, text, unet
from sfumato.assets.recipes.pool import crowded
from sfumato.pipelines.bridges import LORAS, open_bridge, with_bridge
from sfumato.pipelines.loading import open_model
from sfumato.pipelines.text_to_image import TextToImage

CAPTION = "a small red cube on top of a matte cone, in snow"


def test_words_that_end_at_the_same_letter() -> None:
    theirs, ours = text.learn([CAPTION] * 8), language.learn([CAPTION] * 8)
    mine, known = (language.padded(t, [CAPTION], offsets=True) for t in (ours, theirs))
    same = bridge.ends_with(known.offset_mapping[0].tolist(), mine.offset_mapping[0].tolist())
    assert len(same) == networks.TEXT_TOKENS and same[0] == 0
    end = known.input_ids[0].tolist().index(theirs.eos_token_id)
    assert mine.input_ids[0, same[end]] == ours.eos_token_id and ours.pad_token_id == ours.eos_token_id
    read = [CAPTION[:stop].rpartition(" ")[2] for _, stop in known.offset_mapping[0].tolist()[1:end]]
    matched = [CAPTION[: mine.offset_mapping[0, k, 1]].rpartition(" ")[2] for k in same[1:end] if k >= 0]
    assert len(matched) >= 10 and set(matched) <= set(read)


def test_an_unmatched_word() -> None:
    theirs, ours = [[0, 0], [0, 1], [1, 3], [0, 0], [0, 0]], [[0, 0], [0, 3], [0, 0]]
    assert bridge.ends_with(theirs, ours) == [0, -1, 1, 2, -1]


def test_a_toy_bridge(toy_work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bridge, language, unet):
        monkeypatch.setattr(module, "BATCH", 2)
    with pytest.raises(ValueError, match="train that first"):
        builtin.train("still-life-llama", minutes=0.01, work=toy_work, scenes=16)
    base = builtin.train("still-life-unet", minutes=0.01, work=toy_work, scenes=16)
    folder = builtin.train("still-life-llama", minutes=0.05, work=toy_work, scenes=16)
    factors = load_file(folder / LORAS)
    assert {name.partition(".")[0] for name in factors} == {"language_model", "unet"}
    assert all(bool(w.any()) for name, w in factors.items() if name.startswith("unet") and "lora_A" in name)

    model = open_model(base)
    before = {name: w.clone() for name, w in model.denoise.net.state_dict().items()}
    bridged = with_bridge(model, open_bridge(folder))
    changed = [n for n, w in bridged.denoise.net.state_dict().items() if not torch.equal(w, before[n])]
    learned = {name.split(".lora_")[0].removeprefix("unet.") + ".weight" for name in factors}
    assert changed and set(changed) <= learned
    assert bridged.encode([CAPTION], key="pos").embeds["text"].shape == (1, 48, networks.TEXT_WIDTH)
    assert TextToImage(bridged)(CAPTION, steps=1).pixels.isfinite().all()


def test_the_student_says_what_the_bridge_says(tmp_path: Path) -> None:
    """What is written is what was trained: the same states from the same caption."""
    data = crowded(tmp_path, 4)
    words = language.tokenizer_for(tmp_path, data)
    torch.manual_seed(0)
    llama = networks.llama(len(words), words.bos_token_id, words.eos_token_id)
    llama.save_pretrained(tmp_path / "out/language_model")
    words.save_pretrained(tmp_path / "out/tokenizer")
    student = bridge.Student(llama, networks.unet()).eval()
    with torch.no_grad():
        for name, weight in student.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    opened = open_bridge(bridge.write(tmp_path / "out", student, "toy"))
    ids = language.padded(words, [CAPTION]).input_ids
    with torch.no_grad():
        wanted = student.heard(ids)
        from sfumato.pipelines.converts._adapters import merge, put_on
        from sfumato.pipelines.converts._lora_files import read_lora

        nets = {"language_model": opened.language.net, "unet": networks.unet()}
        found = read_lora(tmp_path / "out" / LORAS, nets, "unet")
        put_on(opened.language.net, "bridge", found.parts["language_model"])
        merge(opened.language.net, {"bridge": 1.0})
        said, _ = opened([CAPTION])
    torch.testing.assert_close(said, wanted, atol=2e-3, rtol=1e-2)  # the adapter is kept in half precision
