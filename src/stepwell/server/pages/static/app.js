"use strict";
// Times: written in UTC by the server; here in the browser's zone, or from the run's start, where somebody asks for it.
(() => {
  const zone = document.querySelector(".zone");
  const began = document.querySelector("#run .run-head time");
  const start = began && Date.parse(began.dateTime);
  const local = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const isPhone = matchMedia("(max-width: 480px)").matches; // the name of the zone is all that the bar has room for
  const ways = { utc: "UTC", ...(local === "UTC" ? {} : { local: isPhone ? abbreviated() : local }), ...(start === null ? {} : { start: isPhone ? "start" : "from the run's start" }) };
  const short = new Intl.DateTimeFormat("en-US", { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  let way = "utc";
  try { way = localStorage.getItem("stepwell-times") || "utc"; } catch { /* storage is blocked: this page remembers */ }
  if (!(way in ways)) way = "utc";

  function abbreviated() {
    const parts = new Intl.DateTimeFormat("en-US", { timeZoneName: "short" }).formatToParts(new Date());
    return parts.find((part) => part.type === "timeZoneName").value.replace("GMT", "");
  }
  const micros = (text) => Number((/\.(\d{6})/.exec(text) || [0, 0])[1]);
  function exact(text) {
    const at = new Date(text), minutes = -at.getTimezoneOffset();
    const two = (number) => String(number).padStart(2, "0");
    const offset = `${minutes < 0 ? "-" : "+"}${two(Math.floor(Math.abs(minutes) / 60))}:${two(Math.abs(minutes) % 60)}`;
    return `${new Date(at.getTime() + minutes * 60000).toISOString().slice(0, 19)}.${String(micros(text)).padStart(6, "0")}${offset}`;
  }
  function after(text) {
    const whole = (each) => Math.floor(Date.parse(each) / 1000);
    const took = whole(text) - whole(began.dateTime) + (micros(text) - micros(began.dateTime)) / 1e6;
    return `${took < 0 ? "−" : "+"}${Math.abs(took).toFixed(3)} s`;
  }
  function show(time) {
    if (time.dataset.utc === undefined) {
      if (way === "utc") return;
      time.dataset.utc = time.textContent;
    }
    const brief = time.dataset.utc.length < 20;
    const text = way === "utc" ? time.dataset.utc
      : way === "local" ? (brief ? short.format(new Date(time.dateTime)) : exact(time.dateTime))
      : time === began ? time.dataset.utc : after(time.dateTime);
    if (time.textContent !== text) time.textContent = text;
    if (brief) time.title = way === "local" ? exact(time.dateTime) : time.dateTime;
  }
  const all = () => document.querySelectorAll("time[datetime]").forEach(show);

  const choice = document.createElement("select");
  choice.setAttribute("aria-label", "Times are");
  choice.append(...Object.entries(ways).map(([value, text]) => new Option(text, value, false, value === way)));
  choice.addEventListener("change", () => {
    way = choice.value;
    try { localStorage.setItem("stepwell-times", way); } catch { /* as above */ }
    all();
  });
  if (zone) zone.replaceChildren(zone.querySelector(".zone-words"), choice);
  if (way !== "utc") all();
  new MutationObserver(() => { if (way !== "utc") all(); }).observe(document.body, { childList: true, subtree: true });
})();

// Plots: what a bar says is shown beside it while it is pointed at or has the focus. Arrows go from bar to bar, with
// Shift they take what is between as well; so does dragging. What is taken is the address of its first bar up to the
// end of its last one, to which the page goes unless it takes the event `plot` for itself.
(() => {
  const bars = (plot) => [...plot.querySelectorAll("a")];
  const edge = (bar, end = false) => {
    const { x, width } = bar.querySelector(".hit");
    return x.baseVal.valueInSpecifiedUnits + (end ? width.baseVal.valueInSpecifiedUnits : 0);
  };
  let from = null; // where Shift or the pointer began to take bars
  let drag = null;

  function says(plot, text) {
    plot.closest("section").querySelector("output").textContent = text;
  }
  function take(plot, taken) {
    for (const bar of bars(plot)) bar.classList.toggle("in", taken.includes(bar));
    if (!taken.length) return says(plot, "");
    const [first, last] = [taken[0], taken.at(-1)].map((bar) => bar.getAttribute("aria-label").split(": "));
    const n = taken.reduce((sum, bar) => sum + Number(bar.dataset.n), 0);
    const many = plot.dataset.noun ? `: ${n.toLocaleString("en")} ${plot.dataset.noun}` : "";
    return says(plot, taken.length === 1 ? first.join(": ") : `${first[0]} to ${last[0]}${many}`);
  }
  const taken = (plot) => bars(plot).filter((bar) => bar.classList.contains("in"));
  function clear(plot) {
    take(plot, []);
    plot.querySelector(".taken")?.remove();
    from = drag = null;
  }
  function go(plot, chosen) {
    const [first, last] = [chosen[0], chosen.at(-1)];
    const url = new URL(first.dataset.from ? location.href : first.href.baseVal, location.href);
    if (first.dataset.from) {
      url.searchParams.set("from", first.dataset.from);
      url.searchParams.set("to", last.dataset.to);
      url.searchParams.delete("row");
    } else {
      const until = /until:\S+$/;
      const [q, end] = [first, last].map((bar) => new URL(bar.href.baseVal, location.href).searchParams.get("q"));
      url.searchParams.set("q", q.replace(until, until.exec(end)[0]));
    }
    clear(plot);
    if (plot.dispatchEvent(new CustomEvent("plot", { bubbles: true, cancelable: true, detail: url.href }))) {
      document.getElementById("main").setAttribute("aria-busy", "true");
      location.assign(url);
    }
  }

  const over = (event) => event.target.closest?.(".plot");
  const tell = (event) => {
    const plot = over(event), bar = event.target.closest?.("a");
    if (plot && !drag && !(from && event.type === "pointerover")) says(plot, bar ? bar.getAttribute("aria-label") : "");
  };
  document.addEventListener("pointerover", tell);
  document.addEventListener("focusin", tell);
  for (const left of ["pointerout", "focusout"]) {
    document.addEventListener(left, (event) => {
      const plot = over(event);
      if (!plot || drag || plot.contains(event.relatedTarget)) return;
      if (left === "focusout") clear(plot);
      else says(plot, "");
    });
  }
  // One stop of the Tab key a plot; a page that puts in a plot later says so with the event `plots`.
  const dress = () => {
    for (const plot of document.querySelectorAll(".plot")) {
      bars(plot).forEach((bar, at, all) => { bar.tabIndex = at === all.length - 1 ? 0 : -1; });
    }
  };
  addEventListener("plots", dress);
  dress();

  document.addEventListener("keydown", (event) => {
    const plot = over(event);
    if (!plot || event.ctrlKey || event.metaKey || event.altKey) return;
    const all = bars(plot), at = all.indexOf(document.activeElement);
    if (at < 0) return;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 }[event.key];
    if (event.key === "Enter" && from) {
      event.preventDefault();
      go(plot, taken(plot));
    } else if (event.key === "Escape" && (from || drag)) {
      event.preventDefault();
      clear(plot);
    } else if (all[to]) {
      event.preventDefault();
      const began = event.shiftKey ? from || all[at] : null;
      all[at].tabIndex = -1;
      all[to].tabIndex = 0;
      all[to].focus();
      from = began;
      const first = all.indexOf(began);
      take(plot, began ? all.slice(Math.min(first, to), Math.max(first, to) + 1) : []);
      if (!began) says(plot, all[to].getAttribute("aria-label"));
    }
  });

  document.addEventListener("dragstart", (event) => { if (over(event)) event.preventDefault(); });
  document.addEventListener("pointerdown", (event) => {
    const plot = over(event);
    if (!plot || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    const box = plot.getBoundingClientRect();
    const share = (x) => Math.min(Math.max((x - box.left) / box.width, 0), 1) * 100;
    drag = { plot, share, x: event.clientX, began: share(event.clientX), moved: false };
  });
  addEventListener("pointermove", (event) => {
    if (!drag || (!drag.moved && Math.abs(event.clientX - drag.x) < 5)) return;
    drag.moved = true;
    const { plot } = drag, ends = [drag.began, drag.share(event.clientX)].sort((a, b) => a - b);
    const mark = plot.querySelector(".taken") || plot.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "rect"));
    for (const [name, value] of Object.entries({ class: "taken", x: `${ends[0]}%`, y: 0, width: `${ends[1] - ends[0]}%`, height: "100%" })) mark.setAttribute(name, value);
    take(plot, bars(plot).filter((bar) => edge(bar) < ends[1] && edge(bar, true) > ends[0]));
  });
  addEventListener("pointerup", () => {
    if (!drag) return;
    const { plot, moved } = drag, chosen = taken(plot);
    drag = null;
    if (!moved) return;
    // The click that follows is none on a bar.
    const stop = (event) => { event.preventDefault(); event.stopPropagation(); };
    addEventListener("click", stop, { capture: true, once: true });
    setTimeout(() => removeEventListener("click", stop, { capture: true }));
    if (chosen.length) go(plot, chosen);
    else clear(plot);
  });
  addEventListener("pointercancel", () => { if (drag) clear(drag.plot); });
  addEventListener("keydown", (event) => { if (event.key === "Escape" && drag) clear(drag.plot); });
})();
