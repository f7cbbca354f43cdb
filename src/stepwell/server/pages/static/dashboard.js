"use strict";
// What a bar says is shown below its chart while it is pointed at or has the focus; arrows go from bar to bar.
for (const chart of document.querySelectorAll(".chart")) {
  const says = chart.querySelector("output");
  const bars = [...chart.querySelectorAll("svg a")];
  const tell = (event) => {
    const bar = event.target.closest("a");
    if (bar) says.textContent = bar.dataset.says;
  };
  const svg = chart.querySelector("svg");
  if (!svg) continue; // nothing was reported
  svg.addEventListener("pointerover", tell);
  svg.addEventListener("focusin", tell);
  svg.addEventListener("pointerleave", () => { says.textContent = ""; });
  svg.addEventListener("focusout", () => { says.textContent = ""; });
  bars.forEach((bar, at) => { bar.tabIndex = at === bars.length - 1 ? 0 : -1; }); // one stop of the Tab key a chart
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const at = bars.indexOf(document.activeElement);
    if (!step || at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const next = bars[at + step];
    if (next) {
      event.preventDefault();
      bars[at].tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    }
  });
}
