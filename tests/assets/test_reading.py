"""Reading: what captions tell, and that a text encoder learns it."""

from pathlib import Path

import pytest
import torch
from sfumato.assets.recipes import networks, reading
from sfumato.assets.recipes.captions import wordings
from sfumato.assets.recipes.pool import crowded
from sfumato.assets.recipes.text import learn
from torch.nn import functional as F


def test_told_is_what_the_caption_says() -> None:
    text = "a small red cube under a matte cone, in snow, warm light"
    known = dict(enumerate(reading.told(text)))
    named = {k: (None, *reading.FIELDS[k])[v] for k, v in known.items() if v}
    first, second = range(4), range(4, 8)
    assert [named.get(k) for k in first] == ["cube", "red", None, "small"]
    assert [named.get(k) for k in second] == ["cone", None, "matte", None]
    assert [named.get(12 + k) for k in range(3)] == ["under", None, None]
    assert [named.get(15 + k) for k in range(3)] == ["snow", None, "warm"]


def test_a_reader_learns_and_leaves_its_encoder_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = crowded(tmp_path, 64)
    tokenizer = learn(["a small red cube on top of a matte cone, in snow, warm light"] * 8)
    torch.manual_seed(0)
    encoder = networks.t5(len(tokenizer), tokenizer.eos_token_id, tokenizer.eos_token_id)
    before = encoder.shared.weight.clone()
    reader = reading.Reader(encoder, lambda ids: encoder(ids)[0], networks.TEXT_WIDTH)
    scores = reader(torch.zeros(2, 8, dtype=torch.long))
    assert [s.shape for s in scores] == [(2, 1 + len(words)) for words in reading.FIELDS]
    monkeypatch.setattr(reading, "BATCH", 32)
    ids, known = (
        wordings(tmp_path, tokenizer, data)[:, 0].long(),
        reading.lessons(tmp_path, data)[:, 0].long(),
    )

    def loss() -> float:
        with torch.inference_mode():
            return sum(float(F.cross_entropy(s, w)) for s, w in zip(reader(ids), known.T, strict=True))

    untaught = loss()
    reading.teach(reader, tmp_path, tokenizer, data, minutes=1.0, folder=tmp_path / "run")
    assert not torch.equal(encoder.shared.weight, before)
    assert loss() < untaught
