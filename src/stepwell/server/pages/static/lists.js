"use strict";
(() => {
  const main = document.getElementById("main");
  const field = document.getElementById("q");
  const links = () => [...document.querySelectorAll(".row-link")];

  // -- keys: never with a modifier, in a field, or while a character is being composed

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.target.closest("input, textarea, select, [contenteditable]")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === "/" && field) {
      event.preventDefault();
      field.focus();
      field.select();
    } else if (event.key === "j" || event.key === "k") {
      const rows = links();
      const row = document.activeElement.closest && document.activeElement.closest("tr");
      const at = rows.findIndex((link) => link.closest("tr") === row);
      const next = rows[event.key === "j" ? at + 1 : Math.max(at - 1, 0)];
      if (next) {
        event.preventDefault();
        next.focus();
      }
    }
  });

  // -- a page that is being fetched says so

  document.addEventListener("submit", () => main.setAttribute("aria-busy", "true"));
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href]");
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey && event.button === 0 && !link.download) {
      main.setAttribute("aria-busy", "true");
    }
  });
  addEventListener("pageshow", () => main.removeAttribute("aria-busy"));

  // -- a command line is copied; where there is no clipboard (plain http), it is selected

  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const text = button.previousElementSibling;
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(text);
        button.textContent = "Selected: copy it with Ctrl+C";
      }
    });
  }

  // -- what comes in while the list is read: told, never put in

  const news = document.querySelector("[data-live]");
  if (!news || !window.EventSource) return;
  const [link, lost] = news.children;
  const shown = new Set([...document.querySelectorAll("[data-id]")].map((row) => row.dataset.id));
  const fresh = new Set();
  const changed = new Set();
  let source = null;
  let address = news.dataset.live;

  function tell() {
    const parts = [];
    if (fresh.size) parts.push(`${fresh.size.toLocaleString("en")} new`);
    if (changed.size) parts.push(`${changed.size.toLocaleString("en")} changed`);
    link.textContent = `${parts.join(", ")}: show`;
    link.hidden = !parts.length;
  }

  function connect() {
    if (source) return;
    source = new EventSource(address);
    source.onopen = () => { lost.hidden = true; };
    source.onerror = () => { lost.hidden = false; };
    source.onmessage = (event) => {
      for (const id of JSON.parse(event.data)) {
        if (!shown.has(id)) {
          fresh.add(id);
        } else {
          changed.add(id);
          const row = document.querySelector(`[data-id="${CSS.escape(id)}"]`);
          if (row) row.classList.add("changed");
        }
      }
      const place = new URL(address, location.href);
      place.searchParams.set("after", event.lastEventId);
      address = place.href;
      tell();
    };
  }

  function part() {
    if (source) source.close();
    source = null;
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? part() : connect()));
  addEventListener("pagehide", part);
  addEventListener("pageshow", () => { if (!document.hidden) connect(); });
})();
