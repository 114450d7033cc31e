// Text that others wrote: shown as it is, never as HTML, and folded if it is long.
import { figure, say } from "./words.js";

const CHARACTERS = 1200;
const LINES = 14;
const GIVEN = 160; // characters of the prompt in front of an answer that continues it

let passages = 0; // so far, for their ids

/** An element of a class, with a text or children. */
export function make(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** A card that the keyboard reaches. A screen reader says its name first, then its passage. */
export function card(head, passage) {
  const element = make("article", "card", head, passage.element);
  element.role = "group";
  element.setAttribute("aria-describedby", passage.id);
  return element;
}

/** A button with a label, a key to show beside it, and what it does. */
export function button(label, key, act) {
  const element = make("button", "", label);
  element.type = "button";
  if (key) {
    element.append(" ", make("kbd", "", key));
    element.setAttribute("aria-keyshortcuts", key);
  }
  element.addEventListener("click", act);
  return element;
}

/** How many characters of a text to show at first. */
function visibleLength(text) {
  let end = 0;
  for (let line = 0; line < LINES && end >= 0; line++) end = text.indexOf("\n", end + 1);
  const length = Math.min(end < 0 ? text.length : end, CHARACTERS);
  const splitsPair = /[\ud800-\udbff]/.test(text.charAt(length - 1));
  return length - (splitsPair && length < text.length ? 1 : 0);
}

/** The last words of the text that an answer continues. */
export function lastWords(prompt) {
  if (prompt.length <= GIVEN) return prompt;
  const end = prompt.slice(-GIVEN);
  return "… " + end.slice(end.indexOf(" ") + 1);
}

/** A text, and a button that unfolds it if it is long. `given` stands in front of it. */
export class Passage {
  #text;
  #shown;
  #fold = null;

  constructor(text, given = "") {
    this.#text = text;
    this.#shown = make("span");
    const content = make("div", "text", ...(given ? [make("span", "given", given)] : []), this.#shown);
    content.dir = "auto";
    this.id = content.id = `passage-${++passages}`;
    this.element = make("div", "passage", content);
    const length = visibleLength(text);
    if (length < text.length) this.#addFold(length);
    else this.#shown.textContent = text || "";
    if (!text && !given) content.append(make("span", "note", say("empty")));
  }

  /** Fold or unfold. */
  toggle() {
    this.#fold?.click();
  }

  #addFold(length) {
    this.#fold = button("", "", () => {
      const folds = this.#fold.ariaExpanded === "true";
      this.#show(folds ? length : this.#text.length);
      if (folds) this.element.scrollIntoView({ block: "nearest" });
    });
    this.#fold.classList.add("fold");
    this.element.append(this.#fold);
    this.#show(length);
  }

  #show(length) {
    const whole = length === this.#text.length;
    this.#shown.textContent = whole ? this.#text : this.#text.slice(0, length) + " …";
    this.#fold.ariaExpanded = String(whole);
    this.#fold.textContent = whole ? say("fold") : say("unfold", { n: figure(this.#text.length) });
  }
}
