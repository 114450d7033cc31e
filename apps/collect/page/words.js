// The words of the page: texts.json has all of them, in each language.
import { keep, recall } from "./keep.js";

let all = null;
let words = null;

/** Fetch the words and use the person's language. The select offers all languages. */
export async function loadWords(select) {
  all = await (await fetch("/page/texts.json")).json();
  const wanted = [recall("language"), navigator.language.slice(0, 2)];
  use(wanted.find((name) => Object.hasOwn(all, name)) ?? "en");
  for (const [name, texts] of Object.entries(all)) select.add(new Option(texts.language, name));
  select.value = document.documentElement.lang;
  select.addEventListener("change", () => {
    keep("language", select.value);
    use(select.value);
    document.dispatchEvent(new Event("language"));
  });
}

/** A text, its {names} replaced by values. */
export function say(key, values = {}) {
  return words[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Whether there is such a text. */
export const known = (key) => Object.hasOwn(words, key);

/** "second" */
export const ordinal = (number) => words.ordinals[number - 1] ?? String(number);

/** "four" */
export const cardinal = (number) => words.cardinals[number - 1] ?? String(number);

/** A number with three significant digits; whole numbers are exact. */
export function figure(number) {
  const digits = Number.isInteger(number) ? {} : { maximumSignificantDigits: 3 };
  return new Intl.NumberFormat(document.documentElement.lang, digits).format(number);
}

/** A share as a percentage: "72.6 %". */
export const percent = (share) => number(share, { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });

/** Two decimals: "−0.33". */
export const decimals = (value) => number(value, { minimumFractionDigits: 2, maximumFractionDigits: 2 });

function number(value, options) {
  return new Intl.NumberFormat(document.documentElement.lang, options).format(value).replace("-", "−");
}

/** What went wrong, in the person's language if the server gives a code that is known here. */
export function fromServer({ status, code, message }) {
  if (!status) return message; // it is the page's own
  const key = status === 401 ? "unknown_labeller" : `error_${code}`;
  return known(key) ? say(key) : say("error", { status, message });
}

/** Use a language from now on, and in all elements that name their text. */
function use(language) {
  words = all[language];
  document.documentElement.lang = language;
  const write = {
    text: (element, text) => (element.textContent = text),
    label: (element, text) => (element.ariaLabel = text),
    title: (element, text) => (element.title = text),
  };
  for (const [kind, put] of Object.entries(write)) {
    const elements = document.querySelectorAll(`[data-${kind}]`);
    for (const element of elements) put(element, say(element.dataset[kind]));
  }
}
