// The server's interface: who asks, one request, and a request that is repeated until the server answers.
import { keep, recall } from "./keep.js";

const TIMEOUT = 20_000;
const LONGEST_WAIT = 15_000;
const TOKEN = "tristage.collect.token";
const LATER = new Set([408, 429]); // as with 5xx, the same request may succeed later

/** The server refuses a request. */
export class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let token = null;
let name = recall("name");

/** Take the token out of the address, where others would see it; or use the one of this tab. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) history.replaceState(null, "", location.pathname + location.search);
  token = given;
  try {
    if (given) sessionStorage.setItem(TOKEN, given);
    else token = sessionStorage.getItem(TOKEN);
  } catch {
    // The browser keeps nothing. After a reload, the person opens the link again.
  }
}

export function setName(its) {
  name = its;
  keep("name", its);
}

function identity() {
  if (token) return { Authorization: `Bearer ${token}` };
  return name ? { "X-Labeller": encodeURIComponent(name) } : {};
}

/** One request; `body` is sent as JSON. Throws Refused, or another error if no answer comes. */
export async function ask(path, body) {
  const headers = identity();
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, {
    method: body ? "POST" : "GET",
    headers,
    body: body && JSON.stringify(body),
    cache: "no-store",
    signal: AbortSignal.timeout(TIMEOUT),
  });
  if (response.ok) return response.json();
  const content = await response.json().catch(() => null);
  const error = content?.error;
  throw new Refused(response.status, error?.code ?? null, error?.message ?? `status ${response.status}`);
}

/** The same request until the server answers it. `waiting(true)` is called before each further attempt. */
export async function insist(path, body, waiting) {
  for (let attempt = 0; ; attempt++) {
    try {
      const answer = await ask(path, body);
      waiting(false);
      return answer;
    } catch (error) {
      if (isFinal(error)) {
        waiting(false);
        throw error;
      }
      waiting(true);
      await pause(Math.min(LONGEST_WAIT, 1000 * 2 ** attempt));
    }
  }
}

const isFinal = (error) => error instanceof Refused && error.status < 500 && !LATER.has(error.status);

/** Wait, but not after the network has come back. */
function pause(milliseconds) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      removeEventListener("online", done);
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    addEventListener("online", done);
  });
}
