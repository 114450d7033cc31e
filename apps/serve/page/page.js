// The page: two policies answer one prompt with the same noise.
import { answer, get, Refused, score } from "./client.js";

const byId = (id) => document.getElementById(id);
const columns = [...document.querySelectorAll(".column")].map((column) => ({
  policy: column.querySelector(".policy"),
  text: column.querySelector(".text"),
  note: column.querySelector(".note"),
}));
let run = null; // what the server says of the run
let running = null; // stops the answers in progress

const key = () => byId("key").value;
const fault = (message) => (byId("fault").textContent = message);

/** Show an error; if the key is missing or wrong, also the field for it. */
function show(error) {
  if (error.name === "AbortError") return;
  if (error instanceof Refused && error.status === 401) byId("key-field").hidden = false;
  fault(error.message);
}

/** Ask the server for the run, and fill in the policies and the run's own settings. */
async function begin() {
  run = await get("/v1/run", key());
  fault("");
  byId("run").textContent = run.name;
  byId("temperature").value = run.sampling.temperature;
  byId("tokens").value = run.max_tokens;
  if (run.continues_text) byId("way").textContent = "Two policies continue one text, with the same noise.";
  const newest = run.policies.slice(-2);
  columns.forEach(({ policy }, number) => {
    policy.replaceChildren(...run.policies.map((name) => new Option(name, name)));
    policy.value = newest[number] ?? newest[0];
  });
}

/** The request that the form describes, without the policy. */
function request() {
  return {
    messages: [{ role: "user", content: byId("prompt").value }],
    seed: Number(byId("seed").value),
    temperature: Number(byId("temperature").value),
    max_tokens: Number(byId("tokens").value),
  };
}

/** Let one column answer, then show the score. */
async function fill({ policy, text, note }, body, signal) {
  text.replaceChildren();
  text.setAttribute("aria-busy", "true");
  note.textContent = "";
  const prompt = body.messages[0].content;
  if (run.continues_text) {
    const given = document.createElement("span");
    given.className = "given";
    given.textContent = prompt;
    text.append(given);
  }
  try {
    const stream = answer({ ...body, model: policy.value }, key(), signal);
    let said = "";
    let step = await stream.next();
    for (; !step.done; step = await stream.next()) {
      said += step.value;
      text.append(step.value);
    }
    text.setAttribute("aria-busy", "false");
    const cut = step.value === "length" ? "cut at the longest answer" : "";
    note.textContent = cut;
    if (run.scores) addScore(note, await score(prompt, said, step.value === "stop", key(), signal), cut);
  } finally {
    text.setAttribute("aria-busy", "false");
  }
}

/** Write the score in front of the note. */
function addScore(note, value, cut) {
  const number = document.createElement("b");
  number.textContent = (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);
  note.replaceChildren("score ", number, cut ? ` · ${cut}` : "");
}

/** Let both columns answer. A new request ends the one in progress. */
async function compare() {
  stop();
  fault("");
  const mine = (running = new AbortController());
  byId("stop").disabled = false;
  try {
    if (!run) await begin();
    const body = request();
    await Promise.all(columns.map((column) => fill(column, body, mine.signal)));
  } catch (error) {
    show(error);
    mine.abort();
  } finally {
    if (running === mine) stop();
  }
}

/** End the answers in progress. */
function stop() {
  running?.abort();
  running = null;
  byId("stop").disabled = true;
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  compare();
});
byId("stop").addEventListener("click", stop);
byId("key").addEventListener("change", () => begin().catch(show));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
});
begin().catch(show);
