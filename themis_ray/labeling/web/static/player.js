// One or two clips in lock step, driven by one clock.
//
// Each <video> plays by itself, which is smooth, and its pace is corrected towards the clock, since two videos left alone
// drift apart. The clock never runs ahead of the slower one. A video that is most of a frame ahead of the other stands
// still until the other has come after. What was really shown is measured by requestVideoFrameCallback.

const HOLD_MS = 200;
const CORRECTION = 4;         // Share of an error that is made good in a second.
const MOST_CORRECTION = 0.3;  // Of the pace.
const GATE_FRAMES = 0.6;
const SEEK_FRAMES = 3;

const happens = (target, name) => new Promise((resolve) => target.addEventListener(name, resolve, { once: true }));

class Track {
  shownFrame = -1;
  #callback = 0;

  constructor(view, address) {
    this.fps = view.clip_fps;
    this.numFrames = view.num_frames;
    const video = document.createElement("video");
    video.muted = true;
    video.defaultMuted = true;
    video.playsInline = true;
    video.preload = "auto";
    video.disablePictureInPicture = true;
    video.setAttribute("muted", "");
    video.setAttribute("playsinline", "");
    video.setAttribute("aria-hidden", "true");
    video.tabIndex = -1;
    video.src = address;
    this.video = video;
    this.#watch();
  }

  get duration() { return this.numFrames / this.fps; }
  get time() { return this.video.currentTime; }
  get isAtEnd() { return this.video.ended || this.time >= this.duration - 0.002; }

  #watch() {
    if (!this.video.requestVideoFrameCallback) return;
    this.#callback = this.video.requestVideoFrameCallback((_, frame) => {
      this.shownFrame = Math.round(frame.mediaTime * this.fps);
      this.#watch();
    });
  }

  /** The frame on the screen; without the callback, the one that should be. */
  get frame() {
    const last = this.numFrames - 1;
    if (this.shownFrame >= 0) return Math.min(this.shownFrame, last);
    return Math.min(Math.floor(this.time * this.fps + 0.01), last);
  }

  async loaded() {
    const { video } = this;
    if (video.error) throw new Error(video.error.message);
    if (video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA) return;
    await Promise.race([
      happens(video, "loadeddata"),
      happens(video, "error").then(() => { throw new Error(video.error?.message ?? "clip"); }),
    ]);
  }

  async seek(time) {
    const done = happens(this.video, "seeked");
    this.video.currentTime = time;
    await Promise.race([done, new Promise((resolve) => setTimeout(resolve, 2000))]);
  }

  set pace(pace) {
    if (Math.abs(this.video.playbackRate - pace) > 0.015 || pace === 0) this.video.playbackRate = pace;
  }

  dispose() {
    if (this.#callback) this.video.cancelVideoFrameCallback(this.#callback);
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
    this.video.remove();
  }
}

/** Events: `change` (moving or still), `frame` (another one is shown), `loop`. */
export class Player extends EventTarget {
  watchedMs = 0;
  numLoops = 0;
  maxDriftFrames = 0;
  numDriftSamples = 0;
  isLooping = true;

  #tracks;
  #speed = 1;
  #state = "still";  // moving, holding, seeking
  #wantsToMove = false;
  #clock = 0;
  #lastTick = 0;
  #holdUntil = 0;
  #request = 0;
  #lastFrame = -1;
  #job = 0;
  #aim = null;

  constructor(views, addresses) {
    super();
    this.#tracks = views.map((view, index) => new Track(view, addresses[index]));
  }

