// Rank 4 to 9 answers: by dragging, by buttons, or by keys. The best one can become a demonstration.
import { draggable } from "./drag.js";
import { Edit } from "./edit.js";
import { assign, dense, fresh, groups, place, placed, shift, tieAbove, unplaced } from "./order.js";
import { button, card as makeCard, make, Passage } from "./passage.js";
import { cardinal, figure, ordinal, say } from "./words.js";

const GLIDE = 160; // milliseconds
const STEPS = { ArrowUp: -1, ArrowDown: 1 };

export class Rankings {
  #order;
  #cards;
  #active = 0; // the answer that has, or gets, the focus
  #list = make("ol", "ranks");
  #edit;
  #desk;

  /** `desk` has `changed()`, `announce(text)` and `round`. */
  constructor(task, given, desk) {
    this.#desk = desk;
    this.#order = fresh(task.answers.length);
    this.#edit = new Edit(given, desk);
    this.#cards = task.answers.map((text, index) => this.#card(text, index, given));
    draggable(this.#list, (card, where, other) => {
      const indexOf = (its) => this.#cards.findIndex(({ element }) => element === its);
      const [moving, target] = [card, other].map(indexOf);
      this.#use(place(this.#order, moving, where, target), moving);
    });
    const edit = button(say("edit_best"), "e", () => this.#editBest());
    this.element = make("div", "", this.#list, make("p", "under", edit), this.#edit.element);
    this.#show();
  }

  /** Why this cannot be submitted, or null. */
  get missing() {
    const left = unplaced(this.#order);
    if (left === 0) return null;
    return left === this.#cards.length ? say("order_first") : say("order_rest", { n: figure(left) });
  }

  get result() {
    return { ranks: dense(this.#order), ...this.#edit.result };
  }

  get state() {
    return { order: this.#order, edit: this.#edit.state };
  }

  set state({ order, edit }) {
    this.#order = order;
    this.#edit.state = edit;
    this.#active = groups(order)[0].cards[0];
    this.#show();
  }

  /** Show what was submitted before. */
  recall({ ranks, demonstration }) {
    const best = ranks.indexOf(Math.min(...ranks));
    const edit = demonstration == null ? null : { text: demonstration, original: this.#cards[best].text };
    this.state = { order: placed(ranks), edit };
  }

  /** The order as shown is the person's own. */
  confirm() {
    this.#order = placed(this.#order.ranks);
    this.#show();
    this.#desk.changed();
    this.#desk.announce(say("confirmed"));
  }

  focus() {
    this.#cards[this.#active].element.focus({ preventScroll: true });
  }

  /** The person left the text field. */
  left() {
    this.focus();
  }

  /** Whether the key meant something here. */
  key(key, shifted) {
    if (key in STEPS) return shifted ? this.#move(STEPS[key]) : this.#walk(STEPS[key]);
    if (/^[1-9]$/.test(key)) return this.#assign(Number(key));
    const acts = {
      "=": () => this.#use(tieAbove(this.#order, this.#active)),
      c: () => this.missing && this.confirm(),
      e: () => this.#editBest(),
      f: () => this.#cards[this.#active].passage.toggle(),
    };
    acts[key]?.();
    return key in acts;
  }

  #card(text, index, given) {
    const passage = new Passage(text, given);
    const title = make("h3", "grip", say("answer", { name: letter(index) }));
    const tools = [
      ["up", "↑", () => this.#move(-1)],
      ["down", "↓", () => this.#move(1)],
      ["tie", "=", () => this.#use(tieAbove(this.#order, this.#active))],
    ].map(([name, sign, act]) => this.#tool(name, sign, index, act));
    const head = make("div", "head", title, make("div", "tools", ...tools));
    const element = makeCard(head, passage);
    element.addEventListener("focusin", () => this.#activate(index));
    return { element, passage, text };
  }

  /** A button of a card. The keys do the same, so Tab passes it. */
  #tool(name, sign, index, act) {
    const tool = button(sign, "", () => {
      this.#activate(index);
      act();
    });
    tool.tabIndex = -1;
    tool.title = say(name);
    tool.ariaLabel = say(`${name}_label`, { name: letter(index) });
    return tool;
  }

  #activate(index) {
    this.#active = index;
    this.#cards.forEach(({ element }, its) => (element.tabIndex = its === index ? 0 : -1));
  }

  #walk(step) {
    const sequence = groups(this.#order).flatMap(({ cards }) => cards);
    const next = sequence[sequence.indexOf(this.#active) + step];
    if (next !== undefined) this.#cards[next].element.focus();
    return true;
  }

  #move(step) {
    this.#use(shift(this.#order, this.#active, step));
    return true;
  }

  #assign(rank) {
    if (rank > this.#cards.length) return false;
    this.#use(assign(this.#order, this.#active, rank));
    return true;
  }

  /** Use a new order, in which the person placed one answer. */
  #use(order, card = this.#active) {
    this.#order = order;
    const before = this.#cards.map(({ element }) => element.getBoundingClientRect());
    this.#show();
    this.#cards[card].element.focus();
    slide(this.#cards, before);
    this.#desk.changed();
    this.#desk.announce(this.#place(card, "now"));
  }

  /** Put the cards into the list, in their order. */
  #show() {
    const rows = groups(this.#order).map(({ rank, cards }) => {
      const isGiven = cards.some((card) => this.#order.given[card]);
      const number = make("span", isGiven ? "place given" : "place", String(rank));
      number.ariaHidden = "true";
      const elements = cards.map((card) => this.#cards[card].element);
      const tied = make("div", cards.length > 1 ? "tied" : "", ...elements);
      return make("li", "rank", number, tied);
    });
    this.#list.replaceChildren(...rows);
    this.#cards.forEach(({ element }, card) => (element.ariaLabel = this.#place(card, "place")));
    this.#activate(this.#active);
  }

  /** "Answer B is now second of four, equal with C." */
  #place(card, key) {
    const rank = this.#order.ranks[card];
    const values = { name: letter(card), place: ordinal(rank), count: cardinal(this.#cards.length) };
    const tied = groups(this.#order).find((row) => row.rank === rank).cards;
    const equal = tied.filter((its) => its !== card).map(letter);
    return equal.length ? say(`${key}_tied`, { ...values, others: equal.join(", ") }) : say(key, values);
  }

  #editBest() {
    const best = groups(this.#order)[0].cards;
    if (!best.every((card) => this.#order.given[card])) return this.#desk.announce(this.missing);
    const card = best.includes(this.#active) ? this.#active : best[0];
    this.#edit.open(this.#cards[card].text);
  }
}

/** The name of an answer: A to I. */
const letter = (index) => String.fromCharCode(65 + index);

/** Let the cards glide to their new places, unless the person prefers less motion. */
function slide(cards, before) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  cards.forEach(({ element }, index) => {
    const { left, top } = element.getBoundingClientRect();
    const [x, y] = [before[index].left - left, before[index].top - top];
    const from = { transform: `translate(${x}px, ${y}px)` };
    if (x || y) element.animate([from, {}], { duration: GLIDE, easing: "ease-out" });
  });
}
