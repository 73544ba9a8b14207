// Two clips, four answers.

const KEYS = {
  ArrowLeft: "left", ArrowRight: "right", ArrowUp: "equal", "=": "equal", 0: "equal", e: "equal", ArrowDown: "skip", s: "skip",
};
const WORDS = { left: "Left", right: "Right", equal: "Equal", skip: "Can’t tell" };

export class Pairwise {
  name = "pairwise";

  constructor(desk) {
    this.desk = desk;
    this.buttons = [...document.querySelectorAll("[data-choice]")];
    for (const button of this.buttons) button.addEventListener("click", () => this.#choose(button.dataset.choice));
  }

  show() {
    for (const button of this.buttons) button.classList.remove("chosen");
    this.desk.stage.classList.remove("answered");
  }

  press(key) {
    const choice = KEYS[key];
    if (choice) this.#choose(choice);
    return Boolean(choice);
  }

  #choose(choice) {
    if (!this.desk.answer({ choice }, WORDS[choice])) return;
    this.desk.stage.classList.add("answered");
    for (const button of this.buttons) button.classList.toggle("chosen", button.dataset.choice === choice);
  }
}
