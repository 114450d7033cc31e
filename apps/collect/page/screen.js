// The frame around a task: what is said aloud, what went wrong, what is done.
import { figure, say } from "./words.js";

export const byId = (id) => document.getElementById(id);

/** Let a screen reader say a text, even the same text again. */
export function announce(text) {
  byId("said").textContent = "";
  requestAnimationFrame(() => (byId("said").textContent = text));
}

/** What went wrong; empty if nothing did. */
export const fault = (text) => (byId("fault").textContent = text);

/** What the server does not answer; empty if it does. */
export const banner = (text) => (byId("banner").textContent = text);

/** The place of the task in sight among those for this person. `left` are the tasks after it. */
export function position({ done, left }) {
  return { n: figure(done + 1), all: figure(done + 1 + left) };
}

/** How much is done. */
export function showCounts({ done, left, today, median_seconds: median }, task) {
  const all = done + left + (task ? 1 : 0);
  byId("bar").max = Math.max(1, all);
  byId("bar").value = done;
  const parts = [say("done", { done: figure(done), all: figure(all) })];
  parts.push(say("today", { today: figure(today) }));
  if (median !== null) parts.push(say("median", { seconds: figure(median) }));
  byId("figures").textContent = parts.join(" · ");
}

/** What is missing before the person can submit; null if nothing is. */
export function showMissing(text, confirmable) {
  byId("missing").textContent = text ?? "";
  byId("missing").classList.remove("urged");
  byId("submit").ariaDisabled = String(text !== null);
  byId("confirm").hidden = text === null || !confirmable;
}

/** The person tried to submit too early. */
export function urge() {
  byId("missing").classList.add("urged");
  announce(byId("missing").textContent);
}

/** While the server is asked, nothing can be changed. */
export function lock(locked) {
  byId("work").inert = locked;
  for (const name of ["submit", "skip", "undo", "confirm"]) byId(name).disabled = locked;
}
