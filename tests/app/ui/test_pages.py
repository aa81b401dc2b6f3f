"""The pages in a browser: what people do there, and what they must not come to harm by."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from sfumato.app.requests import GenerateRequest
from toy_task import SumRequest

pytestmark = pytest.mark.slow

LONG = 10**8
HOSTILE = '<img src=x onerror="window.harm=1"> {{value}} ${window.harm=1} "quoted"'
SMALL = {"width": 64, "height": 64, "steps": 2, "model": "tiny-sd"}


def ask_small(visit, prompt: str) -> None:
    for name, value in SMALL.items():
        visit.write(f"generate-{name}", str(value))
    visit.write("generate-prompt", prompt)


def made(site, wait_until, tiny, prompt: str) -> tuple[int, str]:
    """A finished picture and the id of its file."""
    store = site.store
    id = store.submit(GenerateRequest(prompt=prompt, **{**SMALL, "model": str(tiny)}, seed=7))
    wait_until(lambda: store.get(id).state == "completed")
    return id, next(kept.hash for kept in store.artifacts(id) if kept.media == "image/png")


def test_a_picture_is_made_and_nothing_is_fetched_from_elsewhere(site, visit):
    """By keys alone; what the prompt says is shown as it was written and does nothing."""
    seen = visit()
    ask_small(seen, HOSTILE)
    seen.page.keyboard.press("Control+Enter")
    seen.state("generate", "completed")
    image = seen.page.locator("#generate-picture img").first
    image.wait_for()
    assert image.get_attribute("alt") == HOSTILE
    assert seen.page.evaluate("window.harm") is None and not seen.faults
    job = site.store.history(task="generate", limit=1)[0]
    request = site.store.request(job.id)
    assert request["prompt"] == HOSTILE and request["steps"] == 2 and request["width"] == 64
    seen.tab("Gallery")
    seen.page.locator("#gallery figure", has_text="quoted").first.wait_for()
    seen.page.locator("#gallery [data-do=details]").first.click()
    seen.page.locator("#details pre").first.wait_for()
    seen.tab("Queue")
    assert seen.page.evaluate("window.harm") is None and not seen.faults
    hosts = {urlsplit(url).netloc for url in seen.asked if url.startswith(("http", "ws"))}
    assert hosts == {urlsplit(site.url).netloc}


def test_a_wrong_input_is_one_clear_sentence(site, visit):
    seen = visit()
    before = len(site.store.history(limit=1000))
    ask_small(seen, "a red cube")
    seen.write("generate-steps", "0")
    seen.page.click("#generate-run")
    told = seen.page.locator("#generate-said [role=alert]")
    told.wait_for()
    assert told.inner_text().strip() == "steps: '0' must be at least 1"
    seen.write("generate-steps", "<b>x</b>")
    seen.page.click("#generate-run")
    seen.page.locator("#generate-said [role=alert]", has_text="<b>x</b>").wait_for()
    assert len(site.store.history(limit=1000)) == before


def test_a_task_is_a_tab_with_nothing_written_for_it(site, visit):
    """The toy task has a request and a function, and no more."""
    seen = visit()
    seen.tab("Sum")
    assert seen.page.get_by_label("Steps", exact=True).locator("visible=true").count() == 1
    seen.write("sum-prompt", "seven")
    seen.write("sum-steps", "7")
    seen.write("sum-seed", "1")
    seen.page.click("#sum-run")
    seen.state("sum", "completed")
    seen.page.locator("#sum-picture .sf-file", has_text="decode.txt").wait_for()
    job = site.store.history(task="sum", limit=1)[0]
    assert site.store.request(job.id)["steps"] == 7 and job.summary == "seven"


def test_escape_cancels_and_a_cancelled_job_can_be_tried_again(site, visit, wait_until):
    seen = visit()
    seen.tab("Sum")
    seen.write("sum-steps", str(LONG))
    seen.page.click("#sum-run")
    seen.state("sum", "running")
    id = site.store.history(task="sum", limit=1)[0].id
    assert seen.page.locator("#sum-status progress").get_attribute("aria-label") == "Progress"
    seen.page.keyboard.press("Escape")
    wait_until(lambda: site.store.get(id).state == "cancelled")
    seen.state("sum", "cancelled")
    seen.page.click("#sum-status [data-do=retry]")
    wait_until(lambda: site.store.get(id).state == "running")
    seen.state("sum", "running")
    seen.page.click("#sum-status [data-do=cancel]")
    wait_until(lambda: site.store.get(id).state == "cancelled")


def test_a_page_that_is_loaded_anew_finds_its_job_and_what_was_typed(site, visit, wait_until):
    seen = visit()
    seen.write("generate-prompt", "half a thought")
    seen.write("generate-seed", "9007199254740993")
    seen.tab("Sum")
    seen.write("sum-prompt", "long")
    seen.write("sum-steps", str(LONG))
    seen.page.click("#sum-run")
    seen.state("sum", "running")
    id = site.store.history(task="sum", limit=1)[0].id
    seen.page.reload()
    seen.page.wait_for_selector("#generate-run")
    wait_until(lambda: seen.read("generate-prompt") == "half a thought")
    assert seen.read("generate-seed") == "9007199254740993", "seeds above 2**53 stay exact"
    seen.tab("Sum")
    assert seen.state("sum", "running").get_attribute("data-job") == str(id)
    seen.page.keyboard.press("Escape")
    wait_until(lambda: site.store.get(id).state == "cancelled")


def test_settings_come_back_from_a_dropped_picture(site, visit, tiny, wait_until):
    id, hash = made(site, wait_until, tiny, "a blue cone, at night")
    kept = next(kept for kept in site.store.artifacts(id) if kept.hash == hash)
    file = site.home / "artifacts" / hash[:2] / f"{hash}{kept.suffix}"
    seen = visit()
    seen.tab("Read a picture")
    seen.page.set_input_files("#reader input[type=file]", str(file))
    seen.page.locator("#read pre", has_text="a blue cone").wait_for()
    seen.page.click("#reader-use")
    wait_until(lambda: seen.read("generate-prompt") == "a blue cone, at night")
    assert [seen.read(f"generate-{name}") for name in ("steps", "width", "seed")] == ["2", "64", "7"]
    assert seen.page.locator("#generate-run").is_visible()


def test_a_picture_without_metadata_says_so(visit, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "plain.png")
    seen = visit()
    seen.tab("Read a picture")
    seen.page.set_input_files("#reader input[type=file]", str(tmp_path / "plain.png"))
    seen.page.locator("#read [role=alert]", has_text="says nothing about how it was made").wait_for()


def test_a_mask_is_drawn_on_the_picture(site, visit, tmp_path, wait_until):
    Image.linear_gradient("L").convert("RGB").resize((96, 64)).save(tmp_path / "start.png")
    seen = visit(height=1600)
    ask_small(seen, "a red cube")
    seen.open("Picture and mask")
    canvas = seen.page.locator("#generate-image canvas").first
    canvas.wait_for()
    hint = seen.page.locator("#generate-image", has_text="Upload an image")

    def given() -> bool:
        """An editor that is still being made lets a file fall."""
        seen.page.set_input_files("#generate-image input[type=file]", str(tmp_path / "start.png"))
        seen.page.wait_for_timeout(3000)
        return hint.count() == 0

    wait_until(given)
    wait_until(lambda: draw(seen.page, canvas))
    wait_until(lambda: len(list((site.home / "inputs").glob("*"))) >= 2)
    seen.page.wait_for_timeout(3000)
    seen.page.reload()
    seen.page.wait_for_selector("#generate-run")
    wait_until(lambda: seen.read("generate-prompt") == "a red cube")
    seen.open("Picture and mask")
    canvas.wait_for()
    wait_until(lambda: orange(canvas))  # what was not sent is not lost
    before = {job.id for job in site.store.history(limit=1000)}
    seen.page.click("#generate-run")
    (id,) = wait_until(lambda: {job.id for job in site.store.history(limit=1000)} - before)
    request = site.store.request(id)
    with Image.open(request["image"]) as picture, Image.open(request["mask"]) as mask:
        assert picture.size == mask.size == (96, 64)
        left, top, right, bottom = mask.getbbox()
        assert mask.getpixel(((left + right) // 2, (top + bottom) // 2)) == 255
        assert 0 < (right - left) * (bottom - top) < 96 * 64 / 2 and set(mask.tobytes()) == {0, 255}
    wait_until(lambda: site.store.get(id).state in ("completed", "failed"))


def draw(page, canvas) -> bool:
    """A stroke over the middle; whether it is seen, as the editor may not be ready yet."""
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 20, y)
    page.mouse.down()
    for i in range(12):
        page.mouse.move(x - 20 + 4 * i, y)
    page.mouse.up()
    page.wait_for_timeout(700)
    return orange(canvas)


def orange(canvas) -> bool:
    """Whether some of the mask's paint is seen."""
    with Image.open(io.BytesIO(canvas.screenshot())) as seen:
        red, green, blue = (band.astype(int) for band in np.moveaxis(np.asarray(seen.convert("RGB")), 2, 0))
    return bool(((red - blue > 60) & (red > green)).sum() > 200)


