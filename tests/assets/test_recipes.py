"""The recipes: parts against closed forms, and one whole training at a toy size."""

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from sfumato.assets.recipes import builtin, captions, flow, networks, tasks, truth, vae
from sfumato.assets.recipes.fitting import Fit, fit
from sfumato.assets.recipes.learning.microdit import MicroDit
from sfumato.assets.recipes.learning.repa import Repa
from sfumato.assets.recipes.measure import judged, match
from sfumato.assets.recipes.muon import Muon, muon_groups, orthogonalise
from sfumato.assets.recipes.pool import pool
from sfumato.assets.recipes.text import learn
from sfumato.assets.still_life.judge import Reading, Seen
from sfumato.assets.still_life.render import render
from sfumato.assets.still_life.sampling import sample_scene
from sfumato.assets.still_life.scene import COLORS, SHAPES
from torch import nn


def test_muon_makes_matrices_nearly_orthogonal() -> None:
    g = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(g))
    assert values.min() > 0.6
    assert values.max() < 1.3
    u, _, vh = torch.linalg.svd(g, full_matrices=False)
    assert (
        torch.nn.functional.cosine_similarity(orthogonalise(g).flatten(1), (u @ vh).flatten(1)).min() > 0.98
    )


def test_muon_leaves_vectors_to_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.LayerNorm(6), nn.LayerNorm(6)
    mine = Muon(muon_groups(ours), lr=0.01, weight_decay=0.0)
    adam = torch.optim.AdamW(theirs.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(5):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        for net, optimiser in ((ours, mine), (theirs, adam)):
            optimiser.zero_grad()
            (net(x) ** 3).sum().backward()
            optimiser.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_a_fit_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def start() -> tuple[nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = nn.Linear(4, 1)
        return net, Muon(muon_groups(net))

    steps: list[int] = []

    def run(seconds: float) -> None:
        net, optimiser = start()

        def loss(step: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
            steps.append(step)
            x = torch.randn(64, 4, generator=rng)
            return {"loss": (net(x) - x.sum(1, keepdim=True)).square().mean()}

        fit(net, optimiser, loss, Fit(seconds / 60, lr=0.01, warmup=1), tmp_path)

    run(0.4)
    cooled_from = torch.load(tmp_path / "stable.pt", weights_only=True)["step"]
    first = len(steps)
    run(0.4)
    assert first > cooled_from > 0
    assert steps[first] == cooled_from


def test_tokenizer_spells_out_what_it_never_saw() -> None:
    tokenizer = learn(["a red cube, in snow"] * 8)
    for text in ("a red cube", "zebra", "größe", "🤖 in 雪", ""):
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids[1:-1] or tokenizer.unk_token_id == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(
            " ", ""
        )
    assert len(tokenizer("a red cube").input_ids) == 5


@pytest.fixture(scope="module")
def toy() -> flow.Flow:
    torch.manual_seed(0)
    return flow.Flow(learn(["a red cube"])).eval()


def test_forward_without_options_is_diffusers_forward(toy: flow.Flow) -> None:
    x, t, ids = torch.randn(2, 64, 64), torch.tensor([0.3, 0.9]), torch.randint(0, 90, (2, 16))
    with torch.inference_mode():
        theirs = toy.transformer(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=toy.sequence(ids)[0],
            pooled_projections=toy.pooled(ids).pooler_output,
            txt_ids=torch.zeros(16, 3),
            img_ids=flow.grid(8, 8),
        ).sample
        assert torch.equal(toy(x, t, ids).v, theirs)
        every = toy(x, t, ids, keep=torch.arange(64)).v
    torch.testing.assert_close(every, theirs)


def test_deferred_masking_keeps_the_tokens_it_says(toy: flow.Flow) -> None:
    x, t, ids = torch.randn(1, 64, 64), torch.tensor([0.5]), torch.randint(0, 90, (1, 8))
    keep = MicroDit(0.75)(64, torch.Generator().manual_seed(0))
    assert keep is not None
    assert len(keep) == 16 == len(keep.unique())
    changed = x.clone()
    changed[:, [i for i in range(64) if i not in keep]] += 1.0
    with torch.inference_mode():
        v = toy(x, t, ids, [x], keep).v
        assert v.shape == (1, 16, 64)
        # The mixer saw the dropped tokens: they still matter.
        assert (toy(changed, t, ids, [x], keep).v - v).abs().max() > 1e-6


@pytest.mark.parametrize("share", [-0.1, 0.95, float("nan")])
def test_microdit_refuses_what_is_out_of_range(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        MicroDit(share)


def test_microdit_off_keeps_all() -> None:
    assert MicroDit(0.0)(64, torch.Generator()) is None


def test_repa_is_the_weighted_squared_error() -> None:
    a, b = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.0, 4.0]]])
    assert float(Repa(0.5)(a, b)) == 0.5 * (1 + 4) / 2
    assert float(Repa(0.0)(a, b)) == 0
    with pytest.raises(ValueError, match="weight"):
        Repa(-1.0)


