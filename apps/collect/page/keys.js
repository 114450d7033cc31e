// The keys of the page. The work on a task takes what it knows; the page takes the rest.
import { keep, recall } from "./keep.js";

const SHORT = "short_keys"; // keys of one letter, digit or sign

/** Whether such keys act. Who dictates, or has a tremor, may switch them off: others stay (WCAG 2.1.4). */
export const shortKeys = () => recall(SHORT) ?? true;

export const useShortKeys = (on) => keep(SHORT, on);

/** The character of a key, also on keyboards whose digits or letters are others. */
function keyOf({ key, code, shiftKey }) {
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(code)?.[1];
  if (digit && !shiftKey) return digit;
  const letter = /^Key([A-Z])$/.exec(code)?.[1];
  const isForeign = letter && key.length === 1 && key > "~";
  return isForeign ? letter.toLowerCase() : key.length === 1 ? key.toLowerCase() : key;
}

/** `work()` is what takes keys first, or null. `acts` are the page's own keys. */
export function onKeys({ work, submit, submitsOnEnter, acts }) {
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || document.querySelector("dialog[open]")) return;
    const { target } = event;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) return once(event, submit);
    if (target.matches("textarea, input, select")) return leave(event, work());
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter") {
      const control = target.closest("button, a");
      const isChosen = control?.ariaPressed === "true"; // Enter would choose the same once more
      if (submitsOnEnter() && (!control || isChosen)) once(event, submit);
      return;
    }
    const key = keyOf(event);
    if (key.length === 1 && key !== " " && !shortKeys()) return;
    const isArrow = key.startsWith("Arrow");
    if (!(event.repeat && !isArrow) && work()?.key(key, event.shiftKey)) event.preventDefault();
    else if (key in acts) once(event, acts[key]);
  });
}

/** A key that is held down acts once. */
function once(event, act) {
  event.preventDefault();
  if (!event.repeat) act();
}

/** Escape leaves a field, so that keys mean something again. */
function leave(event, work) {
  if (event.key !== "Escape" || !event.target.matches("textarea")) return;
  event.target.blur();
  work?.left?.();
}