def test_a_phone_never_scrolls_sideways(site, visit, tiny, wait_until):
    made(site, wait_until, tiny, "a" * 180)
    seen = visit(390, 844, has_touch=True, color_scheme="light")
    for name in (
        "Generate",
        "World",
        "Sum",
        "Queue",
        "Gallery",
        "Compare",
        "Grid",
        "Read a picture",
        "Models",
    ):
        seen.tab(name)
        seen.page.wait_for_timeout(150)
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390, name


def test_every_control_has_a_name_and_pictures_have_words(visit):
    """As screen readers find them."""
    seen = visit()
    for name in ("Generate", "Sum", "Queue", "Gallery", "Grid", "Models"):
        seen.tab(name)
        unnamed = seen.page.evaluate(
            """() => [...document.querySelectorAll('input, textarea, select, button')]
            .filter(e => e.offsetParent && !e.closest('.sf-canvas') && e.type !== 'file')
            .filter(e => !(e.ariaLabel || e.title || e.innerText.trim() || e.labels?.length))
            .map(e => e.outerHTML.slice(0, 200))"""
        )
        assert not unnamed, (name, unnamed)
    assert seen.page.locator("img:not([alt])").count() == 0
    assert seen.page.evaluate("document.documentElement.lang") == "en"


def test_the_queue_is_steered(site, visit, wait_until):
    seen = visit()
    store = site.store
    ids = [store.submit(SumRequest(prompt=f"number {i}", steps=LONG)) for i in range(3)]
    wait_until(lambda: store.get(ids[0]).state == "running")
    seen.tab("Queue")

    def act(deed: str, id: int, done) -> None:
        """A row that moves while it is clicked swallows the click."""
        for _ in range(5):
            seen.page.locator(f"#queue [data-do={deed}][data-id='{id}']").first.click()
            with contextlib.suppress(AssertionError):
                return wait_until(done, 5)
        raise AssertionError((deed, id))

    act("pause", ids[1], lambda: store.get(ids[1]).held)
    act("resume", ids[1], lambda: not store.get(ids[1]).held)
    act("first", ids[2], lambda: [job.id for job in store.queue()] == [ids[0], ids[2], ids[1]])
    act("up", ids[1], lambda: [job.id for job in store.queue()] == ids)
    act("last", ids[1], lambda: [job.id for job in store.queue()] == [ids[0], ids[2], ids[1]])
    for id in (ids[1], ids[2], ids[0]):
        act("cancel", id, lambda id=id: store.get(id).state == "cancelled")
    act("retry", ids[0], lambda: store.get(ids[0]).state == "running")
    act("cancel", ids[0], lambda: store.get(ids[0]).state == "cancelled")


