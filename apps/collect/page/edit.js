// A text that the person writes: a demonstration, or the best answer, edited into one.
import { button, make } from "./passage.js";
import { say } from "./words.js";

const MOST_CHARACTERS = 200_000; // the server takes no more

/** A field for a text that may continue another one. */
export function field(label, given, changed) {
  const area = make("textarea");
  area.dir = "auto";
  area.rows = 6;
  area.maxLength = MOST_CHARACTERS;
  area.addEventListener("input", changed);
  const before = given ? [make("p", "given", given)] : [];
  for (const element of before) element.dir = "auto";
  return { area, element: make("label", "field", make("span", "", label), ...before, area) };
}

/** The best answer while the person edits it. It is closed at first. */
export class Edit {
  #original = null;
  #area;
  #desk;

  constructor(given, desk) {
    this.#desk = desk;
    const { area, element } = field(say("edited"), given, () => desk.changed());
    this.#area = area;
    const drop = button(say("drop_edit"), "", () => this.#close());
    this.element = make("section", "card edit", element, make("p", "note", say("edit_note")), drop);
    this.element.hidden = true;
  }

  /** Edit a text; or go on with the one that is open. */
  open(text) {
    if (this.element.hidden) this.state = { text, original: text };
    this.#area.focus({ preventScroll: true });
    this.element.scrollIntoView({ block: "nearest" });
    this.#desk.changed();
  }

  /** A text that nobody changed is no demonstration. */
  get result() {
    const text = this.#area.value;
    return this.element.hidden || !text.trim() || text === this.#original ? {} : { demonstration: text };
  }

  get state() {
    return this.element.hidden ? null : { text: this.#area.value, original: this.#original };
  }

  set state(state) {
    this.element.hidden = state === null;
    this.#area.value = state?.text ?? "";
    this.#original = state?.original ?? null;
  }

  #close() {
    this.state = null;
    this.#desk.changed();
    this.#desk.focus();
  }
}
