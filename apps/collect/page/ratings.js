// Rate one answer on a scale.
import { button, card, make, Passage } from "./passage.js";
import { say } from "./words.js";

export class Ratings {
  #rating = null;
  #buttons = new Map();
  #card;
  #passage;
  #desk;

  constructor(task, given, desk) {
    this.#desk = desk;
    const [low, high] = desk.round.scale;
    for (let rating = low; rating <= high; rating++) {
      this.#buttons.set(rating, button(String(rating), "", () => this.#rate(rating)));
    }
    this.#passage = new Passage(task.answers[0], given);
    this.#card = card(make("h3", "", say("the_answer")), this.#passage);
    this.#card.ariaLabel = say("the_answer");
    this.#card.tabIndex = 0;
    const scale = make("div", "scale", ...this.#buttons.values());
    scale.role = "group";
    scale.ariaLabel = say("scale_label", { low, high });
    const [worst, best] = [say("worst", { low }), say("best", { high })];
    const ends = make("p", "ends note", make("span", "", worst), make("span", "", best));
    this.element = make("div", "", this.#card, scale, ends);
    this.#show();
  }

  get missing() {
    return this.#rating === null ? say("rate_first") : null;
  }

  get result() {
    return { rating: this.#rating };
  }

  get state() {
    return { rating: this.#rating };
  }

  set state({ rating }) {
    this.#rating = rating;
    this.#show();
  }

  recall({ rating }) {
    this.state = { rating };
  }

  focus() {
    this.#card.focus({ preventScroll: true });
  }

  key(key) {
    if (key === "f") this.#passage.toggle();
    else if (/^\d$/.test(key) && this.#buttons.has(Number(key))) this.#rate(Number(key));
    else return false;
    return true;
  }

  #rate(rating) {
    this.#rating = rating;
    this.#show();
    this.#desk.changed();
    this.#desk.announce(say("rated", { rating }));
  }

  #show() {
    for (const [rating, its] of this.#buttons) its.ariaPressed = String(rating === this.#rating);
  }
}
