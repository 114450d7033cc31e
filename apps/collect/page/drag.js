// Drag a card by its grip, with mouse, pen or finger: between two ranks, or onto a rank for a tie.

const TIE = [0.35, 0.65]; // the part of a rank's height onto which a card is dropped for a tie
const EDGE = 70; // pixels from the window's edge in which the page scrolls
const SPEED = 12; // pixels that it scrolls in each frame

/** Let the cards of `list` be dragged. `dropped(card, where, other)`: before, after or with which card. */
export function draggable(list, dropped) {
  list.addEventListener("pointerdown", (event) => {
    const grip = event.target.closest(".grip");
    if (!grip || event.button !== 0 || !event.isPrimary) return;
    event.preventDefault();
    new Drag(list, grip, event, dropped);
  });
  // Else the browser takes a swift drag for a scroll, and ignores the tap that follows.
  list.addEventListener("touchstart", (event) => event.target.closest(".grip") && event.preventDefault(), {
    passive: false,
  });
}

class Drag {
  constructor(list, grip, event, dropped) {
    this.list = list;
    this.grip = grip;
    this.card = grip.closest(".card");
    this.dropped = dropped;
    this.start = event.pageY;
    this.startX = event.pageX;
    this.at = event;
    this.target = null;
    this.ending = new AbortController();
    const { signal } = this.ending;
    grip.setPointerCapture(event.pointerId);
    grip.addEventListener("pointermove", (move) => (this.at = move), { signal });
    grip.addEventListener("pointerup", () => this.#end(true), { signal });
    grip.addEventListener("pointercancel", () => this.#end(false), { signal });
    addEventListener("keydown", (key) => key.key === "Escape" && this.#end(false), { signal });
    this.card.classList.add("dragged");
    this.#frame();
  }

  /** Once a frame: scroll near an edge, move the card, mark the target. */
  #frame() {
    if (this.ending.signal.aborted) return;
    const { clientX, clientY } = this.at;
    if (clientY < EDGE) scrollBy(0, -SPEED);
    if (clientY > innerHeight - EDGE) scrollBy(0, SPEED);
    const x = clientX + scrollX - this.startX;
    const y = clientY + scrollY - this.start;
    this.card.style.transform = `translate(${x}px, ${y}px)`;
    this.#mark(this.#find(clientY));
    requestAnimationFrame(() => this.#frame());
  }

  /** The rank under the pointer, and whether the card goes before it, after it or with it. */
  #find(y) {
    const rows = [...this.list.children].filter((row) => row.querySelector(".card:not(.dragged)"));
    const row = rows.find((its) => y < its.getBoundingClientRect().bottom) ?? rows.at(-1);
    const { top, height } = row.getBoundingClientRect();
    const part = (y - top) / height;
    const where = part < TIE[0] ? "before" : part > TIE[1] ? "after" : "with";
    return { row, where };
  }

  #mark(target) {
    this.target?.row.classList.remove("before", "after", "with");
    target?.row.classList.add(target.where);
    this.target = target;
  }

  #end(drop) {
    const moved = Math.abs(this.at.pageY - this.start) + Math.abs(this.at.pageX - this.startX) > 4;
    if (drop) this.#mark(this.#find(this.at.clientY));
    const { row, where } = this.target;
    const other = row.querySelector(".card:not(.dragged)");
    this.ending.abort();
    this.#mark(null);
    this.card.classList.remove("dragged");
    this.card.style.transform = "";
    if (!moved) this.card.focus();
    else if (drop) this.dropped(this.card, where, other);
  }
}
