// The desk: what is to be answered, what is shown, what was answered last.

import { address, call, callUntilAnswered, pause, serverNow } from "./api.js";
import { fetchClip } from "./clips.js";
import { Demonstration } from "./demonstration.js";
import { announce, isDialogOpen, notice, open, say } from "./dialogs.js";
import { onKeys } from "./keys.js";
import { newId, Outbox } from "./outbox.js";
import { Pairwise } from "./pairwise.js";
import { Player } from "./player.js";
import { Rating } from "./rating.js";
import { Steps } from "./steps.js";

const NUM_HELD = 3;
const LOOK_AGAIN_S = [5, 5, 10, 15, 30];
const CHOSEN_MS = 160;
const LEASE_MARGIN_MS = 2000;
const SPEEDS = [0.25, 0.5, 1, 1.5, 2, 4];
const WANTS_CALM = matchMedia("(prefers-reduced-motion: reduce)");

const byId = (id) => document.getElementById(id);

class Desk {
  stage = byId("stage");
  #element = byId("desk");
  #settings = this.#element.dataset;
  #outbox = new Outbox(this.#settings.annotator);
  #modes;
  #held = [];            // Assignments in the order in which they are to be answered; the first is shown.
  #done = new Set();     // Assignments that were answered here.
  #prepared = new Map(); // Players by assignment, loaded before they are needed.
  #current = null;
  #isBusy = true;        // No key counts: nothing is shown, or an answer is on its way to the eye.
  #last = [];            // What may be undone, youngest last: {answer, assignment}; of a page before this without the assignment.
  #numAnswered = Number(this.#settings.numAnswered);
  #stageName = this.#settings.stage;
  #numSinceBreak = 0;
  #numLooks = 0;
  #speed = 1;
  #maxDrift = 0;

  async start() {
    this.#modes = Object.fromEntries(
      [new Pairwise(this), new Rating(this), new Steps(this), new Demonstration(this)].map((mode) => [mode.name, mode]),
    );
    this.#listen();
    const { lastAnswer } = this.#settings;
    if (lastAnswer) this.#last.push({ answer: { answer_id: lastAnswer }, assignment: {} });
    this.#showProgress();
    const instructions = byId("instructions");
    const key = `themis-read-${this.#settings.annotator}`;
    if (instructions && !sessionStorage.getItem(key)) {
      await open(instructions);
      sessionStorage.setItem(key, "yes");
    }
    if (this.#outbox.size) this.#outbox.flush();
    await this.#look();
    requestAnimationFrame(() => this.#frame());
  }

  // ---------------------------------------------------------- work comes in

  async #look() {
    try {
      const onTrouble = () => this.#wait("No connection", "What you answered is kept. We go on as soon as the service answers.");
      this.#take(await callUntilAnswered("GET", `/assignments?count=${NUM_HELD}`, undefined, onTrouble));
    } catch (error) {
      // Another stage, or nobody that the service knows: the page of that stage says what is next.
      if ([401, 403, 409].includes(error.status)) return this.#leave();
      this.#wait("That did not work", error.message);
      await pause(15000);
      return this.#look();
    }
    this.#next();
  }

