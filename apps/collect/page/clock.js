// How long a person works on a task: the time for which the page is in sight.

export class Clock {
  #before = 0; // milliseconds up to the last time the page came into sight
  #since = null;

  constructor() {
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#stop() : this.#go()));
  }

  restart(seconds = 0) {
    this.#before = seconds * 1000;
    this.#since = null;
    if (!document.hidden) this.#go();
  }

  get seconds() {
    const running = this.#since === null ? 0 : performance.now() - this.#since;
    return Math.round((this.#before + running) / 100) / 10;
  }

  #go() {
    this.#since = performance.now();
  }

  #stop() {
    if (this.#since !== null) this.#before += performance.now() - this.#since;
    this.#since = null;
  }
}
