"use strict";
// `#L120-L134` marks these lines, on whichever page of them they are; a number with Shift goes on from the last one.
(() => {
  const list = document.querySelector(".numbered");
  if (!list) return;
  list.classList.add("scripted");
  const read = () => {
    const found = /^#L(\d{1,6})(?:-L(\d{1,6}))?$/.exec(location.hash);
    return found && [Number(found[1]), Number(found[2] || found[1])].sort((a, b) => a - b);
  };
  const mark = () => {
    const ends = read();
    if (!ends) return;
    const first = document.getElementById(`L${ends[0]}`);
    if (!first) {
      const asked = new URLSearchParams(location.search).has("lines");  // and is not there
      if (!asked && ends[0] <= Number(list.dataset.most))
        location.replace(`${list.dataset.here}?lines=${ends[0]}-${ends[1]}${location.hash}`);
      return;
    }
    for (const line of list.querySelectorAll(".marked")) line.classList.remove("marked");
    for (let line = first; line && Number(line.id.slice(1)) <= ends[1]; line = line.nextElementSibling) line.classList.add("marked");
    const { top, bottom } = first.getBoundingClientRect();
    if (top < 0 || bottom > innerHeight) first.scrollIntoView({ block: "center" });
  };
  list.addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();  // a browser would scroll the line that was chosen to the top
    const number = Number(link.hash.slice(2));
    const [from] = (event.shiftKey && read()) || [number];
    const [low, high] = [Math.min(from, number), Math.max(from, number)];
    history.pushState(null, "", low === high ? `#L${low}` : `#L${low}-L${high}`);
    mark();
  });
  addEventListener("hashchange", mark);
  addEventListener("popstate", mark);
  mark();
})();
