// The person acts: the service steps the environment, this page shows what it draws and keeps the actions.

import { call, callUntilAnswered } from "./api.js";

const ARROWS = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" };

export class Demonstration {
  name = "demonstration";
  #actions = [];
  #seed = null;
  #names = [];
  #isOver = false;
  #isStepping = false;
  #assignment = null;

  constructor(desk) {
    this.desk = desk;
    this.frame = document.getElementById("demo-frame");
    this.status = document.getElementById("demo-status");
    this.pad = document.getElementById("demo-actions");
    this.sender = document.getElementById("demo-send");
    this.sender.addEventListener("click", () => this.#send());
    document.getElementById("demo-again").addEventListener("click", () => this.#start());
  }

  show(assignment) {
    this.#assignment = assignment;
    this.frame.hidden = true;
    this.pad.replaceChildren();
    void this.#start();
  }

  press(key) {
    if (key === "Enter") this.#send();
    else if (key === "r") void this.#start();
    else {
      const action = this.#actionOf(key);
      if (action === null) return false;
      void this.#step(action);
    }
    return true;
  }

  #actionOf(key) {
    if (/^[1-9]$/.test(key)) return Number(key) <= this.#names.length ? Number(key) - 1 : null;
    if (!ARROWS[key]) return null;
    // "turn left" and "left" are meant by the left arrow; "up" is also "forward".
    const words = ARROWS[key] === "up" ? ["up", "forward"] : ARROWS[key] === "down" ? ["down", "back"] : [ARROWS[key]];
    const index = this.#names.findIndex((name) => words.some((word) => name.toLowerCase().split(/\W+/).includes(word)));
    return index < 0 ? null : index;
  }

  async #start() {
    this.#actions = [];
    this.#seed = null;
    this.#isOver = false;
    await this.#ask([]);
  }

  async #step(action) {
    if (this.#isOver) return this.desk.hint("The episode is over: send it, or start again.");
    if (this.#seed !== null) await this.#ask([...this.#actions, action]);
    return undefined;
  }

  /** One step at a time: a key that comes before the picture of the last one is not meant for it. */
  async #ask(actions) {
    if (this.#isStepping) return;
    this.#isStepping = true;
    const assignment = this.#assignment;
    const body = { assignment_id: assignment.assignment_id, reset_seed: this.#seed, actions };
    try {
      const view = actions.length ? await call("POST", "/demonstrations", body)
        : await callUntilAnswered("POST", "/demonstrations", body, () => { this.status.textContent = "No connection: one moment"; });
      if (assignment !== this.#assignment) return;
      this.#actions = actions;
      this.#seed = view.reset_seed;
      this.#isOver = view.is_over;
      this.frame.src = view.frame;
      this.frame.hidden = false;
      if (!this.pad.children.length) this.#showActions(view.action_names);
      const steps = actions.length === 1 ? "1 step" : `${actions.length} steps`;
      this.status.textContent = view.is_over ? `Over after ${steps}. Send it, or start again.` : steps;
    } catch (error) {
      this.status.textContent = `That step did not arrive (${error.message}). Try again.`;
    } finally {
      this.#isStepping = false;
      this.sender.setAttribute("aria-disabled", String(!this.#actions.length));
      if (assignment !== this.#assignment) void this.#start();  // What came next has waited for this reply.
    }
  }

  #showActions(names) {
    this.#names = names;
    this.pad.replaceChildren(...names.map((name, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "button";
      const key = document.createElement("kbd");
      key.textContent = String(index + 1);
      key.setAttribute("aria-hidden", "true");
      if (index < 9) button.append(key, " ");
      button.append(name);
      button.addEventListener("click", () => this.#step(index));
      return button;
    }));
  }

  #send() {
    if (!this.#actions.length) return this.desk.hint("Act first: press the keys or buttons of the actions.");
    this.desk.answer({ actions: this.#actions, reset_seed: this.#seed }, "Demonstration");
    return undefined;
  }
}