def test_results_are_found_compared_and_sent_on(site, visit, tiny, wait_until):
    _, first = made(site, wait_until, tiny, "a walnut table")
    _, second = made(site, wait_until, tiny, "a walnut chair")
    seen = visit()
    seen.tab("Gallery")
    seen.write("search", "walnut")
    wait_until(lambda: seen.page.locator("#gallery figure").count() == 2)
    seen.page.locator(f"#gallery [data-do=a][data-id='{first}']").click()
    seen.page.wait_for_timeout(800)
    seen.page.locator(f"#gallery [data-do=b][data-id='{second}']").click()
    slider = seen.page.locator(".sf-compare input")
    slider.wait_for()
    slider.fill("20")
    assert seen.page.locator(".sf-compare").evaluate("e => e.style.getPropertyValue('--at')") == "20%"
    assert seen.page.locator(".sf-side figure").count() == 2
    seen.tab("Gallery")
    seen.page.locator(f"#gallery [data-do=details][data-id='{first}']").click()
    seen.page.locator("#details pre", has_text="a walnut table").first.wait_for()
    seen.page.locator(f"#gallery [data-do=send][data-id='{first}']").click()
    wait_until(lambda: seen.read("generate-prompt") == "a walnut table")
    seen.page.wait_for_timeout(1500)
    before = {job.id for job in site.store.history(limit=1000)}
    seen.page.click("#generate-run")
    (id,) = wait_until(lambda: {job.id for job in site.store.history(limit=1000)} - before)
    request = site.store.request(id)
    with Image.open(request["image"]) as sent, Image.open(artifact(site.home, first)) as made_first:
        assert sent.convert("RGB").tobytes() == made_first.convert("RGB").tobytes()
    wait_until(lambda: site.store.get(id).state in ("completed", "failed"))


