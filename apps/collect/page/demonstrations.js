// Write the answer that the policy should have given.
import { field } from "./edit.js";
import { button, make, Passage } from "./passage.js";
import { say } from "./words.js";

export class Demonstrations {
  #area;
  #start = null;
  #passage = null;
  #desk;

  constructor(task, given, desk) {
    this.#desk = desk;
    const { area, element } = field(say("your_answer"), given, () => this.#changed());
    this.#area = area;
    area.rows = 10;
    this.element = make("div", "", make("section", "card edit", element));
    if (task.draft != null) this.#addDraft(task.draft);
  }

  get missing() {
    return this.#area.value.trim() ? null : say("write_first");
  }

  get result() {
    return { text: this.#area.value };
  }

  get state() {
    return { text: this.#area.value };
  }

  set state({ text }) {
    this.#area.value = text;
    this.#offerDraft();
  }

  recall(earlier) {
    this.state = earlier;
  }

  focus() {
    this.#area.focus({ preventScroll: true });
  }

  key(key) {
    if (key === "f") this.#passage?.toggle();
    else if (key === "d") this.#start?.click();
    else if (key === "e") this.#area.focus();
    else return false;
    return true;
  }

  /** The policy's draft, and a button that copies it into an empty field. */
  #addDraft(draft) {
    this.#passage = new Passage(draft);
    this.#start = button(say("start_from_draft"), "d", () => {
      this.#area.value = draft;
      this.#area.focus();
      this.#changed();
    });
    const head = make("div", "head", make("h3", "", say("draft")), this.#start);
    this.element.append(make("article", "card", head, this.#passage.element));
  }

  #changed() {
    this.#offerDraft();
    this.#desk.changed();
  }

  /** A draft never replaces what the person wrote. */
  #offerDraft() {
    if (this.#start) this.#start.disabled = this.#area.value !== "";
  }
}
