// One clip whose frames are marked good or bad while it runs.

const KEYS = { g: 1, b: -1, x: 0 };

export class Steps {
  name = "steps";
  #marks = new Int8Array(0);
  #held = null;       // The mark that is put on every frame that passes.
  #lastFrame = 0;

  constructor(desk) {
    this.desk = desk;
    this.canvas = document.getElementById("strip");
    this.buttons = [...document.querySelectorAll("[data-mark]")];
    for (const button of this.buttons) {
      const mark = Number(button.dataset.mark);
      button.addEventListener("pointerdown", (event) => {
        if (event.button === 0) this.#hold(mark);
      });
      // The keyboard and screen readers click without a pointer.
      button.addEventListener("click", (event) => { if (event.detail === 0) { this.#hold(mark); this.#release(); } });
    }
    for (const name of ["pointerup", "pointercancel", "blur"]) addEventListener(name, () => this.#release());
    addEventListener("keyup", (event) => { if (KEYS[event.key.toLowerCase()] === this.#held) this.#release(); });
    document.getElementById("send-steps").addEventListener("click", () => this.#send());
    new ResizeObserver(() => this.#draw()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
  }

  show(assignment, player) {
    this.#marks = new Int8Array(assignment.left.num_frames);
    this.#release();
    this.player = player;
    player.addEventListener("frame", () => this.#pass());
    player.addEventListener("loop", () => { this.#lastFrame = 0; });
    this.#draw();
  }

  press(key) {
    if (key in KEYS) this.#hold(KEYS[key]);
    else if (key === "Enter") this.#send();
    else return false;
    return true;
  }

  #hold(mark) {
    if (!this.player) return;
    this.#held = mark;
    this.#lastFrame = this.player.frame;
    for (const button of this.buttons) button.classList.toggle("is-held", Number(button.dataset.mark) === mark);
    this.#pass();
  }

  #release() {
    if (this.#held === null) return;
    this.#held = null;
    for (const button of this.buttons) button.classList.remove("is-held");
    this.#tell();
  }

  #pass() {
    const frame = this.player.frame;
    if (this.#held !== null) {
      // Frames that were shown between two looks are marked too; a jump back is no passing.
      const first = frame - this.#lastFrame > 0 && frame - this.#lastFrame < 12 ? this.#lastFrame + 1 : frame;
      this.#marks.fill(this.#held, first, frame + 1);
    }
    this.#lastFrame = frame;
    this.#draw();
  }

  #tell() {
    const count = (mark) => this.#marks.filter((other) => other === mark).length;
    const text = `${count(1)} frames good, ${count(-1)} bad, of ${this.#marks.length}`;
    this.canvas.setAttribute("aria-label", text);
  }

  #draw() {
    const { canvas } = this;
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    const context = canvas.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const width = canvas.width / Math.max(1, this.#marks.length);
    const middle = canvas.height / 2;
    context.fillStyle = colour("--line-strong");
    context.fillRect(0, middle - ratio / 2, canvas.width, ratio);
    this.#marks.forEach((mark, frame) => {
      if (!mark) return;
      // Good stands above the middle, bad below: colour is not all that tells them apart.
      context.fillStyle = colour(mark > 0 ? "--good" : "--bad");
      context.fillRect(frame * width, mark > 0 ? 0 : middle, Math.ceil(width), middle);
    });
    context.fillStyle = colour("--ink");
    context.fillRect(Math.min((this.player?.frame ?? 0) * width, canvas.width - 2 * ratio), 0, 2 * ratio, canvas.height);
  }

  #send() {
    this.#release();
    this.desk.answer({ steps: [...this.#marks] }, "Marks");
  }
}
