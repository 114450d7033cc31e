// The prompt, always in sight above the answers.
import { lastWords, make, Passage } from "./passage.js";
import { known, say } from "./words.js";

const byId = (id) => document.getElementById(id);
const section = byId("prompt");
const box = byId("turns");
const whole = byId("whole-prompt");

/** Show a conversation, or a text that is continued. A conversation ends with what is to be answered. */
export function showPrompt(prompt) {
  const turns = typeof prompt === "string" ? [{ role: null, content: prompt }] : prompt;
  section.hidden = false;
  box.replaceChildren(...turns.map(turn));
  unfold(false);
  box.scrollTop = turns.length > 1 ? box.lastChild.offsetTop - box.offsetTop : 0;
}

export const hidePrompt = () => (section.hidden = true);

/** The text in front of an answer that continues the prompt. */
export const givenText = (prompt) => lastWords(typeof prompt === "string" ? prompt : prompt.at(-1).content);

/** Show as much of the prompt as the window holds, or a few lines. */
export const togglePrompt = () => unfold(!section.classList.contains("whole"));

function turn({ role, content }) {
  const passage = new Passage(content);
  if (role === null) return passage.element;
  const name = known(`role_${role}`) ? say(`role_${role}`) : role;
  return make("div", "turn", make("h3", "", name), passage.element);
}

function unfold(open) {
  section.classList.toggle("whole", open);
  whole.ariaExpanded = String(open);
  whole.replaceChildren(say(open ? "less_prompt" : "more_prompt"), " ", make("kbd", "", "p"));
  measure();
}

/** Offer the button if it helps. Tell the CSS how much of the window the prompt covers. */
function measure() {
  whole.hidden = !section.classList.contains("whole") && box.scrollHeight <= box.clientHeight + 1;
  document.documentElement.style.setProperty("--covered", `${section.offsetHeight}px`);
}

whole.addEventListener("click", togglePrompt);
new ResizeObserver(measure).observe(box);
