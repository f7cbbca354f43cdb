"use strict";
// A fold of work is filled when it is opened; its link to the run is there before.
document.addEventListener("toggle", async (event) => {
  const fold = event.target;
  if (!fold.open || !fold.dataset || !fold.dataset.work || fold.dataset.asked) return;
  fold.dataset.asked = "yes";
  fold.setAttribute("aria-busy", "true");
  const place = document.createElement("div");
  place.className = "note";
  place.textContent = "Loading…";
  fold.append(place);
  try {
    const answer = await fetch(fold.dataset.work, { headers: { Accept: "text/html" } });
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    place.innerHTML = await answer.text(); // made by our own templates, which escape what was recorded
    place.className = "";
  } catch (error) {
    delete fold.dataset.asked;
    place.textContent = `The steps can't be loaded (${error.message}). Close and open this to try again.`;
    place.setAttribute("role", "alert");
    fold.addEventListener("toggle", () => place.remove(), { once: true });
  } finally {
    fold.removeAttribute("aria-busy");
  }
}, true);
