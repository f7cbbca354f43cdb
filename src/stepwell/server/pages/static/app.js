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
