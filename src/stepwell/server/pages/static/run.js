"use strict";
// What a run's page can do by links, without loading the whole page again: the address always says what is shown.
(() => {
  const $ = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const run = () => $("#run");
  const panel = () => $("#panel");
  const rows = () => all("#rows .link");
  const current = () => $('#rows .link[aria-current="true"]');
  const narrow = matchMedia("(max-width: 900px)");
  let turn = 0; // what is asked for last wins

  // One tab stop, and what a tree is to those who hear it.
  function dress() {
    dispatchEvent(new Event("plots"));
    const list = $("#rows");
    if (!list) return;
    list.setAttribute("role", "tree");
    list.setAttribute("aria-label", "Steps");
    const chosen = current() || rows()[0];
    for (const item of list.children) item.setAttribute("role", "none");
    for (const twist of all(".twist", list)) {
      twist.setAttribute("aria-hidden", "true");
      if (twist.href) twist.tabIndex = -1;
    }
    for (const link of rows()) {
      link.setAttribute("role", "treeitem");
      link.setAttribute("aria-level", link.dataset.level || "1");
      if (link.dataset.open) link.setAttribute("aria-expanded", link.dataset.open);
      else if (link.dataset.group) link.setAttribute("aria-expanded", "false");
      link.setAttribute("aria-selected", link === chosen ? "true" : "false");
      link.tabIndex = link === chosen ? 0 : -1;
    }
  }

  function choose(link) {
    for (const other of rows()) {
      const mine = other === link;
      other.closest("li").classList.toggle("selected", mine);
      if (mine) other.setAttribute("aria-current", "true");
      else other.removeAttribute("aria-current");
      other.setAttribute("aria-selected", mine ? "true" : "false");
      other.tabIndex = mine ? 0 : -1;
    }
  }

  // The page scrolls as one: the panel begins where the reader is.
  function place() {
    const box = panel();
    if (!box || narrow.matches || !$(".split")) return;
    box.style.marginTop = "";
    box.classList.remove("stick");
    const top = $(".split").getBoundingClientRect().top;
    if (box.offsetHeight < innerHeight - 16) box.classList.add("stick");
    else if (top < 0) box.style.marginTop = `${Math.round(-top)}px`;
  }

  async function page(address) {
    const answer = await fetch(address, { headers: { Accept: "text/html" } });
    if (!answer.ok) throw new Error(String(answer.status));
    return answer.text();
  }

  async function select(id, address, { push = true, anchor = "", focus = false } = {}) {
    const mine = ++turn;
    const link = rows().find((each) => each.dataset.step === id);
    if (!link) return swap(address, { push, anchor });
    choose(link);
    if (focus) link.focus({ preventScroll: true });
    link.scrollIntoView({ block: "nearest" });
    const url = new URL(address, location.href);
    if (push) history.pushState({}, "", url);
    panel().classList.add("waiting");
    const query = new URLSearchParams(url.search);
    query.set("fragment", "true");
    query.set("run", run().dataset.run);
    const path = id.split("/").map(encodeURIComponent).join("/");
    try {
      const text = await page(`${run().dataset.panel}/${path}?${query}`);
      if (mine !== turn) return;
      panel().innerHTML = text;
    } catch {
      if (mine === turn) location.assign(url); // the page itself says what is wrong
      return;
    } finally {
      if (mine === turn) panel().classList.remove("waiting");
    }
    place();
    if (anchor) {
      const there = document.getElementById(anchor);
      if (there) there.scrollIntoView({ block: "center" });
    } else if (narrow.matches && !focus) panel().scrollIntoView();
  }

  // Another look at the same run: everything but the panel of the same step is put in the place of what is there.
  async function swap(address, { push = true, keep = false, anchor = "" } = {}) {
    const mine = ++turn;
    const url = new URL(address, location.href);
    let text;
    try {
      text = await page(url);
    } catch {
      location.assign(url);
      return;
    }
    if (mine !== turn) return;
    const fresh = new DOMParser().parseFromString(text, "text/html");
    const next = $("#run", fresh);
    if (!next) return void location.assign(url);
    const focused = document.activeElement && document.activeElement.closest ? document.activeElement : null;
    const row = focused && focused.closest("#rows li") ? focused.closest("li").id : null;
    const field = focused && focused.id === "q" ? [focused.selectionStart, focused.selectionEnd, focused.value] : null;
    const y = scrollY;
    if (push) history.pushState({}, "", url.searchParams.has("go") ? next.dataset.here : url);
    if (keep) {
      const held = panel();
      $("#panel", next).replaceWith(held);
    }
    run().replaceWith(document.adoptNode(next));
    document.title = fresh.title;
    dress();
    if (row) {
      const there = document.getElementById(row) || current()?.closest("li");
      if (there) $(".link", there)?.focus({ preventScroll: true });
    }
    if (field && $("#q")) {
      $("#q").value = field[2];
      $("#q").focus({ preventScroll: true });
      $("#q").setSelectionRange(field[0], field[1]);
    }
    scrollTo(0, y);
    if (!keep) {
      current()?.scrollIntoView({ block: "nearest" });
      place();
      if (anchor) document.getElementById(anchor)?.scrollIntoView({ block: "center" });
    }
    news.reset();
  }

  // What was chosen since the page was made stays chosen, but for links that lead elsewhere; what is folded with it
  // inside is chosen in its place.
  function target(link) {
    const url = new URL(link.href);
    const step = new URLSearchParams(location.search).get("step");
    if (!step || "leave" in link.dataset) return url.href;
    const row = link.matches(".twist") ? $(".link", link.closest("li")) : null;
    url.searchParams.set("step", row?.dataset.open === "true" && holds(row, current()) ? row.dataset.step : step);
    return url.href;
  }
  function holds(row, chosen) {
    const list = rows();
    const from = list.indexOf(row);
    const to = list.findIndex((each, at) => at > from && Number(each.dataset.level) <= Number(row.dataset.level));
    return list.slice(from + 1, to < 0 ? undefined : to).includes(chosen);
  }

  document.addEventListener("click", (event) => {
    if (event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const link = event.target.closest("a");
    if (!link) return;
    if (link.dataset.copy) {
      event.preventDefault();
      copy(link);
    } else if (link.classList.contains("fold")) {
      event.preventDefault();
      unfold(link);
    } else if (run() && link.dataset.step) {
      event.preventDefault();
      select(link.dataset.step, link.href.baseVal ?? link.href, { anchor: link.dataset.anchor || "", focus: link.matches("#rows .link") });
    } else if (run() && ("swap" in link.dataset || "look" in link.dataset)) {
      event.preventDefault();
      swap(target(link));
    }
  });

  addEventListener("popstate", () => {
    if (run()) swap(location.href, { push: false });
  });

  // Folded messages come in their place.
  async function unfold(link) {
    const url = new URL(link.href);
    url.searchParams.set("fragment", "true");
    link.setAttribute("aria-busy", "true");
    try {
      const box = document.createElement("div");
      box.className = "unfolded";
      box.innerHTML = await page(url);
      link.closest("p").after(box);
      link.closest("p").remove();
    } catch {
      location.assign(link.href);
    }
  }

  async function copy(link) {
    let text = new URL(link.href, location.href).href;
    if (link.dataset.copy === "text") {
      const answer = await fetch(link.href);
      if (!answer.ok) return void location.assign(link.href);
      text = await answer.text();
    }
    try {
      await navigator.clipboard.writeText(text); // there is none over plain http
      say(link, "copied");
    } catch {
      offer(text);
    }
  }

  function say(link, word) {
    const before = link.textContent;
    link.textContent = word;
    setTimeout(() => (link.textContent = before), 1200);
  }

  function offer(text) {
    $(".copy-box")?.remove();
    const box = document.createElement("div");
    box.className = "copy-box";
    box.setAttribute("role", "dialog");
    box.setAttribute("aria-label", "Copy");
    const area = document.createElement("textarea");
    area.readOnly = true;
    area.value = text;
    area.setAttribute("aria-label", "Text to copy");
    const close = document.createElement("button");
    close.textContent = "Close";
    close.addEventListener("click", () => box.remove());
    box.addEventListener("keydown", (event) => event.key === "Escape" && box.remove());
    box.append("Press Ctrl+C to copy.", area, close);
    document.body.append(box);
    area.focus();
    area.select();
  }

  // Keys: none with a modifier, in a field, or while a text is composed.
  function move(by) {
    const list = rows();
    const at = Math.max(list.findIndex((link) => link.tabIndex === 0), 0);
    const to = list[Math.min(Math.max(at + by, 0), list.length - 1)];
    if (!to) return;
    if (to.dataset.step) return select(to.dataset.step, to.href, { focus: true });
    else {
      for (const link of list) link.tabIndex = link === to ? 0 : -1;
      to.focus();
    }
  }
  const here = () => rows().find((link) => link.tabIndex === 0);
  function fold() {
    const link = here();
    if (!link) return;
    const twist = $("a.twist", link.closest("li")); // what is found is never folded
    if (link.dataset.open === "true" && twist) return swap(target(twist));
    const level = Number(link.dataset.level);
    const before = rows().slice(0, rows().indexOf(link)).reverse();
    const above = before.find((each) => each.dataset.step && Number(each.dataset.level) < level);
    if (above) return select(above.dataset.step, above.href, { focus: true });
  }
  function open() {
    const link = here();
    if (!link) return;
    if (link.dataset.open === "false" || link.dataset.group) return swap(target($(".twist", link.closest("li"))));
    if (link.dataset.open === "true") return move(1);
  }
  function nextBad() {
    const list = rows();
    const at = list.indexOf(here());
    const bad = (link) => "bad" in link.dataset && link.dataset.open !== "true";
    const to = list.slice(at + 1).find(bad) || list.find(bad);
    if (to) return select(to.dataset.step, to.href, { focus: true });
  }
  function nextView() {
    const tabs = all(".tabs a[data-swap]");
    const at = tabs.findIndex((tab) => tab.hasAttribute("aria-current"));
    if (tabs.length) return swap(target(tabs[(at + 1) % tabs.length]));
  }
  const keys = {
    j: () => move(1), k: () => move(-1), ArrowDown: () => move(1), ArrowUp: () => move(-1),
    h: fold, l: open, ArrowLeft: fold, ArrowRight: open,
    Home: () => move(-1e9), End: () => move(1e9),
    e: nextBad, t: nextView,
    c: () => copy($(".panel-nav [data-copy=link]")),
    "/": () => $("#q").focus(),
    "?": () => { const legend = $(".legend"); legend.open = !legend.open; legend.scrollIntoView({ block: "nearest" }); },
  };
  document.addEventListener("keydown", (event) => {
    if (!run() || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.keyCode === 229) return;
    if (event.target.closest("input, textarea, select, [contenteditable]")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const whole = $("#whole");
    if (event.key === "Escape" && whole && !event.defaultPrevented) return void swap(target(whole), { keep: true });
    const inTree = event.target.closest("#rows");
    if (event.key.length > 1 && !inTree) return;
    const link = keys[event.key] ? null : all("[data-key]").find((each) => each.dataset.key === event.key);
    if (!keys[event.key] && !link) return;
    event.preventDefault();
    // What depends on what is being loaded waits for it; walking does not.
    if (["j", "k", "/", "?", "ArrowDown", "ArrowUp"].includes(event.key)) keys[event.key]();
    else queue = queue.then(() => act(event.key));
  });
  let queue = Promise.resolve();
  function act(key) {
    if (keys[key]) return keys[key]();
    const link = all("[data-key]").find((each) => each.dataset.key === key);
    if (!link) return undefined;
    if (!link.dataset.step && !("swap" in link.dataset)) return void location.assign(link.href); // another run
    return link.dataset.step ? select(link.dataset.step, link.href, { focus: true }) : swap(target(link));
  }

  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (!run() || !form.matches(".find, .range")) return;
    event.preventDefault();
    const query = new URLSearchParams(new FormData(form));
    for (const [name, value] of [...query]) if (!value) query.delete(name);
    if (form.matches(".find")) query.delete("step");
    swap(`${form.action}?${query}`).then(() => form.matches(".find") && $('[data-key="n"]') && $("#q")?.blur());
  });

  // A stretch of the run's time that was taken above the rows: only what ran in it, and its totals.
  document.addEventListener("plot", (event) => {
    event.preventDefault();
    swap(event.detail, { keep: true });
  });

  // What comes while the run is written: told, never put under the reader's eyes.
  const news = (() => {
    let position = 0;
    let known = 0;
    let lost = false;
    let timer = 0;
    function reset() {
      if (!run()) return;
      position = Number(run().dataset.position);
      known = Number(run().dataset.steps);
      clearTimeout(timer);
      timer = setTimeout(ask, pause());
    }
    const isPending = () => Number(run().dataset.pending) > 0;
    const pause = () => (document.hidden ? 10000 : lost || isPending() ? 1000 : 5000);
    function tell(text, isLost = false) {
      const bar = $("#new");
      bar.hidden = !text;
      bar.classList.toggle("lost", isLost);
      bar.textContent = isLost ? text : "";
      if (!text || isLost) return;
      const button = document.createElement("button");
      button.textContent = text;
      button.addEventListener("click", () => swap(location.href, { push: false, keep: true }));
      bar.append(button);
    }
    // At the end of a page that is longer than the window, with nothing chosen in it, the reader follows.
    function follows() {
      const length = document.documentElement.scrollHeight;
      const idle = getSelection().isCollapsed && (document.activeElement === document.body || !document.activeElement);
      return idle && length > innerHeight + 200 && scrollY + innerHeight >= length - 8;
    }
    // Rows that come into view take their real height, which moves the end; who scrolls up meanwhile is let go.
    function toEnd(frames = 20, from = 0) {
      const length = document.documentElement.scrollHeight;
      if (scrollY < from - 8 && scrollY + innerHeight < length - 8) return;
      scrollTo(0, length);
      const reached = scrollY;
      if (frames) requestAnimationFrame(() => toEnd(frames - 1, reached));
    }
    async function ask() {
      try {
        const answer = await fetch(`${run().dataset.live}?after=${position}`);
        if (!answer.ok) throw new Error(String(answer.status));
        const told = await answer.json();
        if (lost) tell("");
        lost = false;
        position = told.position;
        if (told.steps !== null) {
          const more = told.steps - known;
          if (follows()) {
            await swap(location.href, { push: false, keep: true });
            toEnd();
            return;
          }
          tell(more > 0 ? `${more} new ${more === 1 ? "step" : "steps"}` : "Steps have ended: show");
          if ($("#pending")) $("#pending").textContent = told.pending ? `${told.pending} running` : "ended";
        }
      } catch {
        lost = true;
        tell("The server is not answering: what you see may be old", true);
      }
      clearTimeout(timer);
      timer = setTimeout(ask, pause());
    }
    return { reset };
  })();

  function count() {
    for (const took of all("[data-since]")) {
      const seconds = Math.max((Date.now() - Number(took.dataset.since)) / 1000, 0);
      const [whole, rest] = seconds < 3600 ? ["m", "s"] : ["h", "m"];
      const parts = seconds < 3600 ? seconds : seconds / 60;
      took.textContent =
        seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(parts / 60)} ${whole} ${String(Math.floor(parts % 60)).padStart(2, "0")} ${rest}`;
    }
  }

  if (run()) {
    dress();
    if (new URLSearchParams(location.search).has("step") && !location.hash) current()?.scrollIntoView({ block: "nearest" });
    place();
    news.reset();
    setInterval(count, 500);
    count();
  }
})();
