// What stays in the browser: localStorage under one prefix. A browser may refuse it; then nothing stays.

const PREFIX = "tristage.collect.";
const DAY = 24 * 60 * 60 * 1000;
const DRAFT_DAYS = 14;
const DRAFT_DELAY = 300; // milliseconds from a change to its draft

/** What was kept under a name, or null. */
export function recall(name) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name));
  } catch {
    return null;
  }
}

/** Keep a value that JSON can hold. */
export function keep(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // It is full or refused. The page works without it.
  }
}

/** Keep nothing under a name. */
export function forget(name) {
  try {
    localStorage.removeItem(PREFIX + name);
  } catch {
    // As above.
  }
}

/** The unfinished work on one task. `state()` is asked for it soon after each change. */
export class Draft {
  #name;
  #state;
  #exists = false; // there is something to come back to
  #timer = null;

  constructor(round, showing, state) {
    this.#name = `draft.${round}.${showing}`;
    this.#state = state;
  }

  read() {
    const state = recall(this.#name)?.state ?? null;
    this.#exists = state !== null;
    return state;
  }

  changed() {
    this.#exists = true;
    this.#timer ??= setTimeout(() => this.save(), DRAFT_DELAY);
  }

  save() {
    this.#stop();
    if (this.#exists) keep(this.#name, { at: Date.now(), state: this.#state() });
  }

  remove() {
    this.#stop();
    this.#exists = false;
    forget(this.#name);
  }

  #stop() {
    clearTimeout(this.#timer);
    this.#timer = null;
  }
}

/** Remove drafts that nobody came back to. */
export function forgetOldDrafts() {
  for (const name of keptNames().filter((its) => its.startsWith("draft."))) {
    if (!(recall(name)?.at > Date.now() - DRAFT_DAYS * DAY)) forget(name);
  }
}

function keptNames() {
  try {
    const names = Object.keys(localStorage).filter((its) => its.startsWith(PREFIX));
    return names.map((its) => its.slice(PREFIX.length));
  } catch {
    return [];
  }
}
