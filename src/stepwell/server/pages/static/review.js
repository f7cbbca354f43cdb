"use strict";
// Verdicts by key, before the page's own keys: none with a modifier, in a field, or while a text is composed.
(() => {
  const form = document.querySelector(".review form");
  if (!form) return;
  let sent = false;
  form.addEventListener("submit", (event) => {
    if (sent) event.preventDefault();
    sent = true;
  });
  addEventListener("pageshow", () => { sent = false; });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.target.closest("input, textarea, select, [contenteditable]")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const pressed = form.querySelector(`[data-press="${CSS.escape(event.key)}"]`);
    if (!pressed) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (pressed.matches("textarea")) pressed.focus();
    else pressed.click();
  }, true);
})();
