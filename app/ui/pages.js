"use strict";
// What the pages need of the browser itself: keys, the theme, comparisons, and changes without flicker.
window.sfumato = (() => {
  const visible = element => element && element.offsetParent !== null;
  const pick = selector => [...document.querySelectorAll(selector)].find(visible);

  // Put new HTML in place, but keep nodes that did not change, so that pictures don't flash and focus stays.
  // What belongs to another job is never the same node: a click that has begun on one must not end on the other.
  const same = (a, b) => a.isEqualNode(b);
  const key = node => node.dataset.key || node.dataset.id || "";
  const fit = (old, now) => {
    const before = [...old.childNodes], after = [...now.childNodes];
    after.forEach((node, i) => {
      const there = before[i];
      if (!there) old.appendChild(node);
      else if (same(there, node)) return;
      else if (there.nodeType === 1 && node.nodeType === 1 && there.tagName === node.tagName && key(there) === key(node)) {
        if (there.dataset.keep && there.tagName === "IMG") return swap(there, node);
        for (const {name} of [...there.attributes]) if (!node.hasAttribute(name)) there.removeAttribute(name);
        for (const {name, value} of [...node.attributes]) if (there.getAttribute(name) !== value) there.setAttribute(name, value);
        fit(there, node);
      } else there.replaceWith(node);
    });
    before.slice(after.length).forEach(node => node.remove());
  };
  // A new preview takes the old one's place once it is there.
  const swap = (there, node) => {
    const image = new Image();
    image.onload = () => { there.src = node.src; };
    image.src = node.src;
  };
  const morph = (element, html) => {
    const now = document.createElement("template");
    now.innerHTML = html;
    fit(element, now.content);
  };

  document.addEventListener("keydown", event => {
    if (event.isComposing) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      const button = pick(".sf-generate");
      if (button) { event.preventDefault(); event.stopPropagation(); document.activeElement?.blur(); setTimeout(() => button.click(), 60); }
    } else if (event.key === "Escape" && !event.defaultPrevented) {
      const button = pick(".sf-stage [data-do=cancel]");
      if (button) { event.preventDefault(); button.click(); }
    }
  }, true);

  document.addEventListener("focusin", event => {  // a phone's keyboard of digits
    if (event.target.closest(".sf-number")) event.target.inputMode = "decimal";
  });

  document.addEventListener("input", event => {
    if (event.target.matches(".sf-compare input")) {
      event.target.closest(".sf-compare").style.setProperty("--at", `${event.target.value}%`);
    }
  });

  // What an editor of pictures holds is kept once a stroke, or a press of one of its buttons, is done; a picture that is
  // given takes a while until it is there.
  const waiting = new Map();
  const keep = (event, ...after) => {
    const editor = event.target.closest?.(".sf-canvas");
    if (!editor) return;
    (waiting.get(editor.id) || []).forEach(clearTimeout);
    const press = () => document.getElementById(`${editor.id}-keep`)?.click();
    waiting.set(editor.id, after.map(time => setTimeout(press, time)));
  };
  document.addEventListener("pointerup", event => keep(event, 400, 2500), true);
  for (const given of ["change", "drop", "paste"]) document.addEventListener(given, event => keep(event, 800, 3000, 8000), true);

  const made = new WeakSet();
  setInterval(() => {
    for (const canvas of document.querySelectorAll(".sf-canvas canvas")) {
      if (made.has(canvas)) continue;
      made.add(canvas);
      setTimeout(() => document.getElementById(`${canvas.closest(".sf-canvas")?.id}-show`)?.click(), 1500);
    }
  }, 500);

  // Gradio's editor sends all that it holds whenever anything of the page was asked for, changed or not. What the server
  // has already is not sent again.
  const plain = window.fetch.bind(window), sent = new Map(), REMEMBERED = 60;
  const print = bytes => {  // 53 bits, beside the length
    let a = 0xdeadbeef, b = 0x41c6ce57;
    for (const byte of bytes) { a = Math.imul(a ^ byte, 2654435761); b = Math.imul(b ^ byte, 1597334677); }
    return `${bytes.length} ${a >>> 0} ${b >>> 0}`;
  };
  window.fetch = async (where, how) => {
    const files = how?.body instanceof FormData ? how.body.getAll("files") : [];
    if (files.length !== 1 || !/\/gradio_api\/upload$/.test(String(where))) return plain(where, how);
    const key = `${files[0].name} ${print(new Uint8Array(await files[0].arrayBuffer()))}`;
    if (!sent.has(key)) {
      if (sent.size >= REMEMBERED) sent.delete(sent.keys().next().value);
      sent.set(key, plain(where, how));
    }
    const answer = await sent.get(key).catch(error => { sent.delete(key); throw error; });
    if (!answer.ok) sent.delete(key);
    return answer.clone();
  };

  const paint = theme => document.body.classList.toggle("dark", theme === "dark");
  const chosen = () => localStorage.getItem("sfumato-theme");
  const theme = () => {
    const now = document.body.classList.contains("dark") ? "light" : "dark";
    localStorage.setItem("sfumato-theme", now);
    paint(now);
  };
  document.addEventListener("DOMContentLoaded", () => {
    document.documentElement.lang = "en";
    const stop = Date.now() + 5000;  // Gradio sets the system's theme when it starts
    const keep = () => { if (chosen()) paint(chosen()); if (Date.now() < stop) setTimeout(keep, 200); };
    keep();
  });
  document.addEventListener("click", event => {
    if (event.target.closest(".sf-theme")) theme();
  });
  return {morph};
})();
