// The windows over the page: who the person is, instructions, keys, and why a task is skipped.
import { shortKeys } from "./keys.js";
import { button, make } from "./passage.js";
import { known, say } from "./words.js";

const byId = (id) => document.getElementById(id);

let settle = null; // what waits for the last dialog

/** Show a dialog; settles when it is closed. The event of an earlier closing may come only now. */
function open(id) {
  settle?.();
  const dialog = byId(id);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    settle = () => resolve(dialog);
    dialog.addEventListener("close", () => dialog.open || resolve(dialog));
  });
}

/** The person's name. A page that `has` one takes null for "as before". */
export async function askName(has = null) {
  byId("name").value = has ?? "";
  for (;;) {
    const dialog = await open("who");
    const name = byId("name").value.trim();
    if (name && dialog.returnValue === "go") return name;
    if (has) return null;
  }
}

/** What to do, in general and in this project. */
export function showGuide({ kind, instructions }) {
  byId("guide-kind").textContent = say(`guide_${kind}`);
  byId("guide-text").textContent = instructions ?? "";
  return open("guide");
}

/** What each key does. */
export function showKeys(kind) {
  const lines = (say(`keys_${kind}`) + "\n" + say("keys_all")).split("\n").map((line) => line.split(" | "));
  const rows = lines.flatMap(([keys, does]) => [keyNames(keys), make("dd", "", does)]);
  byId("keys-list").replaceChildren(...rows);
  byId("short-keys").checked = shortKeys();
  return open("keys-help");
}

function keyNames(keys) {
  return make("dt", "", ...keys.split(" ").flatMap((key) => [make("kbd", "", key), " "]));
}

/** Why the task is skipped: { reason, note }, or null if it is not. */
export async function askReason(reasons) {
  const dialog = byId("skip-reasons");
  const note = byId("skip-note");
  note.value = "";
  let reason = null;
  const choose = (name) => {
    const asksForNote = name === "other" && reason !== name && !note.value;
    reason = name;
    if (asksForNote) note.focus();
    else dialog.close();
  };
  const buttons = reasons.map((name, index) => {
    const label = known(`reason_${name}`) ? say(`reason_${name}`) : name;
    return button(label, String(index + 1), () => choose(name));
  });
  byId("reasons").replaceChildren(...buttons);
  const listening = new AbortController();
  const options = { signal: listening.signal };
  const send = () => choose(reason ?? "other");
  dialog.addEventListener("keydown", (event) => onKey(event, buttons, note, send), options);
  dialog.addEventListener("cancel", () => (reason = null), options);
  byId("no-skip").addEventListener("click", () => ((reason = null), dialog.close()), options);
  const closed = open("skip-reasons");
  buttons[0].focus();
  await closed;
  listening.abort();
  return reason && { reason, note: note.value.trim() };
}

/** Digits choose a reason, except in the note; Enter there sends it. */
function onKey(event, buttons, note, send) {
  if (event.isComposing) return;
  if (event.target === note) {
    if (event.key !== "Enter") return;
    event.preventDefault();
    send();
  } else if (buttons[Number(event.key) - 1] && !event.repeat) {
    event.preventDefault();
    buttons[Number(event.key) - 1].click();
  }
}
