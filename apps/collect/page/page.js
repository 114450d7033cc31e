// The page of a labeller: one task after another, until none is left.
import { ask, insist, setName, takeToken } from "./client.js";
import { Clock } from "./clock.js";
import { Demonstrations } from "./demonstrations.js";
import { askName, askReason, showGuide, showKeys } from "./dialogs.js";
import { Draft, forgetOldDrafts, keep, recall } from "./keep.js";
import { onKeys, useShortKeys } from "./keys.js";
import { isExpired, Outbox } from "./outbox.js";
import { Pairs } from "./pairs.js";
import { make } from "./passage.js";
import { givenText, hidePrompt, showPrompt, togglePrompt } from "./prompt.js";
import { Rankings } from "./rankings.js";
import { Ratings } from "./ratings.js";
import { announce, banner, byId, fault, lock, position, showCounts, showMissing, urge } from "./screen.js";
import { fromServer, loadWords, say } from "./words.js";

const KINDS = { rankings: Rankings, pairs: Pairs, ratings: Ratings, demonstrations: Demonstrations };
const MINUTE = 60_000;
const LOOK_AGAIN = 30_000; // milliseconds, while no task is left

const clock = new Clock();
let round = null; // what the server says of this round of labelling
let outbox = null;
let counts = null;
let task = null; // the task in sight
let work = null; // what the person does with it
let draft = null;
let busy = false; // while the server is asked
let looking = null; // the timer that looks for a task
let holding = null; // the timer that keeps the task
let active = 0; // when the person last did something

/** What the work on a task may use of the page. */
const desk = {
  get round() {
    return round;
  },
  changed() {
    draft.changed();
    check();
  },
  announce,
  focus: () => work.focus(),
};

/** Start: words, person, instructions, first task. */
async function begin() {
  takeToken();
  await loadWords(byId("language"));
  forgetOldDrafts();
  await enter();
  outbox = new Outbox(round, waiting);
  byId("run").textContent = round.run;
  byId("to-progress").hidden = !round.lead;
  byId("me").hidden = round.tokens;
  byId("me").append(round.labeller);
  byId("submit-key").textContent = round.kind === "demonstrations" ? "Ctrl+Enter" : "Enter";
  const read = `read.${round.id}.${round.instructions_id}.${round.labeller}`;
  if (!recall(read)) await showGuide(round);
  keep(read, true);
  await (outbox.pending ? deliver() : next());
}

/** Ask for the round until the server knows the person. */
async function enter() {
  round = await insist("/api/round", undefined, waiting);
  while (round.labeller === null) {
    if (round.tokens) throw new Error(say("no_token"));
    setName(await askName());
    round = await insist("/api/round", undefined, waiting);
  }
}

function waiting(isWaiting) {
  banner(isWaiting ? say(outbox?.pending ? "not_saved" : "no_answer") : "");
}

/** Do something with the server; meanwhile the person can change nothing. */
async function exclusively(act) {
  if (busy) return;
  lock((busy = true));
  fault("");
  await act().catch((error) => fault(fromServer(error)));
  lock((busy = false));
  if (work && !document.querySelector("dialog[open]")) work.focus();
}

/** Show the next task, or the held one again. */
async function next(said = "", unfinished = null) {
  show(await insist("/api/next", {}, waiting), said, unfinished);
}

/** Show a task. `unfinished` is what the person did with it before it expired. */
function show(answer, said = "", unfinished = null) {
  draft?.save();
  ({ task, counts } = answer);
  clearTimeout(looking);
  clearInterval(holding);
  showCounts(counts, task);
  byId("send").hidden = false;
  for (const name of ["skip", "submit"]) byId(name).hidden = !task;
  if (!task) return showEnd(said);
  const restored = takeUp(unfinished);
  scrollTo(0, 0);
  announce([said, say("task", position(counts)), restored ? say("restored") : ""].join(" ").trim());
}

/** Let the person work on the task. Returns whether a draft of it was there. */
function takeUp(unfinished) {
  holding = setInterval(hold, Math.min(MINUTE, (1000 * task.expires_in) / 3));
  draft = new Draft(round.id, task.showing, () => ({ work: work.state, seconds: clock.seconds }));
  const kept = draft.read();
  clock.restart(kept?.seconds ?? task.seconds);
  lay();
  if (kept) work.state = kept.work;
  else if (task.earlier) recallEarlier();
  else if (unfinished && unfinished.key === keyOf(task)) work.state = unfinished.state;
  check();
  return kept !== null;
}

