// One clip, a number from 0, the worst, to 1, the best.

export class Rating {
  name = "rating";
  #isRated = false;

  constructor(desk) {
    this.desk = desk;
    this.slider = document.getElementById("rating-slider");
    this.value = document.getElementById("rating-value");
    this.button = document.getElementById("send-rating");
    // A click in the middle rates as well, though it moves nothing.
    for (const name of ["input", "pointerup"]) this.slider.addEventListener(name, () => this.#rated());
    this.button.addEventListener("click", () => this.#send());
  }

  show() {
    this.#isRated = false;
    this.slider.value = "0.5";
    this.slider.setAttribute("aria-valuetext", "not rated yet");
    this.value.textContent = "not rated yet";
  }

  press(key) {
    if (/^[1-9]$/.test(key)) {
      this.slider.value = String((Number(key) - 1) / 8);
      this.#rated();
    } else if (key === "Enter") this.#send();
    else return false;
    return true;
  }

  #rated() {
    this.#isRated = true;
    const text = `${Math.round(Number(this.slider.value) * 100)} of 100`;
    this.value.textContent = text;
    this.slider.setAttribute("aria-valuetext", text);
  }

  #send() {
    if (!this.#isRated) return this.desk.hint("Rate the clip first: move the slider, or press 1 to 9.");
    this.desk.answer({ rating: Number(this.slider.value) }, this.value.textContent);
  }
}