def artifact(home: Path, hash: str) -> Path:
    return next((home / "artifacts" / hash[:2]).glob(f"{hash}*"))


def test_a_gallery_is_small_pictures_and_results_are_deleted_after_a_question(site, visit, tiny, wait_until):
    id, hash = made(site, wait_until, tiny, "an obsidian bowl")
    seen = visit()
    seen.tab("Gallery")
    seen.write("search", "obsidian")
    image = seen.page.locator("#gallery figure img")
    wait_until(lambda: image.count() == 1 and image.evaluate("e => e.complete && e.naturalWidth"))
    assert image.get_attribute("src") == f"/v1/artifacts/{hash}/thumbnail"
    assert (site.home / "thumbnails" / hash[:2] / f"{hash}.webp").is_file()
    asked: list[str] = []

    def answer(dialog) -> None:
        asked.append(dialog.message)
        dialog.accept() if len(asked) == 2 else dialog.dismiss()

    seen.page.on("dialog", answer)
    deletes = seen.page.locator(f"#gallery [data-do=delete][data-id='{id}']")
    deletes.click()
    seen.page.wait_for_timeout(500)
    assert site.store.get(id).state == "completed", "nothing happens on a no"
    deletes.click()
    wait_until(lambda: seen.page.locator("#gallery", has_text="No result has all these words").count() == 1)
    assert asked[0] == f"Delete job {id} and its result? This can't be undone."
    assert not site.store.history(["obsidian"]) and not artifacts(site.home, hash)
    assert not seen.faults


def artifacts(home: Path, hash: str) -> list[Path]:
    return [
        file for part in ("artifacts", "thumbnails") for file in (home / part / hash[:2]).glob(f"{hash}*")
    ]