/** Show what was submitted before. It is a draft now, which a reload brings back. */
function recallEarlier() {
  work.recall(task.earlier);
  draft.changed();
}

/** Put the task on the page, as if nothing was done with it. */
function lay() {
  showPrompt(task.prompt);
  const given = round.continues_text ? givenText(task.prompt) : "";
  work = new KINDS[round.kind](task, given, desk);
  byId("work").replaceChildren(make("p", "note", say(`hint_${round.kind}`)), work.element);
}

/** No task is left for now: others may hold the last ones, and not finish them. */
function showEnd(said) {
  const wasEnd = byId("work").querySelector(".end");
  work = draft = null;
  hidePrompt();
  layEnd();
  showMissing(null, false);
  if (!wasEnd) announce(`${said} ${say("none_left")}`.trim());
  looking = setTimeout(() => exclusively(next), LOOK_AGAIN);
}

const layEnd = () => byId("work").replaceChildren(make("p", "end", say("none_left")));

/** Say what is missing before the person can submit. */
function check() {
  showMissing(work.missing, "confirm" in work);
}

const keyOf = ({ prompt, answers }) => JSON.stringify([prompt, answers]);

function submit() {
  if (busy || !work) return;
  if (work.missing) return urge();
  send("/api/submit", work.result);
}

async function skip() {
  if (busy || !work) return;
  const { showing } = task;
  const reason = await askReason(round.skip_reasons);
  if (!reason) return;
  if (task?.showing === showing) send("/api/skip", reason);
  else fault(say("expired")); // another task came while the reason was asked
}

function send(path, content) {
  exclusively(async () => {
    outbox.put(path, { showing: task.showing, seconds: clock.seconds, ...content });
    await deliver();
  });
}

/** Deliver what is in the outbox, then go on. */
async function deliver() {
  const { showing } = outbox.pending.body;
  try {
    await outbox.deliver();
  } catch (error) {
    if (isExpired(error)) return expired();
    if (!task && error.status !== 401) await next();
    throw error;
  }
  (draft ?? new Draft(round.id, showing)).remove();
  draft = null;
  await next(say("saved"));
}

/** The person had the task for too long. */
async function expired() {
  const unfinished = task && { key: keyOf(task), state: work.state };
  await next(say("expired"), unfinished);
  fault(say("expired"));
}

/** Take back the last submission. If its answer is lost, the server says what is held now. */
function undo() {
  exclusively(async () => {
    const answer = await ask("/api/undo", {}).catch((error) => (error.status ? Promise.reject(error) : null));
    if (answer === null) return next();
    if (!answer.task) return announce(say("nothing_to_undo"));
    show(answer, say("undone"));
  });
}

/** Keep the task while the person is active. */
async function hold() {
  if (busy || !task || document.hidden || Date.now() - active > MINUTE) return;
  const { showing } = task;
  await ask("/api/hold", { showing }).catch((error) => {
    if (isExpired(error) && task?.showing === showing) exclusively(expired);
  });
}

/** Show the page in another language; the work stays as it is. */
function translate() {
  if (counts) showCounts(counts, task);
  if (!work && counts) layEnd();
  if (!work) return;
  const { state } = work;
  lay();
  work.state = state;
  check();
}

byId("send").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
byId("confirm").addEventListener("click", () => work.confirm());
byId("skip").addEventListener("click", skip);
byId("undo").addEventListener("click", undo);
byId("me").addEventListener("click", async () => {
  const name = await askName(round.labeller);
  if (name === null) return;
  setName(name);
  location.reload();
});
byId("show-guide").addEventListener("click", () => showGuide(round));
byId("show-keys").addEventListener("click", () => showKeys(round.kind));
onKeys({
  work: () => (busy ? null : work),
  submit,
  submitsOnEnter: () => round?.kind !== "demonstrations",
  acts: { s: skip, u: undo, p: togglePrompt, "?": () => showKeys(round.kind) },
});
byId("short-keys").addEventListener("change", ({ target }) => useShortKeys(target.checked));
document.addEventListener("language", translate);
for (const type of ["pagehide", "visibilitychange"]) addEventListener(type, () => draft?.save());
for (const type of ["keydown", "pointerdown", "pointermove", "wheel"]) {
  addEventListener(type, () => (active = Date.now()), { passive: true });
}
exclusively(begin);
