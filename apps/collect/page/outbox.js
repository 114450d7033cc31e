// What the person has sent and the server has not yet confirmed. It outlives the page.
import { insist, Refused } from "./client.js";
import { forget, keep, recall } from "./keep.js";

const EXPIRED = "unknown_showing";

/** 128 random bits. crypto.randomUUID exists only on HTTPS and on this machine. */
function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

/** Whether the server no longer keeps a task for this person. */
export const isExpired = (error) => error instanceof Refused && error.code === EXPIRED;

export class Outbox {
  #name;
  #waiting;

  /** `waiting(true)` is called while the server does not answer. */
  constructor({ id, labeller }, waiting) {
    this.#name = `pending.${id}.${labeller}`;
    this.#waiting = waiting;
    this.pending = recall(this.#name);
    addEventListener("beforeunload", (event) => this.pending && event.preventDefault());
  }

  /** Take a submission or a skip. Its id stays the same in all attempts. */
  put(path, body) {
    this.pending = { path, body: { ...body, submission: uuid() } };
    keep(this.#name, this.pending);
  }

  /** Deliver what was put, however long it takes. If the server refuses it, that is thrown. */
  async deliver() {
    const { path, body } = this.pending;
    try {
      await insist(path, body, this.#waiting);
      this.#settle();
    } catch (error) {
      if (error.status !== 401) this.#settle();
      throw error;
    }
  }

  #settle() {
    this.pending = null;
    forget(this.#name);
  }
}
