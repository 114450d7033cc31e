// The lead's view: what is done, by whom, and how far people agree. It refreshes itself.
import { ask, takeToken } from "./client.js";
import { make } from "./passage.js";
import { byId, fault } from "./screen.js";
import { decimals, figure, fromServer, known, loadWords, percent, say } from "./words.js";

const REFRESH = 5000;
const SVG = "http://www.w3.org/2000/svg";
const FIGURES = {
  pairwise: { low: 0, high: 1, known: [0.711, 0.741], write: percent },
  tau_b: { low: -1, high: 1, write: decimals },
  alpha: { low: -1, high: 1, write: decimals },
};

const COLUMNS = ["person", "person_done", "person_today", "person_skipped", "person_seconds", "person_self"];

let latest = null; // what the server said last, and when
let latestTime = "";

async function refresh() {
  try {
    latest = await ask("/api/progress");
    latestTime = new Date().toLocaleTimeString(document.documentElement.lang);
    fault("");
    draw();
  } catch (error) {
    fault(message(error));
  }
  setTimeout(refresh, REFRESH);
}

function message(error) {
  if (error.status === 401 || error.status === 403) return say("lead_only");
  if (error.status) return fromServer(error);
  return latest ? say("stale", { time: latestTime }) : say("no_answer");
}

function draw() {
  const { run, kind, total, labelled, missing, uncompared, held, people, agreement, skips } = latest;
  byId("progress").hidden = false;
  byId("run").textContent = run;
  byId("kind").textContent = say(`kind_${kind}`);
  byId("bar").max = Math.max(1, total);
  byId("bar").value = labelled;
  drawCounts({ labelled, missing, uncompared, held }, total);
  drawAgreement(agreement, kind);
  if (latest.win_rate) drawWins(latest.win_rate);
  drawPeople(people);
  drawSkips(skips);
  byId("updated").textContent = say("updated", { time: latestTime });
}

function drawCounts(counts, total) {
  const rows = Object.entries(counts).flatMap(([name, number]) => {
    const amount = name === "labelled" ? `${figure(number)} / ${figure(total)}` : figure(number);
    return [make("dt", "", say(name)), make("dd", "", make("b", "", amount), note(say(`${name}_means`)))];
  });
  byId("counts-list").replaceChildren(...rows);
}

function drawAgreement(agreement, kind) {
  const rows = Object.entries(FIGURES).flatMap(([name, form]) => {
    const its = agreement[name];
    const isOther = known(`${name}_${kind}`); // then InstructGPT’s figure is not comparable
    const scale = isOther ? { ...form, known: [] } : form;
    const parts = its ? [make("b", "", inWords(its, form)), range(its, scale)] : [note(say("none_yet"))];
    const means = say(isOther ? `${name}_${kind}` : `${name}_means`);
    return [make("dt", "", say(name)), make("dd", "", ...parts, note(means))];
  });
  byId("agreement").replaceChildren(...rows);
}

/** How often people prefer one policy to the other. */
function drawWins(its) {
  const name = say("win_rate", { policy: its.policy, against: its.against });
  const parts = [make("b", "", inWords(its, FIGURES.pairwise)), range(its, { low: 0, high: 1 })];
  byId("agreement").prepend(make("dt", "", name), make("dd", "", ...parts, note(say("win_rate_means"))));
}

function drawPeople(people) {
  if (!people.length) return byId("people").replaceChildren(row("td", [say("no_people")]));
  const head = make("thead", "", row("th", COLUMNS.map((its) => say(its))));
  byId("people").replaceChildren(head, make("tbody", "", ...people.map(personRow)));
}

function personRow({ name, done, today, skipped, median_seconds: median, self_agreement: self }) {
  const seconds = median === null ? "–" : figure(median);
  const agrees = self ? inWords(self, FIGURES.pairwise) : "–";
  return row("td", [name, figure(done), figure(today), figure(skipped), seconds, agrees]);
}

function drawSkips(skips) {
  const rows = Object.entries(skips).map(([reason, number]) => {
    const label = known(`reason_${reason}`) ? say(`reason_${reason}`) : reason;
    return row("td", [label, figure(number)]);
  });
  byId("skips").replaceChildren(...(rows.length ? rows : [row("td", [say("no_skips")])]));
}

const note = (text) => make("span", "note", text);

/** A row of a table: a text first, then amounts. */
function row(tag, cells) {
  return make("tr", "", ...cells.map((cell, column) => {
    const element = make(tag, column ? "amount" : "text", cell);
    if (tag === "th") element.scope = "col";
    if (!column) element.dir = "auto";
    return element;
  }));
}

/** "73 % (65 % to 80 %, n = 48)" */
function inWords({ value, low, high, n }, { write }) {
  const values = { value: write(value), n: figure(n) };
  if (low === null || high === null) return say("no_interval", values);
  return say("interval", { ...values, low: write(low), high: write(high) });
}

/** A picture of a figure with its interval, and of the interval that is known from elsewhere. */
function range({ value, low, high }, scale) {
  const picture = shape("svg", { class: "range", viewBox: "0 0 200 10" });
  picture.setAttribute("aria-hidden", "true");
  const x = (its) => (200 * (its - scale.low)) / (scale.high - scale.low);
  picture.append(line("axis", 0, 200));
  if (low !== null && high !== null) picture.append(line("interval", x(low), x(high)));
  for (const its of scale.known ?? []) {
    picture.append(shape("line", { class: "known", x1: x(its), x2: x(its), y1: 0, y2: 10 }));
  }
  picture.append(shape("circle", { cx: x(value), cy: 5, r: 4 }));
  return picture;
}

const line = (name, from, to) => shape("line", { class: name, x1: from, x2: to, y1: 5, y2: 5 });

function shape(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

takeToken();
await loadWords(byId("language"));
document.addEventListener("language", () => latest && draw());
refresh();