  get videos() { return this.#tracks.map((track) => track.video); }
  get isMoving() { return this.#wantsToMove; }
  get speed() { return this.#speed; }
  get duration() { return Math.max(...this.#tracks.map((track) => track.duration)); }
  get numFrames() { return Math.max(...this.#tracks.map((track) => track.numFrames)); }
  get #longest() { return this.#tracks.reduce((a, b) => (b.duration > a.duration ? b : a)); }
  get frame() { return this.#longest.frame; }
  get shownFrames() { return this.#tracks.map((track) => track.frame); }
  get share() { return Math.min(1, (this.#state === "seeking" ? 0 : this.#longest.time) / this.duration); }

  loaded() { return Promise.all(this.#tracks.map((track) => track.loaded())); }

  set speed(speed) {
    this.#speed = speed;
    for (const track of this.#tracks) track.pace = speed;
  }

  async play() {
    if (this.#wantsToMove) return;
    this.#wantsToMove = true;
    this.#tell("change");
    if (this.#tracks.every((track) => track.isAtEnd)) await this.#restart();
    else await this.#go();
  }

  pause() {
    if (!this.#wantsToMove) return;
    this.#stop();
    this.#tell("change");
  }

  async replay() {
    this.#wantsToMove = true;
    this.#tell("change");
    await this.#restart();
  }

  /** Moves by frames and stands still there. */
  async step(frames) {
    // A second press before the first has arrived goes on from where that one leads.
    const frame = Math.max(0, Math.min((this.#aim ?? this.frame) + frames, this.numFrames - 1));
    this.pause();
    this.#aim = frame;
    const job = ++this.#job;
    this.#state = "still";
    await Promise.all(this.#tracks.map((track) => track.seek((Math.min(frame, track.numFrames - 1) + 0.5) / track.fps)));
    if (job !== this.#job) return;
    this.#aim = null;
    // Without the callback, and where it comes later, this is what is shown.
    for (const track of this.#tracks) track.shownFrame = Math.min(frame, track.numFrames - 1);
    this.#tell("frame");
  }

  dispose() {
    this.#stop();
    this.#tracks.forEach((track) => track.dispose());
  }

  #stop() {
    this.#job++;
    this.#aim = null;
    this.#wantsToMove = false;
    this.#state = "still";
    cancelAnimationFrame(this.#request);
    for (const { video } of this.#tracks) video.pause();
  }

  async #restart() {
    const job = ++this.#job;
    this.#state = "seeking";
    cancelAnimationFrame(this.#request);
    for (const track of this.#tracks) {
      track.video.pause();
      track.shownFrame = -1;
    }
    await Promise.all(this.#tracks.map((track) => track.seek(0)));
    if (job === this.#job) await this.#go();
  }

  async #go() {
    const job = ++this.#job;
    this.#aim = null;
    this.#state = "seeking";
    // What was left half a frame apart starts together.
    this.#clock = Math.max(...this.#tracks.map((track) => track.time));
    for (const track of this.#tracks) track.pace = this.#speed;
    try {
      await Promise.all(this.#tracks.map((track) => (track.isAtEnd ? null : track.video.play())));
    } catch {
      // The browser wants a gesture first, or a pause came in between.
      if (job !== this.#job) return;
      this.#stop();
      this.#tell("change");
      return;
    }
    if (job !== this.#job) return;
    this.#clock = Math.min(...this.#tracks.filter((track) => !track.isAtEnd).map((track) => track.time), this.duration);
    this.#state = "moving";
    this.#lastTick = performance.now();
    this.#request = requestAnimationFrame((now) => this.#tick(now));
  }

  #tick(now) {
    const passedMs = Math.max(0, Math.min(now - this.#lastTick, 250));
    this.#lastTick = now;
    this.watchedMs += passedMs;
    if (this.#state === "holding") {
      if (now >= this.#holdUntil) return this.#endLoop();
    } else {
      this.#steer(passedMs / 1000);
      this.#measure();
      if (this.#tracks.every((track) => track.isAtEnd)) {
        this.#state = "holding";
        this.#holdUntil = now + HOLD_MS;
      }
    }
    this.#request = requestAnimationFrame((then) => this.#tick(then));
  }

  #endLoop() {
    this.numLoops++;
    this.#tell("loop");
    if (this.isLooping) return void this.#restart();
    this.#stop();
    this.#tell("change");
  }

  /** Brings every video's pace towards the clock. */
  #steer(passedS) {
    const running = this.#tracks.filter((track) => !track.isAtEnd);
    if (!running.length) return;
    const slowest = Math.min(...running.map((track) => track.time));
    const frameS = 1 / Math.max(...running.map((track) => track.fps));
    this.#clock = Math.min(this.#clock + passedS * this.#speed, slowest + 1.2 * frameS);
    for (const track of running) {
      const error = this.#clock - track.time;
      if (track.time - slowest > SEEK_FRAMES * frameS) void track.seek(slowest);
      else if (track.time - slowest > GATE_FRAMES * frameS) track.pace = 0;
      else {
        const correction = Math.max(-MOST_CORRECTION, Math.min(MOST_CORRECTION, error * CORRECTION));
        track.pace = Math.max(0.0625, this.#speed * (1 + (Math.abs(error) < 0.2 * frameS ? 0 : correction)));
      }
    }
  }

  #measure() {
    if (this.frame !== this.#lastFrame) {
      this.#lastFrame = this.frame;
      this.#tell("frame");
    }
    if (this.#tracks.length < 2 || this.#tracks.some((track) => track.shownFrame < 0)) return;
    const [left, right] = this.#tracks;
    const shared = Math.min(left.duration, right.duration);
    const times = [left, right].map((track) => Math.min(track.frame / track.fps, shared));
    const drift = Math.abs(times[0] - times[1]) * Math.min(left.fps, right.fps);
    this.numDriftSamples++;
    this.maxDriftFrames = Math.max(this.maxDriftFrames, Math.round(drift * 100) / 100);
  }

  #tell(name) { this.dispatchEvent(new Event(name)); }
}
