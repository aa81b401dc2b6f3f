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
