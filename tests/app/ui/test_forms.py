"""Forms out of requests and back, the other entrances' words, grids, canvases, colours: what needs no browser."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from pathlib import Path

import hub_server
import numpy as np
import pytest
import torch
import typer
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from sfumato.app import registry
from sfumato.app.chosen import LoraChoice, Technique
from sfumato.app.cli import app as command_line
from sfumato.app.jobs import control
from sfumato.app.jobs.runner import Runner
from sfumato.app.jobs.store import Store
from sfumato.app.requests import REQUESTS, GenerateRequest, WorldRequest
from sfumato.app.server.about_routes import lora_names, model_names
from sfumato.app.server.desk import Desk
from sfumato.app.server.serving import Serving
from sfumato.app.settings import make_request
from sfumato.app.tasks import TASKS, Task
from sfumato.app.ui import canvas, counting, grid_page, look, models_page, queue_page, recalled
from sfumato.app.ui.cards import acts, card
from sfumato.app.ui.door import SIGN_IN
from sfumato.app.ui.form import Form
from sfumato.app.ui.gallery_page import Look, comparison, details, gallery
from sfumato.app.ui.kinds import ACTING, fields_of, told, usable
from sfumato.app.ui.panels import fault
from sfumato.app.ui.picked import chosen_settings
from sfumato.app.ui.spelling import as_command, as_json, as_python
from sfumato.app.ui.stage import Stage
from sfumato.pipelines.errors import SfumatoError
from toy_task import SUM, SumRequest

HOSTILE = "<script>alert(1)</script>\"'&"
FULL = GenerateRequest(
    prompt="a 'red' cube, --steps 3",
    negative="-blur",
    width=64,
    steps=4,
    seed=2**60,
    guidance=1.5,
    sampler=Technique.model_validate("ddim:eta=0.5"),
    techniques=(
        Technique.model_validate("cfg-rescale:scale=7,phi=0.4"),
        Technique.model_validate("interval"),
    ),
    loras=(LoraChoice(name="ink", weight=0.8), LoraChoice(name="line")),
    reuse=0.05,
)


@pytest.fixture
def desk(tmp_path):
    return Desk(Serving(), tmp_path / "home", (*TASKS, SUM))


def form_of(task: Task) -> Form:
    """A form whose controls are their own fields: values go through it as Gradio would hand them over."""
    form = Form(task, fields_of(task.request))
    form.controls = {one.name: one for one in form.fields if one.kind != "mask"}
    return form


@pytest.mark.parametrize("task", [*TASKS, SUM], ids=lambda task: task.request.task)
def test_every_field_has_a_place_in_its_form(task):
    fields = fields_of(task.request)
    assert [one.name for one in fields] == list(task.request.model_fields)
    assert all(one.help for one in fields)
    assert not [one.name for one in fields if one.kind in ("technique", "techniques") and not one.choices]


def test_kinds_follow_the_request():
    kinds = {one.name: one.kind for one in fields_of(GenerateRequest)}
    assert kinds["prompt"] == "words" and kinds["model"] == "model" and kinds["bridge"] == "bridge"
    assert kinds["image"] == "picture" and kinds["mask"] == "mask" and kinds["pictures"] == "pictures"
    assert (
        kinds["sampler"] == "technique" and kinds["techniques"] == "techniques" and kinds["loras"] == "lines"
    )
    assert kinds["seed"] == "text", "a browser's numbers are not exact above 2**53"
    assert kinds["reuse"] == "slider" and kinds["count"] == "number" and kinds["dtype"] == "choice"


def test_forms_offer_what_can_be_typed_in_alone():
    offered = usable("image", ACTING)
    assert "cfg-rescale" in offered and "deepcache" in offered and "lora" in offered
    assert "harmonica" in offered and offered["weight-only"].id == offered["marlin"].id == "weight-only"
    assert not {"keep-known", "controlnet", "sds", "windows", "frame-cfg", "ddim"} & set(offered)


def test_a_request_goes_through_its_form_unchanged(desk):
    form = form_of(TASKS[0])
    values = FULL.model_dump(mode="json")
    updates = form.filled(values, desk, epoch=3)
    held = [update["value"] for update in updates[: len(form.controls)]]
    _, epoch, draft, *kept = updates[len(form.controls) :]
    assert epoch == 4 and draft["prompt"] == FULL.prompt and kept == [{}, {}]
    assert form.request([*held, *updates[len(form.controls) :]], desk) == FULL


def test_an_untouched_form_is_the_default_request(desk):
    for task in (*TASKS, SUM):
        form = form_of(task)
        held = [
            told(one, list(one.default) if isinstance(one.default, tuple) else one.default)
            for one in form.fields
        ]
        held = [value for value, one in zip(held, form.fields, strict=True) if one.kind != "mask"]
        assert form.request([*held, {}, 0, {}], desk) == make_request(task.request, {})


def test_a_draft_of_another_version_is_passed_over():
    form = form_of(SUM)
    desk = None  # nobody is asked for pictures
    updates = form.redrawn({"prompt": "x", "gone": 1}, [], desk)
    assert updates[0]["value"] == "x" and all(update["__type__"] == "update" for update in updates)
    assert all("value" not in update for update in form.redrawn("nonsense", [], desk))


def test_pictures_of_a_draft_come_back_as_long_as_they_are_here(desk, tmp_path):
    form = form_of(TASKS[0])
    form.kept = {"image": None, "pictures": None}
    for name, size in (("start", (16, 8)), ("mask", (16, 8)), ("depth", (4, 4))):
        Image.new("L", size, 255).save(tmp_path / f"{name}.png")
    start, mask, depth = (
        desk.inputs.take((tmp_path / f"{name}.png").read_bytes()).id for name in ("start", "mask", "depth")
    )
    kept = [{"image": start, "mask": mask}, {"pictures": [f"depth={depth}", f"../up={depth}", "gone=0"]}]
    found = dict(zip(form.controls, form.redrawn({}, kept, desk), strict=True))
    assert (
        found["image"]["value"]["background"].size == (16, 8) and len(found["image"]["value"]["layers"]) == 1
    )
    (file,) = map(Path, found["pictures"]["value"])
    assert file.name == "depth.png" and file.is_relative_to(desk.home / "uploads")
    again = form.values(
        [found[name].get("value") for name in form.controls] + [{}, 0, {}], desk
    )  # as the form would send it
    assert again["mask"] and again["pictures"] == [f"depth={depth}"]
    for file in desk.inputs.folder.iterdir():
        file.unlink()
    assert dict(zip(form.controls, form.redrawn({}, kept, desk), strict=True))["image"]["value"] is None
    assert "value" not in form.redrawn({}, ["nonsense", {"pictures": 3}], desk)[0]


def test_settings_that_are_the_defaults_are_left_out():
    held = {"cfg-rescale": {"scale": 7.5, "phi": "0.4"}}
    assert chosen_settings("cfg-rescale", held) == {"id": "cfg-rescale", "settings": {"phi": 0.4}}
    marlin = {"marlin": {"format": "int4", "smallest": 8}}
    assert chosen_settings("marlin", marlin) == {"id": "marlin", "settings": {"smallest": 8}}
    assert chosen_settings("interval:low=1", {}) == {"id": "interval", "settings": {"low": 1}}


@pytest.mark.parametrize("request_", [FULL, GenerateRequest(), WorldRequest(maps=("rgb", "depth"), width=64)])
def test_a_command_line_says_the_same(request_, monkeypatch):
    words = shlex.split(as_command(request_))
    assert words[0] == "sfumato"
    command = typer.main.get_command(command_line)
    context = command.make_context("sfumato", words[1:])
    sub = vars(command)["commands"][words[1]]
    found = sub.make_context(words[1], [*context._protected_args, *context.args][1:], parent=context).params
    values = {k: v for k, v in found.items() if k in type(request_).model_fields and v not in (None, [], ())}
    values[request_.positional] = found["positional"] or ""
    assert make_request(type(request_), values) == request_


def test_json_says_the_same():
    body = json.loads(as_json(FULL))
    assert make_request(REQUESTS[body["task"]], body["request"]) == FULL


def test_the_python_program_makes_the_result(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(as_python(WorldRequest(maps=("rgb",), width=32, height=32, seed=3)), "program", "exec"), {})
    assert "rgb.png" in capsys.readouterr().out
    made = {}
    text = as_python(FULL)
    exec(compile(text[: text.index("store =")], "program", "exec"), made)
    assert made["request"] == FULL


def test_colours_can_be_read():
    """WCAG 2.2, 1.4.3 and 1.4.11."""

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a: str, b: str) -> float:
        high, low = sorted((light(a), light(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for colours in (look.DARK, look.LIGHT):
        for pairs, least in ((look.TEXT_PAIRS, 4.5), (look.EDGE_PAIRS, 3.0)):
            for front, back in pairs:
                found = contrast(colours[front], colours[back])
                assert found >= least, f"{front} on {back}: {found:.2f}"
    assert set(look.MEANS.values()) <= set(look.DARK) == set(look.LIGHT)


def test_the_theme_takes_our_colours_and_fetches_nothing():
    made = look.theme()
    assert (
        made.body_background_fill == look.LIGHT["ground"] and made.body_text_color_dark == look.DARK["text"]
    )
    text = made._get_theme_css() + look.css() + SIGN_IN
    text = text.replace("http://www.w3.org/2000/svg", "")  # the name of a language, which nobody fetches
    assert "http" not in text and "@import" not in text


def test_axes_make_a_request_per_cell():
    axes = [
        grid_page.axis_of("steps", "2, 3"),
        grid_page.axis_of("prompt" + grid_page.REPLACE, "red; blue; old gold"),
    ]
    made = list(grid_page.requests(GenerateRequest, {"prompt": "a red cube", "seed": 1}, axes))
    assert [(one.steps, one.prompt) for one in made] == [
        (2, "a red cube"),
        (3, "a red cube"),
        (2, "a blue cube"),
        (3, "a blue cube"),
        (2, "a old gold cube"),
        (3, "a old gold cube"),
    ]
    assert {one.seed for one in made} == {1}
    sampler = grid_page.axis_of("sampler", "ddim; unipc:order=1")
    assert [one.sampler.id for one in grid_page.requests(GenerateRequest, {}, [sampler])] == ["ddim", "unipc"]
    assert grid_page.axis_of("", "1") is None and grid_page.axis_of("steps", " ") is None


@pytest.mark.parametrize(
    ("axes", "sentence"),
    [
        ([], "choose at least one axis"),
        ([("steps", "0")], "must be at least 1"),
        ([("steps", ",".join(map(str, range(1, 102))))], "are more than 100"),
        ([("prompt (replace words)", "green, red")], "is not in the prompt"),
    ],
)
def test_a_grid_that_cannot_be_made_says_why(axes, sentence):
    with pytest.raises(ValueError, match=sentence):
        list(
            grid_page.requests(
                GenerateRequest, {"prompt": "a red cube"}, [grid_page.axis_of(*one) for one in axes]
            )
        )


def test_a_canvas_grows_with_its_mask():
    picture = Image.linear_gradient("L").convert("RGB").resize((40, 20))
    mask = Image.new("L", (40, 20), 0)
    mask.paste(255, (5, 5, 10, 10))
    grown, _ = canvas.grow(canvas.shown(picture, mask), 8, 0, 16, 4)
    assert grown["background"].size == (64, 24)
    assert np.array_equal(np.asarray(grown["background"].convert("RGB"))[:20, 8:48], np.asarray(picture))
    made = np.asarray(canvas.mask_of(grown))
    old = np.asarray(mask)
    assert np.array_equal(made[:20, 8:48], old) and (made[:, :8] == 255).all() and (made[20:] == 255).all()
    assert "give one first" in canvas.grow(None, 1, 1, 1, 1)[1]["value"]
    assert "at most 4096" in canvas.grow(canvas.shown(picture, None), 5000, 0, 0, 0)[1]["value"]
    assert "at least 0" in canvas.grow(canvas.shown(picture, None), -1, 0, 0, 0)[1]["value"]


def test_pictures_are_taken_in_as_the_api_does(desk, tmp_path):
    (field,) = (one for one in fields_of(GenerateRequest) if one.kind == "picture")
    picture, mask = Image.new("RGBA", (16, 8), (255, 0, 0, 255)), Image.new("L", (16, 8), 0)
    mask.paste(255, (0, 0, 4, 4))
    found = canvas.painted(field, canvas.shown(picture, mask), desk.inputs)
    with Image.open(desk.inputs.path(found["mask"], "mask", desk.store)) as kept:
        assert kept.getbbox() == (0, 0, 4, 4)
    assert set(canvas.painted(field, canvas.shown(picture, None), desk.inputs)) == {"image"}
    empty = {"background": Image.new("RGBA", (16, 8)), "layers": [], "composite": None}
    assert canvas.painted(field, empty, desk.inputs) == {} and canvas.painted(field, None, desk.inputs) == {}
    layer = canvas.shown(picture, mask)["layers"]
    with pytest.raises(ValueError, match="needs a picture to start from"):
        canvas.painted(field, {**empty, "layers": layer}, desk.inputs)
    (several,) = (one for one in fields_of(GenerateRequest) if one.kind == "pictures")
    picture.save(tmp_path / "depth.png")
    (named,) = canvas.painted(several, [str(tmp_path / "depth.png")], desk.inputs)["pictures"]
    assert named.startswith("depth=") and len(named) == len("depth=") + 64


def test_what_people_wrote_is_escaped_wherever_it_is_shown(desk):
    store = desk.store
    done = store.submit(SumRequest(prompt=HOSTILE, steps=2, seed=1))
    Runner(Store(store.home), tasks=(*TASKS, SUM)).run()
    waiting, failed = (store.submit(SumRequest(prompt=HOSTILE)) for _ in range(2))
    control.cancel(store, failed)
    stage = Stage(desk, ("generate",))
    job, kept = store.get(done), store.artifacts(done)[0]
    image = kept._replace(media="image/png", name=HOSTILE)
    held = {"task": "sum", "axes": [["prompt", [HOSTILE]]], "jobs": [waiting]}
    shown = [
        queue_page.queue(desk, stage, HOSTILE),
        gallery(desk, Look(), ())[0],
        details(desk, kept.hash)[0],
        stage.status(store.get(waiting)._replace(state="failed", error=HOSTILE)),
        stage.picture(job),
        stage.film("sum", None),
        card(job, image, acts(image, ("generate",))),
        card(job, image._replace(media="video/mp4"), acts(image, ())),
        grid_page.grid(desk, held),
        fault(HOSTILE),
        models_page.inspect(HOSTILE),
        comparison(desk, kept.hash, HOSTILE),
    ]
    for text in shown:
        assert "<script" not in text and "'\"" not in text
    assert sum("&lt;script&gt;" in text for text in shown) >= 9


def test_the_stage_follows_ones_own_jobs_and_tells_the_time_left(desk):
    store, stage = desk.store, Stage(desk, ())
    mine, other = store.submit(SumRequest(steps=10)), store.submit(SumRequest(steps=10))
    assert stage.current("sum", [mine]).id == mine and stage.current("sum", []).id == other
    assert stage.current("sum", [999, mine]).id == mine and stage.current("world", []) is None
    running = store.get(mine)._replace(state="running", phase="sample", step=2, steps=10)
    assert stage.left(running) is None
    time.sleep(0.05)
    left = stage.left(running._replace(step=4))
    assert left == pytest.approx(0.05 / 2 * 6, rel=0.6)
    assert "Sampling 4 of 10 · about" in stage.words(running._replace(step=4))
    assert "waits" in stage.words(store.get(mine)) and "1 before it" in stage.words(store.get(other))


def test_steering_a_job_that_cannot_be_steered_says_why(desk):
    id = desk.store.submit(SumRequest(steps=2))
    from sfumato.app.ui.panels import Deed

    assert "is not paused" in queue_page.steer(desk, Deed("resume", str(id), ""))
    assert "is not there" in queue_page.steer(desk, Deed("cancel", "999", ""))
    assert (
        queue_page.steer(desk, Deed("explode", "1", ""))
        == ""
        == queue_page.steer(desk, Deed("cancel", "x", ""))
    )
    assert (
        queue_page.steer(desk, Deed("cancel", str(id), "")) == "" and desk.store.get(id).state == "cancelled"
    )


def test_settings_are_recalled_without_places_of_others(desk, tmp_path):
    record = {
        "task": "generate",
        "request": {
            **FULL.model_dump(mode="json"),
            "image": "/elsewhere/x.png",
            "count": 4,
            "device": "cuda:3",
            "new": 1,
        },
        "image": {"index": 2, "seed": 12},
    }
    found = recalled.from_record(record, desk)
    assert found.values["seed"] == 12 and found.values["count"] == 1
    assert not {"image", "device", "new"} & set(found.values)
    request = make_request(GenerateRequest, found.values)
    assert request.techniques == FULL.techniques and request.prompt == FULL.prompt
    with pytest.raises(ValueError, match="is none of this sfumato"):
        recalled.from_record({**record, "task": "paint"}, desk)
    with pytest.raises(ValueError, match="damaged"):
        recalled.from_record({"task": "generate", "request": 3}, desk)


def test_pictures_of_other_programs_are_read(desk, tmp_path):
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    text = "a lighthouse\nNegative prompt: fog\nSteps: 9, Sampler: DPM++ 2M, CFG scale: 6, Seed: 5, Size: 64x32, Hi: x"
    info.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    found = recalled.from_file(tmp_path / "a.png", desk)
    assert found.task == "generate" and any("a1111" in note for note in found.notes)
    request = make_request(GenerateRequest, found.values)
    assert (request.prompt, request.negative, request.steps, request.seed) == ("a lighthouse", "fog", 9, 5)
    assert (request.width, request.height, request.guidance) == (64, 32, 6.0)


def test_tokens_are_counted_with_the_models_own_tokenizer():
    assert counting.count("a red cube, in snow", "still-life").endswith("tokens")
    short, long = (counting.count(text, "still-life") for text in ("a cube", "a cube " * 20))
    assert int(short.split()[0]) < int(long.split()[0])
    assert counting.count("a cube", "no such model") == counting.count("", "still-life") == ""


def test_models_are_listed_and_inspected_by_name_alone(desk, tmp_path):
    listed = models_page.models(desk)
    assert "still-life-unet" in listed and "Apache-2.0" in listed and " MB" in listed
    assert "parameters" in models_page.inspect("still-life") and str(tmp_path) not in models_page.inspect(
        "still-life"
    )
    for name in (str(tmp_path), "../judge", "nothing"):
        assert "is not in the list" in models_page.inspect(name)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def lora(file: Path) -> Path:
    down = torch.ones(16, 768, dtype=torch.float16)
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {"modelspec.license": "MIT", "ss_network_dim": "16"}
    save_file({"lora_unet_a_attn2_to_k.lora_down.weight": down}, file, metadata=about)
    return file


def test_models_are_added_where_they_lie_and_removed(desk, tiny, tmp_path, cache):
    added = models_page.take(desk, f" {tiny} ", "mine", "")
    assert added.entry.place == str(tiny) and registry.read_registry()["mine"] == added.entry
    assert models_page.take(desk, str(lora(tmp_path / "ink.safetensors")), "", "").name == "ink"
    shown = models_page.models(desk)
    assert "sd, model, F32, " in shown
    assert (
        "sd15, lora, F16, 24.6 kB, MIT" in shown and str(tiny) in shown and 'data-ask="Remove mine' in shown
    )
    assert "mine" in model_names()["remembered"] and "ink" not in model_names()["remembered"]
    assert lora_names() == ["ink"] and "lora for sd15" in models_page.inspect("ink")
    (tmp_path / "ink.safetensors").unlink()
    assert '<b>ink</b><span class="sf-small">gone' in models_page.models(desk)
    registry.forget("ink")
    assert "<b>ink</b>" not in models_page.models(desk)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "path: '' is needed"),
        ("relative/folder/x", "does not exist"),
        ("/nothing.safetensors", "does not exist"),
        ("~nobody-here/x", "does not exist"),
        ("/\0", "does not exist"),
        ("TMP/x.txt", "is no model that can be opened"),
        ("TMP/x.ckpt", "is no model that can be opened"),
        ("TMP/broken.safetensors", "broken.safetensors"),
        ("TMP", "has no model_index.json"),
        ("owner/name", "was not pulled; `sfumato models pull owner/name` downloads it, or the operator says"),
    ],
)
def test_what_cannot_be_added_is_one_sentence(desk, tmp_path, cache, text, sentence):
    for name in ("x.txt", "x.ckpt", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"\x80 no weights")
    with pytest.raises(SfumatoError) as caught:
        models_page.take(desk, text.replace("TMP", str(tmp_path)), "", "")
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert registry.read_registry() == {}


@pytest.mark.parametrize("others", [{"require_token": True}, {"allow_origin": ("https://studio.example",)}])
def test_where_others_come_in_only_open_folders_can_be_added(tiny, tmp_path, cache, others):
    """Who may make pictures may not look around on the machine."""
    (tmp_path / "open").mkdir()
    inside = shutil.copytree(tiny, tmp_path / "open" / "tiny")
    (tmp_path / "open" / "out.safetensors").symlink_to(lora(tmp_path / "secret.safetensors"))
    serving = Serving(**others, allow_path=(str(tmp_path / "open"),))
    desk = Desk(serving, tmp_path / "home", TASKS)
    for text in (str(tiny), "out.safetensors", "../secret.safetensors", "/etc/passwd", "~/x"):
        with pytest.raises(SfumatoError, match=r"--allow-path|is no name of a file"):
            models_page.take(desk, text, "", "")
    assert models_page.take(desk, "tiny", "", "").entry.place == str(inside)
    assert str(inside) not in models_page.models(desk), "where things lie is nobody's business"


def test_a_model_of_the_hub_is_pinned_and_downloaded_only_where_that_is_allowed(
    tiny, tmp_path, cache, monkeypatch
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    closed, open_ = (Desk(Serving(downloads=on), tmp_path / "home", TASKS) for on in (False, True))
    with pytest.raises(SfumatoError, match="was not pulled"):
        models_page.take(closed, "someone/tiny", "", "")
    wanted, refused = (models_page.to_download(desk, "someone/tiny") for desk in (open_, closed))
    assert wanted and not refused
    with hub_server.serving(tiny) as (endpoint, asked):
        urls = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", urls)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        place = f"someone/tiny@{hub_server.COMMIT}"
        assert models_page.take(open_, "someone/tiny", "", "").entry.place == place and asked
        asked.clear()
        assert models_page.take(closed, "someone/tiny", "again", "").name == "again" and not asked
    assert not models_page.to_download(open_, "someone/tiny") and not models_page.to_download(open_, "")
