"""The pages as a whole: a tab per task, the others beside them, and the clock that keeps what is seen true.

All that is shown of jobs is read from the store, so a page that was closed or loaded anew sees the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from ..server.desk import Desk
from .form import SECRET, begin
from .gallery_page import comparison, details, found, gallery
from .grid_page import grid
from .kept import keep_pictures
from .models_tab import ModelsTab
from .other_tabs import (
    Others,
    build_comparison,
    build_gallery,
    build_grid,
    build_queue,
    build_reader,
)
from .other_tabs import begin as others_begin
from .panels import Deed, deed_of, fault, panel
from .queue_page import queue, steer
from .recalled import Recalled, from_file, from_kept
from .stage import Stage
from .task_tab import QUIET, REFUSALS, Tab, build_tab, own, told

PACE = 1.0
"""Seconds between two looks."""
HEAD = """<div class="sf-head"><h1>Sfumato</h1><p>Ctrl+Enter makes it, Esc cancels</p>
<button type="button" class="sf-theme" aria-label="Dark or light">Dark / light</button></div>"""


class Studio:
    """What the events of the pages need to know."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.tabs: dict[str, Tab] = {}
        self.others = Others()
        self.frame: Any = None
        self.mine: Any = None
        self.seen: Any = None
        self.said: Any = None
        self.stage = Stage(desk, ())

    def build(self) -> Any:
        with gr.Blocks(
            title="Sfumato", analytics_enabled=False, fill_width=True, delete_cache=(3600, 7 * 86400)
        ) as page:
            gr.HTML(HEAD, js_on_load=None, apply_default_css=False)
            self.mine = gr.BrowserState({}, storage_key="sfumato-jobs", secret=SECRET)
            self.seen = gr.State({})
            self.said = panel("", "said")
            forms = {name: begin(task) for name, task in self.desk.tasks.items()}
            others_begin(self.others)
            with gr.Tabs(elem_id="tabs") as self.frame:
                for name, form in forms.items():
                    with gr.Tab(name.capitalize(), id=name):
                        self.tabs[name] = build_tab(form, self.desk, self.mine)
                        keep_pictures(form, self.desk)
                with gr.Tab("Queue", id="queue"):
                    build_queue(self.others)
                with gr.Tab("Gallery", id="gallery"):
                    build_gallery(self.others, self.desk)
                with gr.Tab("Compare", id="compare"):
                    build_comparison(self.others)
                with gr.Tab("Grid", id="grid"):
                    build_grid(self.others, self.desk, forms)
                with gr.Tab("Read a picture", id="read"):
                    build_reader(self.others, self.desk)
                with gr.Tab("Models", id="models"):
                    models = ModelsTab(self.desk, forms.values())
            page.load(models.fresh, None, models.shown, queue=False, **QUIET)
            receivers = tuple(name for name, form in forms.items() if form.pictured)
            self.stage = Stage(self.desk, receivers)
            self._listen(page)
        page.queue(default_concurrency_limit=8, max_size=200)
        return page

    def _listen(self, page: Any) -> None:
        others, forms = self.others, [tab.form for tab in self.tabs.values()]
        watched = [self.mine, others.look, others.pair, others.grid_held, self.seen]
        shown = [*(part for tab in self.tabs.values() for part in tab.panels), others.queue, others.gallery]
        shown += [others.compared, others.grid, self.seen]
        look = {"inputs": watched, "outputs": shown, "queue": False, **QUIET}
        gr.Timer(PACE).tick(self.look, **look)
        changes = [others.look.change, self.mine.change, others.pair.change, others.grid_held.change]
        gr.on(changes, self.look, **look)
        drafts = [state for form in forms for state in (form.draft, *form.kept.values())]
        controls = [control for form in forms for control in form.controls.values()]
        page.load(self.drafts, drafts, controls, queue=False, **QUIET).then(self.look, **look)
        parts = [part for form in forms for part in form.parts]
        outputs = [self.frame, self.said, others.pair, others.details, *others.codes, *parts]
        inputs = [others.pair, *(form.epoch for form in forms)]
        sources = [*(part for tab in self.tabs.values() for part in (tab.status, tab.picture, tab.film))]
        sources += [others.gallery, others.compared, others.queue]
        for source in sources:
            source.click(self._clicked(), inputs, outputs, **QUIET).then(self.look, **look)
        others.use.click(self._used(), [others.file, *inputs], outputs, **QUIET)

    def look(self, mine: Any, look: Any, pair: Any, held: Any, seen: dict[str, int]) -> list[Any]:
        """What is new since the last look of this page; the rest is left as it is."""
        desk, stage, now = self.desk, self.stage, dict[str, str]()
        mark = int(desk.store.db.execute("SELECT COALESCE(MAX(id), 0) FROM events").fetchone()[0])
        for name in self.tabs:
            job = stage.current(name, own(mine, name))
            now[f"{name}-status"] = str(stage.status(job))
            now[f"{name}-picture"] = str(stage.picture(job))
            now[f"{name}-film"] = str(stage.film(name, job)) if mark != seen.get("mark") else ""
        now["queue"] = str(queue(desk, stage))
        key = hash((mark, look))
        now["gallery"] = str(gallery(desk, look, stage.receivers)[0]) if key != seen.get("look") else ""
        a, b = pair if isinstance(pair, list) and len(pair) == 2 else ("", "")
        now["compared"] = str(comparison(desk, str(a), str(b)))
        now["grid"] = str(grid(desk, held if isinstance(held, dict) else None))
        fresh = {name: hash(text) for name, text in now.items()}
        stale = {f"{name}-film" for name in self.tabs} if mark == seen.get("mark") else set()
        stale |= {"gallery"} if key == seen.get("look") else set()
        fresh |= {name: seen.get(name, 0) for name in stale}
        updates = [gr.skip() if seen.get(name) == fresh[name] else text for name, text in now.items()]
        after = {**fresh, "mark": mark, "look": key}
        return [*updates, gr.skip() if after == seen else after]

    def drafts(self, *held: Any) -> list[Any]:
        """The forms as this browser left them."""
        updates, at = list[Any](), 0
        for tab in self.tabs.values():
            draft, *kept = held[at : at + 1 + len(tab.form.kept)]
            updates += tab.form.redrawn(draft, kept, self.desk)
            at += 1 + len(kept)
        return updates

    def _clicked(self) -> Callable[..., list[Any]]:
        def clicked(event: gr.EventData, pair: Any, *epochs: Any) -> list[Any]:
            return self.act(deed_of(event), pair, epochs)

        return clicked

    def _used(self) -> Callable[..., list[Any]]:
        def used(path: str | None, pair: Any, *epochs: Any) -> list[Any]:
            if not path:
                return self._answer(epochs, said="file: is needed; drop a picture first")
            try:
                return self._answer(epochs, fill=from_file(Path(path), self.desk))
            except REFUSALS as error:
                return self._answer(epochs, said=told(error).replace(path, Path(path).name))

        return used

    def act(self, deed: Deed, pair: Any, epochs: tuple[Any, ...]) -> list[Any]:
        """What a button below a result, or in the queue, does."""
        a, b = pair if isinstance(pair, list) and len(pair) == 2 else ("", "")
        kept = found(self.desk, deed.id) if len(deed.id) == 64 else None
        try:
            match deed.deed:
                case "a" | "b" if kept is not None:
                    chosen = [deed.id, b] if deed.deed == "a" else [a, deed.id]
                    return self._answer(epochs, pair=chosen, tab="compare" if all(chosen) else None)
                case "swap":
                    return self._answer(epochs, pair=[b, a])
                case "use" if kept is not None:
                    return self._answer(epochs, fill=from_kept(kept, self.desk))
                case "send" if kept is not None and deed.to in self.tabs:
                    recalled = from_kept(kept, self.desk)
                    words = {k: v for k, v in recalled.values.items() if k in ("prompt", "negative", "model")}
                    return self._answer(epochs, fill=Recalled(deed.to, {**words, "image": deed.id}))
                case "details" if kept is not None:
                    return self._answer(epochs, details=deed.id, tab="gallery")
            return self._answer(epochs, said=steer(self.desk, deed))
        except REFUSALS as error:
            return self._answer(epochs, said=told(error))

    def _answer(
        self,
        epochs: tuple[Any, ...],
        *,
        tab: str | None = None,
        said: str = "",
        pair: list[str] | None = None,
        details: str = "",
        fill: Recalled | None = None,
    ) -> list[Any]:
        """Updates of all that a click may change."""
        tab = fill.task if fill is not None else tab
        updates = [gr.skip() if tab is None else gr.update(selected=tab)]
        updates += [str(fault(said)) if said else "", gr.skip() if pair is None else pair]
        updates += _details(self.desk, details)
        for (name, one), epoch in zip(self.tabs.items(), epochs, strict=True):
            if fill is not None and name == fill.task:
                values = {k: v for k, v in fill.values.items() if k in one.form.task.request.model_fields}
                updates += one.form.filled(values, self.desk, epoch=int(epoch or 0))
            else:
                updates += [gr.skip()] * len(one.form.parts)
        return updates


def _details(desk: Desk, hash: str) -> list[Any]:
    if not hash:
        return [gr.skip()] * 4
    shown, spelled = details(desk, hash)
    return [str(shown), *(gr.update(value=text, visible=bool(text)) for text in spelled)]


def studio(desk: Desk) -> Any:
    """The page, as Gradio's Blocks."""
    return Studio(desk).build()