def test_truth_knows_the_scene(tmp_path: Path) -> None:
    """Of one scene: normals and depth are the render's, shapes and colours cover what their masks cover."""
    scenes = [sample_scene(i) for i in range(3)]
    found = truth.known(scenes, 8)
    assert found.shape == (3, 64, truth.WIDTH)
    seen = render(scenes, size=32, maps=("depth", "normals", "ids"))
    first = found[1].view(8, 8, truth.WIDTH)
    assert torch.equal(first[5, 2, :16].view(4, 4), seen.normals[1, 0, 20:24, 8:12])
    assert torch.equal(first[5, 2, 48:64].view(4, 4), 1 / seen.depth[1, 0, 20:24, 8:12])
    for i, scene in enumerate(scenes):
        words = [(t.shape, t.color) for t in scene.things]
        for word in {word for both in words for word in both}:
            masks = [m for m, both in zip(seen.masks[i], words, strict=True) if word in both]
            share = found[i, :, 64 + (*SHAPES, *COLORS).index(word)].mean()
            assert float(share) == pytest.approx(float(sum(m.float().mean() for m in masks)), abs=1e-6)
    data = pool(tmp_path, 64, size=32)
    rows = truth.truth(tmp_path, data).float().flatten(0, 1)
    assert rows.mean(0).abs().max() < 0.01
    assert torch.equal(truth.truth(tmp_path, data).float().flatten(0, 1), rows)


def test_whitening_changes_no_picture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    codec, data = networks.vae().eval(), pool(tmp_path, 8, size=64)
    x = data.batch(torch.arange(4)) * 2 - 1
    with torch.inference_mode():
        before = codec.decode(codec.encode(x).latent_dist.mean).sample
    vae.whiten(codec, data)
    with torch.inference_mode():
        z = codec.encode(data.batch(torch.arange(8)) * 2 - 1).latent_dist.mean
        after = codec.decode(codec.encode(x).latent_dist.mean).sample
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(16), atol=1e-2, rtol=0)


def test_bundle_shows_every_task() -> None:
    scenes = [sample_scene(i) for i in range(4)]
    made = tasks.bundle(scenes, range(4), size=64, device=torch.device("cpu"))
    assert set(made.pictures) == set(tasks.PICTURES)
    for name, picture in made.pictures.items():
        assert picture.shape == (4, 3, 64, 64), name
        assert picture.min() >= 0 and picture.max() <= 1, name
    rgb = made.pictures["rgb"]
    for name in ("hole", "inner"):
        grey = made.pictures[name] == tasks.BLANK
        assert torch.equal(made.pictures[name][~grey], rgb[~grey])
        assert grey.any()
    for task in tasks.TASKS.values():
        assert all(task.text.format(**words) for words in made.words)
    again = tasks.bundle(scenes, range(4), size=64, device=torch.device("cpu"))
    assert all(torch.equal(made.pictures[k], again.pictures[k]) for k in tasks.PICTURES)


def test_judged_counts_words_one_by_one() -> None:
    scene = next(s for s in map(sample_scene, range(50)) if len(s.things) == 2)
    seen = [
        Seen(t.shape, t.color, t.material, t.size, t.position, (0.5, 0.5), 0.9)
        for t in reversed(scene.things)
    ]
    reading = Reading(tuple(seen), scene.setting, scene.light_direction, scene.light_color)
    assert match(scene, reading) == seen[::-1]
    assert all(all(v) for v in judged(scene, reading).values())
    wrong = Reading((seen[0]._replace(color="none"), seen[1]), scene.setting, "left", "warm")
    result = judged(scene, wrong)
    assert sorted(result["color"]) == [False, True]
    assert result["all"] == [False]
    assert judged(scene, None)["setting"] == [False]


@pytest.mark.parametrize("every_task", [False, True])
def test_a_toy_training_writes_a_model_that_opens(
    toy_work: Path, monkeypatch: pytest.MonkeyPatch, every_task: bool
) -> None:
    monkeypatch.setattr(flow, "BATCH", 2)
    repa, microdit = (Repa(), MicroDit()) if every_task else (None, None)
    folder = builtin.train(
        "still-life",
        minutes=0.01,
        work=toy_work,
        scenes=16,
        every_task=every_task,
        repa=repa,
        microdit=microdit,
    )
    from sfumato.pipelines.loading import open_model
    from sfumato.pipelines.text_to_image import TextToImage

    assert TextToImage(open_model(folder))("a red cube", steps=1).pixels.shape == (1, 3, 128, 128)


def test_times_are_late_and_reach_all() -> None:
    t = flow.times(20_000, torch.Generator().manual_seed(0))
    assert t.min() >= 0
    assert t.max() <= 1
    logit = 1 / (1 + 2.718281828**-1.0)  # the median of the logit-normal part
    below = flow.EVEN * logit + (1 - flow.EVEN) * 0.5
    assert float((t < logit).float().mean()) == pytest.approx(below, abs=0.01)


def test_without_autoencoder_or_shipped_model_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin, "MODELS", tmp_path / "models")
    with pytest.raises(ValueError, match="train `vae` first"):
        builtin.train("still-life", minutes=1, work=tmp_path / "work")


def test_a_new_work_folder_begins_with_what_is_shipped(tmp_path: Path) -> None:
    builtin.begin_with_shipped(tmp_path)
    shipped = builtin.MODELS / "still-life"
    model = flow.Flow(captions.tokenizer_for(tmp_path, pool(tmp_path, 1)))
    model.begin(tmp_path / "start" / "still-life")
    theirs = FluxTransformer2DModel.from_pretrained(shipped / "transformer", dtype=torch.float32)
    assert all(
        torch.equal(mine, its)
        for mine, its in zip(model.transformer.parameters(), theirs.parameters(), strict=True)
    )
    assert (tmp_path / "vae" / "config.json").read_text() == (shipped / "vae" / "config.json").read_text()


def test_unknown_model_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"still-lif.*judge"):
        builtin.train("still-lif", minutes=1, work=tmp_path)
