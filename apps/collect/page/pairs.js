// Choose the better one of two answers, or say that they are equal.
import { button, card as makeCard, make, Passage } from "./passage.js";
import { say } from "./words.js";

const RANKS = { 1: [1, 2], 2: [2, 1], 0: [1, 1] };

export class Pairs {
  #choice = null; // "1", "2" or "0"
  #buttons;
  #cards;
  #passages;
  #desk;

  constructor(task, given, desk) {
    this.#desk = desk;
    this.#passages = task.answers.map((text) => new Passage(text, given));
    this.#buttons = {
      1: button(say("better"), "1", () => this.#choose("1")),
      2: button(say("better"), "2", () => this.#choose("2")),
      0: button(say("equal"), "0", () => this.#choose("0")),
    };
    this.#cards = this.#passages.map((passage, index) => {
      const name = String(index + 1);
      const head = make("div", "head", make("h3", "", say("answer", { name })), this.#buttons[name]);
      const card = makeCard(head, passage);
      card.tabIndex = 0;
      card.ariaLabel = say("answer", { name });
      return card;
    });
    this.#buttons["0"].classList.add("equal");
    this.element = make("div", "", make("div", "pair", ...this.#cards), this.#buttons["0"]);
    this.#show();
  }

  get missing() {
    return this.#choice === null ? say("choose_first") : null;
  }

  get result() {
    return { ranks: RANKS[this.#choice] };
  }

  get state() {
    return { choice: this.#choice };
  }

  set state({ choice }) {
    this.#choice = choice;
    this.#show();
  }

  recall({ ranks: [first, second] }) {
    this.state = { choice: first === second ? "0" : first < second ? "1" : "2" };
  }

  focus() {
    this.#cards[0].focus({ preventScroll: true });
  }

  key(key) {
    if (key === "f") this.#passages[this.#cards[1].contains(document.activeElement) ? 1 : 0].toggle();
    else if (key in RANKS) this.#choose(key);
    else if (key === "=") this.#choose("0");
    else if (/^Arrow(Left|Right)$/.test(key)) this.#cards[key === "ArrowLeft" ? 0 : 1].focus();
    else return false;
    return true;
  }

  #choose(choice) {
    this.#choice = choice;
    this.#show();
    this.#desk.changed();
    this.#desk.announce(choice === "0" ? say("chosen_equal") : say("chosen", { name: choice }));
  }

  #show() {
    for (const [name, its] of Object.entries(this.#buttons)) its.ariaPressed = String(name === this.#choice);
    this.#cards.forEach((card, index) => card.classList.toggle("chosen", String(index + 1) === this.#choice));
  }
}