  /** Takes over what the service holds for this person. */
  #take(work, { isFirstNew = false } = {}) {
    const isPracticeOver = this.#stageName === "practice" && work.stage === "work";
    this.#stageName = work.stage;
    this.#isWaiting = work.is_waiting;
    this.#numAnswered = work.progress.num_answered;
    this.#settings.numTotal = work.progress.num_total;
    const pending = this.#outbox.assignmentIds;
    const open = work.assignments.filter((one) => !this.#done.has(one.assignment_id) && !pending.has(one.assignment_id));
    const current = this.#current && !this.#current.isAnswered && !isFirstNew ? this.#current.assignment : null;
    const others = open.filter((one) => one.assignment_id !== current?.assignment_id);
    this.#held = current ? [current, ...others] : others;
    this.#showProgress();
    for (const assignment of this.#held) this.#prepare(assignment);
    this.#forgetUnneeded();
    return isPracticeOver;
  }

  #isWaiting = false;

  /** Loads a pair's clips into a player. */
  #prepare(assignment) {
    if (assignment.feedback === "demonstration") return Promise.resolve(null);
    let prepared = this.#prepared.get(assignment.assignment_id);
    if (!prepared) {
      const views = [assignment.left, assignment.right].filter(Boolean);
      const isExplained = views.every((view) => view.overlay_url);
      const reels = [views.map((view) => view.url), ...(isExplained ? [views.map((view) => view.overlay_url)] : [])];
      prepared = Promise.all(reels.map((urls) => Promise.all(urls.map(fetchClip)))).then(async (addresses) => {
        const player = new Player(views, ...addresses);
        player.addEventListener("reel", () => this.#putReel(player));
        await player.loaded();
        return player;
      });
      prepared.catch(() => this.#prepared.delete(assignment.assignment_id));
      this.#prepared.set(assignment.assignment_id, prepared);
    }
    return prepared;
  }

  #forgetUnneeded() {
    const needed = new Set(this.#held.map((one) => one.assignment_id));
    if (this.#current) needed.add(this.#current.assignment.assignment_id);
    for (const { assignment } of this.#last.slice(-1)) needed.add(assignment.assignment_id);
    for (const [id, prepared] of this.#prepared) {
      if (needed.has(id)) continue;
      this.#prepared.delete(id);
      prepared.then((player) => player.dispose(), () => {});
    }
  }

  /** Shows what is next: a pair, the page of another stage, or that there is nothing to do now. */
  async #next() {
    const turn = ++this.#turn;
    this.#held = this.#held.filter((one) => Date.parse(one.leased_until) - serverNow() > LEASE_MARGIN_MS);
    if (this.#held.length) {
      this.#numLooks = 0;
      return this.#show(this.#held[0]);
    }
    this.#clear();
    if (!["practice", "work"].includes(this.#stageName)) {
      if (this.#outbox.size) this.#wait("Almost done", "Your last answers are on their way.");
      await this.#outbox.emptied();
      return turn === this.#turn ? this.#leave() : undefined;
    }
    if (this.#outbox.size) {
      // What comes next is in the answer to the last of them.
      this.#wait("One moment", "Your answers are on their way, then it goes on.");
      await this.#outbox.emptied();
      if (turn !== this.#turn) return undefined;
      return this.#held.length ? this.#next() : this.#look();
    }
    const seconds = LOOK_AGAIN_S[Math.min(this.#numLooks, LOOK_AGAIN_S.length - 1)];
    if (this.#isWaiting || this.#numLooks) {
      const text = "There is nothing to do right now: the study may be paused, or the next clips are being made. "
        + "Leave this page open, it looks again by itself.";
      this.#wait("Waiting for the next clips", text, true);
      let look;
      const asked = new Promise((resolve) => { look = resolve; byId("look-again").addEventListener("click", resolve, { once: true }); });
      await Promise.race([pause(seconds * 1000), asked]);
      byId("look-again").removeEventListener("click", look);
      if (turn !== this.#turn) return undefined;
    }
    this.#numLooks++;
    return this.#look();
  }

  #turn = 0;

  async #show(assignment) {
    this.#turn++;
    this.#isBusy = true;
    this.#clear();
    const current = { assignment, player: null, isAnswered: false, firstShownAt: 0, numReplays: 0 };
    this.#current = current;
    const mode = this.#modes[assignment.feedback];
    byId("waiting").hidden = true;
    byId("working").hidden = false;
    this.stage.classList.add("loading");
    this.stage.classList.remove("answered");
    const isPair = Boolean(assignment.right);
    for (const id of ["card-left", "card-right"]) {
      byId(id).hidden = !isPair;
      byId(id).classList.remove("chosen");
    }
    byId("card-single").hidden = isPair;
    this.stage.hidden = assignment.feedback === "demonstration";
    // Without clips only undo is left of it.
    for (const part of byId("transport").children) part.hidden = this.stage.hidden && part.dataset.do !== "undo";
    byId("timeline").hidden = this.stage.hidden || assignment.feedback === "steps";
    this.stage.classList.toggle("single", !isPair);
    for (const part of document.querySelectorAll("[data-feedback]")) part.hidden = part.dataset.feedback !== assignment.feedback;
    byId("practice-badge").hidden = !assignment.is_practice;
    this.#showAnswerable();
    try {
      current.player = await this.#prepare(assignment);
    } catch {
      if (this.#current !== current) return;
      this.#clear();
      this.#wait("A clip did not load", "It is fetched again in a few seconds.");
      await pause(4000);
      return this.#look();
    }
    if (this.#current !== current) return;
    if (current.player) await this.#put(current);
    if (this.#current !== current) return;
    mode.show(assignment, current.player);
    current.firstShownAt = performance.now();
    this.#isBusy = false;
    const number = assignment.is_practice ? "Practice" : `${this.#numAnswered + this.#outbox.size + 1} of ${this.#settings.numTotal}`;
    announce(`${isPair ? "Pair" : "Clip"} ${number}${current.player?.hasExplanation ? ", with an explanation" : ""}`);
    this.#showAnswerable();
  }

  /** Puts a pair's videos on the screens and lets them run. */
  async #put(current) {
    const { player } = current;
    player.reset();  // After undo it is shown again.
    this.#putReel(player);
    this.stage.dataset.shape = player.isWide ? "wide" : "square";
    this.stage.classList.remove("loading");
    player.speed = this.#speed;
    player.isLooping = !WANTS_CALM.matches;
    player.addEventListener("change", () => this.#showMoving());
    if (WANTS_CALM.matches || isDialogOpen()) this.#showMoving();
    else {
      // What counts is time from the first picture on, and nothing is answered before it.
      const shown = new Promise((resolve) => player.addEventListener("shown", resolve, { once: true }));
      void player.replay();
      await Promise.race([shown, pause(3000)]);
    }
  }

  /** Puts the videos of a player on the screens: those with the explanation, or those without. */
  #putReel(player) {
    if (this.#current?.player !== player) return;
    const screens = this.#current.assignment.right ? ["screen-left", "screen-right"] : ["screen-single"];
    player.pictures.forEach((pictures, index) => byId(screens[index]).replaceChildren(...pictures));
    this.#showExplained();
  }

  #clear() {
    const { player } = this.#current ?? {};
    player?.pause();
    this.#current = null;
    for (const id of ["screen-left", "screen-right", "screen-single"]) byId(id).replaceChildren();
  }

  #wait(title, text, canLook = false) {
    this.#isBusy = true;
    byId("working").hidden = true;
    byId("waiting").hidden = false;
    byId("waiting-title").textContent = title;
    byId("waiting-text").textContent = text;
    byId("look-again").hidden = !canLook;
    byId("finish").hidden = !canLook || this.#stageName !== "work";
    if (title !== this.#saidWait) announce(title);
    this.#saidWait = title;
  }

  #saidWait = "";

  #leave() {
    this.#isBusy = true;
    location.assign(address(`/s/${this.#settings.study}`));  // A study of another tab may have been entered since.
  }

  // ---------------------------------------------------------- answers go out

  /** Sends an answer to what is shown; false where none counts now. */
  answer(fields, words) {
    const current = this.#current;
    if (this.#isBusy || !current || current.isAnswered) return false;
    const missing = this.#missingMs();
    if (missing > 0) {
      this.hint(`Watch a little longer: ${Math.ceil(missing / 1000)} s`);
      return false;
    }
    current.isAnswered = true;
    this.#isBusy = true;
    const { player, assignment } = current;
    player?.pause();
    const watchedMs = Math.round(player?.watchedMs ?? 0);
    const answer = {
      answer_id: newId(),
      assignment_id: assignment.assignment_id,
      ...fields,
      response_ms: Math.min(Math.round(performance.now() - current.firstShownAt), 86400000),
      watched_ms: Math.min(watchedMs, 86400000),
      num_replays: current.numReplays,
      speed: this.#speed,
      overlay_ms: Math.min(Math.round(player?.explainedMs ?? 0), 86400000),
      count: NUM_HELD,
    };
    this.#done.add(assignment.assignment_id);
    this.#held = this.#held.filter((one) => one !== assignment);
    this.#last.push({ answer, assignment });
    if (this.#last.length > 20) this.#last.shift();
    announce(`${words}.`);
    this.#outbox.add(answer);
    this.#showProgress();
    this.#afterAnswer(assignment);
    return true;
  }

  async #afterAnswer(assignment) {
    await pause(CHOSEN_MS);
    if (assignment.is_practice) {
      // What was expected is read before it goes on; the receipt, when it comes, goes on.
      return;
    }
    this.#numSinceBreak++;
    const every = Number(this.#settings.breakEvery);
    const left = Number(this.#settings.numTotal) - this.#numAnswered - this.#outbox.size;
    if (every && this.#numSinceBreak >= every && left > 0) {
      this.#numSinceBreak = 0;
      await say("Time for a short break", `That were ${every} answers. Look out of the window for a minute, then go on when you like.`);
    }
    if (!this.#current || this.#current.isAnswered) await this.#next();
  }

  async #receive(answer, receipt) {
    // An answer that a page before this has left is the last one only now that it is stored.
    if (!this.#last.some((one) => one.answer.answer_id === answer.answer_id)) this.#last.push({ answer, assignment: {} });
    const isPracticeOver = this.#take(receipt.work);
    if (!this.#current?.isAnswered || this.#current.assignment.assignment_id !== answer.assignment_id) return;
    if (!this.#current.assignment.is_practice) return;
    if (receipt.feedback) await say("Practice", receipt.feedback);
    if (isPracticeOver) await say("Practice is over", "From now on your answers count. Take the time that you need.", "Start");
    await this.#next();
  }

  async undo() {
    const last = this.#last.at(-1);
    if (!last || this.#isUndoing) return;
    this.#isUndoing = true;
    try {
      if (this.#outbox.takeBack(last.answer.answer_id)) {
        this.#last.pop();
        this.#done.delete(last.assignment.assignment_id);
        this.#held.unshift(last.assignment);
      } else {
        if (this.#outbox.size) notice("Your answers are sent first, then the last one is undone.");
        await this.#outbox.emptied();
        if (this.#last.at(-1) !== last) return;
        const work = await callUntilAnswered("POST", `/answers/${last.answer.answer_id}/undo`);
        this.#last.pop();
        this.#done.delete(last.assignment.assignment_id);
        this.#take(work, { isFirstNew: true });
      }
      this.#numSinceBreak = Math.max(0, this.#numSinceBreak - 1);
      this.#showProgress();
      announce("Undone.");
      await this.#show(this.#held[0]);
    } catch (error) {
      notice(`That cannot be undone: ${error.message}`);
    } finally {
      this.#isUndoing = false;
      this.#showAnswerable();
    }
  }

  #isUndoing = false;

  hint(text) { notice(text); }

  // ---------------------------------------------------------- what the person sees

  #missingMs() {
    const needed = Number(this.#settings.minWatchedS) * 1000;
    return this.#current?.player ? needed - this.#current.player.watchedMs : 0;
  }

  /** Buttons that do not count yet say so. */
  #showAnswerable() {
    const missing = this.#missingMs();
    const isOff = this.#isBusy || missing > 0;
    const seconds = this.#isBusy || missing <= 0 ? 0 : Math.ceil(missing / 1000);
    const state = `${isOff} ${seconds} ${this.#last.length}`;
    if (state === this.#shownState) return;
    this.#shownState = state;
    for (const button of document.querySelectorAll("#stage [data-choice], .answers [data-choice], #send-rating, #send-steps")) {
      button.setAttribute("aria-disabled", String(isOff));
    }
    byId("countdown").hidden = !seconds;
    byId("countdown").textContent = seconds ? `Watch first: ${seconds} s` : "";
    this.#element.dataset.isReady = String(!isOff);
    document.querySelector("[data-do='undo']").setAttribute("aria-disabled", String(!this.#last.length));
  }

  #shownState = "";

  #showMoving() {
    const isMoving = Boolean(this.#current?.player?.isMoving);
    document.querySelector("[data-when='moving']").hidden = !isMoving;
    document.querySelector("[data-when='still']").hidden = isMoving;
    document.querySelector("[data-do='pause']").setAttribute("aria-label", isMoving ? "Pause" : "Play");
    byId("press-play").hidden = isMoving || !WANTS_CALM.matches || Boolean(this.#current?.player?.watchedMs);
  }

  #showExplained() {
    const player = this.#current?.player;
    const button = byId("explanation");
    button.hidden = !player?.hasExplanation;
    byId("explanation-does").textContent = player?.isExplained ? "Hide" : "Show";
    this.stage.dataset.explained = String(Boolean(player?.isExplained));
  }

  #showProgress() {
    const total = Number(this.#settings.numTotal);
    const isPractice = this.#stageName === "practice";
    const num = Math.min(total, this.#numAnswered + (isPractice ? 0 : this.#outbox.size));
    byId("progress-bar").max = total;
    byId("progress-bar").value = num;
    byId("progress-text").textContent = `${num} of ${total}`;
  }

  #showSaving({ state, size }) {
    const many = size === 1 ? "1 answer is" : `${size} answers are`;
    const texts = {
      saved: "All answers are saved",
      saving: "Saving",
      offline: `No connection: ${many} kept here and sent when it is back`,
      busy: `The service is busy: ${many} kept here and sent in a moment`,
      refused: `You are signed out: ${many} kept here. Open the link of the study again.`,
    };
    const saving = byId("saving");
    saving.dataset.state = state;
    saving.querySelector("span").textContent = texts[state];
    if (state !== this.#saidSaving && !["saved", "saving"].includes(state)) announce(texts[state]);
    this.#saidSaving = state;
  }

  #saidSaving = "saved";

  /** Once per picture of the screen: the bar under the clips, the countdown, and what was measured. */
  #frame() {
    const player = this.#current?.player;
    if (player) {
      byId("timeline").firstElementChild.style.transform = `scaleX(${player.share})`;
      this.#maxDrift = Math.max(this.#maxDrift, player.maxDriftFrames);
      Object.assign(this.stage.dataset, {
        driftFrames: player.maxDriftFrames, maxDriftFrames: this.#maxDrift, numDriftSamples: player.numDriftSamples,
        numLoops: player.numLoops, frames: player.shownFrames.join(" "), watchedMs: Math.round(player.watchedMs), explainedMs: Math.round(player.explainedMs),
        assignment: this.#current.assignment.assignment_id,
      });
    }
    this.#showAnswerable();
    requestAnimationFrame(() => this.#frame());
  }

  // ---------------------------------------------------------- what the person does

  #listen() {
    this.#outbox.addEventListener("state", (event) => this.#showSaving(event.detail));
    this.#outbox.addEventListener("receipt", (event) => this.#receive(event.detail.answer, event.detail.receipt));
    this.#outbox.addEventListener("dropped", (event) => this.#drop(event.detail));
    for (const button of document.querySelectorAll("[data-do]")) {
      button.addEventListener("click", () => this.#do(button.dataset.do));
    }
    // After a click with the mouse, Space and Enter are the desk's again; who came by Tab stays where they are.
    this.#element.addEventListener("click", (event) => { if (event.detail) event.target.closest("button")?.blur(); });
    byId("press-play").addEventListener("click", () => this.#do("pause"));
    byId("open-help").addEventListener("click", () => this.#help());
    byId("speed").addEventListener("change", (event) => {
      this.#setSpeed(Number(event.target.value));
      event.target.blur();
    });
    onKeys((key) => this.#press(key));
    let wasMoving = false;
    document.addEventListener("visibilitychange", () => {
      const player = this.#current?.player;
      if (document.hidden) {
        wasMoving = Boolean(player?.isMoving);
        player?.pause();
      } else if (wasMoving && !this.#isBusy) void player?.play();
    });
  }

  #press(key) {
    if (key === "?") this.#help();
    else if (key === "z") void this.undo();
    else if (this.#current && this.#modes[this.#current.assignment.feedback].press(key)) return true;
    else if (this.stage.hidden) return false;
    else if (key === " ") this.#do("replay");
    else if (key === "p" || key === "k") this.#do("pause");
    else if (key === ",") this.#do("back");
    else if (key === ".") this.#do("forward");
    else if (key === "h" && this.#current?.player?.hasExplanation) this.#do("explain");
    else if (key === "[" || key === "]") {
      const index = SPEEDS.indexOf(this.#speed) + (key === "]" ? 1 : -1);
      this.#setSpeed(SPEEDS[Math.max(0, Math.min(index, SPEEDS.length - 1))]);
    } else return false;
    return true;
  }

  #do(what) {
    if (what === "undo") return void this.undo();
    const player = this.#current?.player;
    if (!player || this.#isBusy) return;
    if (what === "replay") {
      this.#current.numReplays++;
      void player.replay();
    } else if (what === "pause") player.isMoving ? player.pause() : void player.play();
    else if (what === "explain") {
      void player.explain(!player.isExplained);
      this.#showExplained();
      announce(player.isExplained ? "Explanation shown." : "Explanation hidden.");
    } else void player.step(what === "back" ? -1 : 1);
    this.#showMoving();
  }

  #setSpeed(speed) {
    this.#speed = speed;
    byId("speed").value = String(speed);
    if (this.#current?.player) this.#current.player.speed = speed;
    announce(`Speed ${speed}`);
  }

  async #help() {
    const player = this.#current?.player;
    const wasMoving = Boolean(player?.isMoving);
    player?.pause();
    await open(byId("help-sheet"));
    if (wasMoving && player === this.#current?.player) void player.play();
  }

  /** The service does not want an answer: its lease had run out, or the person may not answer this any more. */
  async #drop({ answer, error }) {
    this.#last = this.#last.filter((one) => one.answer.answer_id !== answer.answer_id);
    this.#done.delete(answer.assignment_id);  // It may be asked again.
    notice(`One answer did not count: ${error.message}`);
    this.#showProgress();
    if (this.#current && !this.#current.isAnswered) return;
    try {
      this.#take(await call("GET", `/assignments?count=${NUM_HELD}`));
    } catch { /* #next looks again. */ }
    await this.#next();
  }
}

const desk = new Desk();
void desk.start();
