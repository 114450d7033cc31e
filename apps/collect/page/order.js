// The order of K answers, without the page.
//
// An order is { ranks, given }. `ranks[i]` is the rank of answer i: 1 is best, equal ranks are a tie.
// `given[i]` says whether the person placed answer i. The others fill the free ranks as they are shown.

/** The order before the person places anything. */
export function fresh(count) {
  return { ranks: Array.from({ length: count }, (_, index) => index + 1), given: Array(count).fill(false) };
}

/** The order in which the person placed all answers. */
export const placed = (ranks) => ({ ranks: [...ranks], given: ranks.map(() => true) });

/** How many answers the person has not placed. */
export const unplaced = ({ given }) => given.filter((its) => !its).length;

/** The answers of each rank, best first. */
export function groups({ ranks }) {
  const distinct = [...new Set(ranks)].sort((a, b) => a - b);
  const cardsOf = (rank) => ranks.flatMap((its, card) => (its === rank ? [card] : []));
  return distinct.map((rank) => ({ rank, cards: cardsOf(rank) }));
}

/** The ranks without gaps: 1, 2, 2, 4 becomes 1, 2, 2, 3. */
export function dense({ ranks }) {
  const distinct = [...new Set(ranks)].sort((a, b) => a - b);
  return ranks.map((rank) => distinct.indexOf(rank) + 1);
}

/** Give one answer a rank. It ties with those that the person gave the same rank. */
export function assign({ ranks, given }, card, rank) {
  const nowGiven = given.with(card, true);
  return fill({ ranks: ranks.with(card, rank), given: nowGiven });
}

/** Place one answer "before", "after" or "with" another one. */
export function place(order, card, where, other) {
  if (card === other) return order;
  const rows = groups(order).map(({ cards }) => cards.filter((its) => its !== card));
  const row = rows.findIndex((cards) => cards.includes(other));
  if (where === "with") rows[row].push(card);
  else rows.splice(where === "before" ? row : row + 1, 0, [card]);
  const moved = where === "with" ? [card, ...rows[row]] : [card];
  return fromRows(rows, order.given.map((its, index) => its || moved.includes(index)));
}

/** Move one answer up (-1) or down (1) past the next rank. In a tie, it first leaves the tie. */
export function shift(order, card, step) {
  const rows = groups(order).map(({ cards }) => cards);
  const row = rows.findIndex((cards) => cards.includes(card));
  const neighbours = rows[row].length > 1 ? rows[row].filter((its) => its !== card) : rows[row + step];
  if (!neighbours) return order;
  return place(order, card, step < 0 ? "before" : "after", neighbours[0]);
}

/** Tie one answer with the rank above it. */
export function tieAbove(order, card) {
  const rows = groups(order).map(({ cards }) => cards);
  const above = rows[rows.findIndex((cards) => cards.includes(card)) - 1];
  return above ? place(order, card, "with", above[0]) : order;
}

function fromRows(rows, given) {
  const ranks = Array(given.length);
  const filled = rows.filter((cards) => cards.length);
  filled.forEach((cards, row) => cards.forEach((card) => (ranks[card] = row + 1)));
  return { ranks, given };
}

/** Let the answers that nobody placed take the free ranks, in the order shown. */
function fill({ ranks, given }) {
  const taken = new Set(ranks.filter((_, card) => given[card]));
  let next = 0;
  const filled = ranks.map((rank, card) => {
    if (given[card]) return rank;
    do next++;
    while (taken.has(next));
    return next;
  });
  return { ranks: filled, given };
}
