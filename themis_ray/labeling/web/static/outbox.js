// Answers on their way out. They are written down before they are sent and crossed out when the service has them, so
// neither a lost connection nor a closed page loses one; their ids are their own, so none counts twice.

import { call, NoAnswer, waitToTryAgain } from "./api.js";

/** An id that nobody else chooses; randomUUID is there on https only. */
export function newId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

/**
 * Sends answers one after another. Events: `state` (saved, saving, offline, busy, refused), `receipt` (of an answer),
 * `dropped` (the service does not want it: its lease had run out, or it was wrong).
 */
export class Outbox extends EventTarget {
  #prefix;
  #answers;
  #isSending = false;
  #inFlight = null;
  #state = "saved";

  constructor(owner) {
    super();
    this.#prefix = `themis-outbox-${owner}-`;
    this.#answers = this.#read();
  }

  get size() { return this.#answers.length; }
  get assignmentIds() { return new Set(this.#answers.map((answer) => answer.assignment_id)); }

  /** Writes an answer down and starts to send. */
  add(answer) {
    this.#answers.push(answer);
    this.#note(answer);
    if (this.#isSending) this.#say(this.#state);  // One more waits for the same.
    this.flush();
  }

  /** Takes an answer back that has not left yet; false: it has. */
  takeBack(answerId) {
    if (this.#inFlight === answerId) return false;
    const index = this.#answers.findIndex((answer) => answer.answer_id === answerId);
    if (index < 0) return false;
    this.#answers.splice(index, 1);
    this.#forget(answerId);
    return true;
  }

  /** Resolves when nothing waits any more. */
  async emptied() {
    while (this.#answers.length) await new Promise((resolve) => this.addEventListener("sent", resolve, { once: true }));
  }

  async flush() {
    if (this.#isSending) return;
    this.#isSending = true;
    let attempt = 0;
    while (this.#answers.length) {
      const answer = this.#answers[0];
      this.#inFlight = answer.answer_id;
      if (!attempt) this.#say("saving");
      try {
        const receipt = await call("POST", "/answers", answer);
        this.#cross(answer);
        attempt = 0;
        this.#tell("receipt", { answer, receipt });
      } catch (error) {
        if (error instanceof NoAnswer || error.isForLater || error.status >= 500) {
          // It may have arrived, so it stays the same answer; but while it waits here it can be taken back no more.
          this.#say(error.isForLater ? "busy" : "offline");
          await waitToTryAgain(attempt++, error.retryAfterS);
          continue;
        }
        if (error.status === 401 || error.status === 403) {
          this.#say("refused");
          break;
        }
        this.#cross(answer);
        attempt = 0;
        this.#tell("dropped", { answer, error });
      }
      this.#tell("sent", {});
    }
    this.#inFlight = null;
    this.#isSending = false;
    if (!this.#answers.length) this.#say("saved");
  }

  #cross(answer) {
    this.#answers = this.#answers.filter((other) => other.answer_id !== answer.answer_id);
    this.#inFlight = null;
    this.#forget(answer.answer_id);
  }

  #say(state) {
    this.#state = state;
    this.#tell("state", { state, size: this.size });
  }

  #tell(name, detail) { this.dispatchEvent(new CustomEvent(name, { detail })); }

  // One entry for each answer, so that two tabs do not write over each other. What a closed tab left is read here.
  #read() {
    const found = [];
    try {
      for (const key of Object.keys(localStorage)) {
        if (key.startsWith(this.#prefix)) found.push(JSON.parse(localStorage.getItem(key)));
      }
    } catch { /* No storage in this browser: answers live as long as the page. */ }
    found.sort((a, b) => a.notedAt - b.notedAt);
    return found.map((entry) => entry.answer);
  }

  #note(answer) {
    try {
      localStorage.setItem(this.#prefix + answer.answer_id, JSON.stringify({ notedAt: Date.now(), answer }));
    } catch { /* As above. */ }
  }

  #forget(answerId) {
    try { localStorage.removeItem(this.#prefix + answerId); } catch { /* As above. */ }
  }
}