def test_a_model_is_added_offered_and_removed(site, visit, tiny, wait_until):
    seen = visit()
    seen.tab("Models")
    seen.write("add-path", "/nothing/here.safetensors")
    seen.page.click("#add-run")
    seen.page.locator("#models-said [role=alert]", has_text="does not exist").wait_for()
    seen.write("add-path", str(tiny))
    seen.write("add-name", "my-tiny")
    seen.page.click("#add-run")
    seen.page.locator("#models-said [role=status]", has_text="my-tiny is added: sd, model, F32").wait_for()
    row = seen.page.locator("#models li", has_text="my-tiny")
    row.wait_for()
    seen.page.locator("#inspect input").click()
    seen.page.get_by_role("option", name="my-tiny").click()
    seen.page.locator("#about-model pre", has_text="StableDiffusionPipeline").wait_for()
    seen.tab("Generate")
    seen.page.locator("#generate-model input").click()
    seen.page.get_by_role("option", name="my-tiny").wait_for()
    seen.page.keyboard.press("Escape")
    seen.page.reload()
    seen.page.wait_for_selector("#generate-run")
    seen.tab("Models")
    row.wait_for()
    seen.page.on("dialog", lambda dialog: dialog.accept())
    row.locator("[data-do=forget]").click()
    seen.page.locator("#models-said", has_text="my-tiny is removed; its files are still there").wait_for()
    wait_until(lambda: row.count() == 0)
    assert tiny.exists() and not seen.faults


def test_a_grid_is_a_job_per_cell(site, visit, wait_until):
    seen = visit()
    seen.tab("Sum")
    seen.write("sum-prompt", "cells")
    seen.tab("Grid")
    seen.page.locator("#grid-task input").click()
    seen.page.get_by_role("option", name="sum").click()
    for axis, (field, values) in {"X": ("steps", "2, 3"), "Y": ("seed", "5; 6")}.items():
        seen.page.locator(f"#grid-{axis}-field input").click()
        seen.page.locator(f"#grid-{axis}-field, body").get_by_role("option", name=field).first.click()
        seen.write(f"grid-{axis}-values", values)
    seen.page.click("#grid-run")
    wait_until(lambda: seen.page.locator("#grid .sf-file").count() == 4)
    jobs = [site.store.request(job.id) for job in site.store.history(["cells"], limit=4)]
    assert {(one["steps"], one["seed"]) for one in jobs} == {(2, 5), (3, 5), (2, 6), (3, 6)}
    seen.page.reload()
    seen.page.wait_for_selector("#generate-run")
    seen.tab("Grid")
    wait_until(lambda: seen.page.locator("#grid .sf-file").count() == 4)


def test_a_form_is_spelled_for_the_other_entrances(visit):
    seen = visit()
    ask_small(seen, "a 'red' cube")
    seen.open("Copy as")
    seen.page.locator("button:visible", has_text="JSON").first.click()
    text = seen.page.locator("#generate-spelled .cm-content")
    seen.page.locator("#generate-spelled .cm-content", has_text="tiny-sd").wait_for()
    body = json.loads(text.inner_text())
    assert body["task"] == "generate" and body["request"] == {**SMALL, "prompt": "a 'red' cube"}


def test_techniques_bring_their_settings(site, visit, wait_until):
    seen = visit()
    ask_small(seen, "a red cube")
    seen.open("Techniques")
    seen.page.locator("#generate-techniques input").first.click()
    seen.page.get_by_role("option", name="cfg-rescale").click()
    seen.page.keyboard.press("Escape")
    seen.page.locator("#set-cfg-rescale-phi input").wait_for()
    seen.write("set-cfg-rescale-phi", "0.4")
    seen.page.wait_for_timeout(800)
    before = {job.id for job in site.store.history(limit=1000)}
    seen.page.click("#generate-run")
    (id,) = wait_until(lambda: {job.id for job in site.store.history(limit=1000)} - before)
    assert site.store.request(id)["techniques"] == [{"id": "cfg-rescale", "settings": {"phi": 0.4}}]
    wait_until(lambda: site.store.get(id).state == "completed")
