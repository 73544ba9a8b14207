// One or two clips in lock step, driven by one clock.
//
// Each <video> plays by itself, and its pace is corrected towards the clock, since two videos left alone drift apart. When
// a picture reaches the screen is the browser's business though, and under load two videos that play in step are shown
// several frames apart. So what people look at are canvases: requestVideoFrameCallback tells when a video has a new frame
// and which, the last few of them are kept, and both canvases change in the same moment, to frames that belong together.
// Where the callback is missing, the videos themselves are shown.

const HOLD_MS = 200;
const HOLD_AT_MOST_MS = 700;
const CORRECTION = 2;         // Share of an error that is made good in a second.
const MOST_CORRECTION = 0.15; // Of the pace. Browsers take a change of pace badly, so it is small,
const TOLERANCE_FRAMES = 0.3; // and there is none without need.
const SEEK_FRAMES = 4;
const NUM_KEPT = 8;
const MOST_APART = 1;         // Frames.

const happens = (target, name) => new Promise((resolve) => target.addEventListener(name, resolve, { once: true }));
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const hide = (element) => element.setAttribute("aria-hidden", "true");

class Track {
  kept = [];          // {frame, picture}, the oldest first; those of this run through the clip.
  shownFrame = -1;
  #spare = [];
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
    hide(video);
    video.tabIndex = -1;
    video.src = address;
    this.video = video;
    this.canvas = document.createElement("canvas");
    this.canvas.hidden = true;
    hide(this.canvas);
    this.#watch();
  }

  /** When a frame is due; the last one stays for as long as the other clip goes on. */
  timeOf(frame) { return frame >= this.numFrames - 1 ? Infinity : frame / this.fps; }

  get duration() { return this.numFrames / this.fps; }
  get time() { return this.video.currentTime; }
  get isAtEnd() { return this.video.ended || this.time >= this.duration - 0.002; }
  get canWatch() { return Boolean(this.video.requestVideoFrameCallback); }

  /** The frame on the screen; without the callback, the one that should be. */
  get frame() {
    const last = this.numFrames - 1;
    if (this.canWatch) return Math.max(0, Math.min(this.shownFrame, last));
    return Math.min(Math.floor(this.time * this.fps + 0.01), last);
  }

  #watch() {
    if (!this.canWatch) return;
    this.#callback = this.video.requestVideoFrameCallback((_, metadata) => {
      this.#keep(Math.min(Math.round(metadata.mediaTime * this.fps), this.numFrames - 1));
      this.#watch();
    });
  }

  #keep(frame) {
    const { videoWidth, videoHeight } = this.video;
    const picture = this.#spare.pop() ?? document.createElement("canvas");
    if (picture.width !== videoWidth || picture.height !== videoHeight) {
      [picture.width, picture.height] = [videoWidth, videoHeight];
    }
    picture.getContext("2d", { alpha: false }).drawImage(this.video, 0, 0);
    this.kept.push({ frame, picture });
    if (this.kept.length > NUM_KEPT) this.#spare.push(this.kept.shift().picture);
  }

  /** Forgets what was kept; what is on the screen stays. */
  forget() {
    this.#spare.push(...this.kept.splice(0).map((one) => one.picture));
  }

  show({ frame, picture }) {
    if (frame !== this.shownFrame || this.canvas.hidden) {
      const { canvas } = this;
      if (canvas.width !== picture.width || canvas.height !== picture.height) {
        [canvas.width, canvas.height] = [picture.width, picture.height];
      }
      canvas.getContext("2d", { alpha: false }).drawImage(picture, 0, 0);
      canvas.hidden = false;
      this.shownFrame = frame;
    }
    // Older ones are not shown any more.
    while (this.kept.length && this.kept[0].frame < frame) this.#spare.push(this.kept.shift().picture);
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
    await Promise.race([done, pause(2000)]);
  }

  set pace(pace) {
    if (Math.abs(this.video.playbackRate - pace) > 0.01) this.video.playbackRate = pace;
  }

  dispose() {
    if (this.#callback) this.video.cancelVideoFrameCallback(this.#callback);
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
    this.video.remove();
    this.canvas.remove();
    this.kept = this.#spare = [];
  }
}

/**
 * Events: `change` (moving or still), `shown` (the first pictures are there), `frame` (others are), `loop`, `reel` (with or
 * without the explanation: `pictures` are others).
 */
export class Player extends EventTarget {
  watchedMs = 0;
  explainedMs = 0;    // Of these, with the explanation.
  numLoops = 0;
  maxDriftFrames = 0;
  numDriftSamples = 0;
  isLooping = true;

  #reels;             // The clips, and the same clips with an explanation if there is one.
  #tracks;            // One of the reels: the explained one to begin with.
  #speed = 1;
  #state = "still";  // moving, holding, seeking
  #wantsToMove = false;
  #clock = 0;
  #lastTick = 0;
  #endedAt = 0;
  #request = 0;
  #lastFrame = -1;
  #job = 0;
  #aim = null;
  #isFresh = true;
  #numTurning = 0;

  /** Addresses: those of each view's clip, and where all have one, those of the clips with an explanation. */
  constructor(views, ...addresses) {
    super();
    this.#reels = addresses.map((reel) => views.map((view, index) => new Track(view, reel[index])));
    this.#tracks = this.#reels.at(-1);
  }

  /** What is put on the page for each clip. */
  get pictures() { return this.#tracks.map((track) => [track.video, track.canvas]); }
  get hasExplanation() { return this.#reels.length > 1; }
  get isExplained() { return this.#tracks === this.#reels[1]; }
  get isWide() { return this.#reels.some(([{ video }]) => video.videoWidth > video.videoHeight * 1.2); }
  get isMoving() { return this.#wantsToMove; }
  get duration() { return Math.max(...this.#tracks.map((track) => track.duration)); }
  get numFrames() { return Math.max(...this.#tracks.map((track) => track.numFrames)); }
  get frame() { return this.#longest.frame; }
  get shownFrames() { return this.#tracks.map((track) => track.frame); }
  get share() { return Math.min(1, (this.frame + 1) / this.numFrames); }
  get #longest() { return this.#tracks.reduce((a, b) => (b.duration > a.duration ? b : a)); }

  loaded() { return Promise.all(this.#reels.flat().map((track) => track.loaded())); }

  /** Begins anew: nothing was watched yet, and the explanation is there. */
  reset() {
    this.watchedMs = this.explainedMs = this.numLoops = this.numDriftSamples = this.maxDriftFrames = 0;
    this.#tracks = this.#reels.at(-1);
  }

  /** Shows the clips with the explanation or without it, from the frame on at which they are. */
  async explain(isShown) {
    const tracks = this.#reels[isShown ? 1 : 0];
    if (!tracks || tracks === this.#tracks) return;
    const frame = this.#aim ?? this.frame;
    this.#halt();
    this.#tracks = tracks;
    this.#numTurning++;
    const isThere = await this.#goTo(frame);
    this.#numTurning--;
    this.#tell("reel");
    if (isThere && this.#wantsToMove) await this.#go();
  }

  set speed(speed) {
    this.#speed = speed;
    for (const track of this.#tracks) track.pace = speed;
  }

  async play() {
    if (this.#wantsToMove) return;
    this.#wantsToMove = true;
    this.#tell("change");
    if (this.#numTurning) return;  // Goes on by itself.
    if (this.#tracks.every((track) => track.isAtEnd)) await this.#restart();
    else await this.#go();
  }

  pause() {
    if (!this.#wantsToMove) return;
    if (this.#numTurning) this.#wantsToMove = false;
    else this.#stop();
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
    await this.#goTo(frame);
  }

  /** Shows a frame and stands still there; false where something else came in between. */
  async #goTo(frame) {
    this.#aim = frame;
    const job = ++this.#job;
    const wanted = this.#tracks.map((track) => Math.min(frame, track.numFrames - 1));
    for (const track of this.#tracks) track.forget();
    await Promise.all(this.#tracks.map((track, index) => track.seek((wanted[index] + 0.5) / track.fps)));
    // "seeked" comes before the picture does.
    for (let look = 0; look < 60 && job === this.#job; look++) {
      const found = this.#tracks.map((track, index) => track.kept.find((one) => one.frame === wanted[index]));
      if (!this.#tracks[0].canWatch) break;
      if (found.every(Boolean)) {
        this.#tracks.forEach((track, index) => track.show(found[index]));
        break;
      }
      await pause(16);
    }
    if (job !== this.#job) return false;
    this.#aim = null;
    this.#tell("frame");
    return true;
  }

  dispose() {
    this.#stop();
    this.#reels.flat().forEach((track) => track.dispose());
  }

  #stop() {
    this.#wantsToMove = false;
    this.#halt();
  }

  /** Stands still, for a moment or for longer. */
  #halt() {
    this.#job++;
    this.#aim = null;
    this.#state = "still";
    cancelAnimationFrame(this.#request);
    for (const { video } of this.#tracks) video.pause();
  }

  async #restart() {
    const job = ++this.#job;
    this.#state = "seeking";
    this.#isFresh = true;
    cancelAnimationFrame(this.#request);
    for (const track of this.#tracks) {
      track.video.pause();
      track.forget();
    }
    await Promise.all(this.#tracks.map((track) => track.seek(0)));
    if (job === this.#job) await this.#go();
  }

  async #go() {
    const job = ++this.#job;
    const running = this.#tracks.filter((track) => !track.isAtEnd);
    this.#aim = null;
    this.#endedAt = 0;
    this.#clock = Math.min(...running.map((track) => track.time), this.duration);
    for (const track of this.#tracks) track.pace = this.#speed;
    // Videos do not start in the same instant, so they are steered from the first one on.
    this.#state = "moving";
    this.#lastTick = performance.now();
    this.#request = requestAnimationFrame((now) => this.#tick(now));
    try {
      await Promise.all(running.map((track) => track.video.play()));
    } catch {
      // The browser wants a gesture first, or a pause came in between.
      if (job !== this.#job) return;
      this.#stop();
      this.#tell("change");
    }
  }

  #tick(now) {
    const passedMs = Math.max(0, Math.min(now - this.#lastTick, 250));
    this.#lastTick = now;
    this.watchedMs += passedMs;
    if (this.isExplained) this.explainedMs += passedMs;
    this.#steer(passedMs / 1000);
    this.#show();
    this.#measure();
    if (this.#tracks.every((track) => track.isAtEnd)) {
      // The last frames may be on their way to the screen still; they are held from when they are there.
      const isShown = this.#tracks.every((track) => track.frame === track.numFrames - 1);
      if (this.#state === "moving") {
        this.#state = "ending";
        this.#endedAt = now;
      }
      if (this.#state === "ending" && (isShown || now - this.#endedAt > HOLD_AT_MOST_MS - HOLD_MS)) {
        this.#state = "holding";
        this.#endedAt = now;
      }
      if (this.#state === "holding" && now - this.#endedAt >= HOLD_MS) return this.#endLoop();
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

  /** Brings every video's pace towards the clock, which never runs ahead of the slower one. */
  #steer(passedS) {
    const running = this.#tracks.filter((track) => !track.isAtEnd);
    if (!running.length) return;
    const slowest = Math.min(...running.map((track) => track.time));
    const frameS = 1 / Math.max(...running.map((track) => track.fps));
    this.#clock = Math.min(this.#clock + passedS * this.#speed, slowest + frameS);
    for (const track of running) {
      const error = this.#clock - track.time;
      if (track.time - slowest > SEEK_FRAMES * frameS && !track.video.seeking) track.video.currentTime = slowest;
      const correction = Math.max(-MOST_CORRECTION, Math.min(MOST_CORRECTION, error * CORRECTION));
      const isNear = Math.abs(error) < TOLERANCE_FRAMES * frameS || running.length < 2;
      track.pace = Math.max(0.0625, this.#speed * (1 + (isNear ? 0 : correction)));
    }
  }

  /** Shows the newest pictures that belong together, both in the same moment. */
  #show() {
    const chosen = this.#choose();
    if (!chosen) return;
    chosen.forEach((one, index) => { if (one) this.#tracks[index].show(one); });
    if (this.#isFresh) this.#tell("shown");
    this.#isFresh = false;
  }

  #choose() {
    const [left, right] = this.#tracks;
    if (!left.canWatch) return [];
    if (!right) return left.kept.length ? [left.kept.at(-1)] : null;
    let best = null;
    for (const one of left.kept) {
      for (const other of right.kept) {
        const apart = this.#apart(one.frame, other.frame);
        if (apart > MOST_APART) continue;
        const time = Math.min(left.timeOf(one.frame), right.timeOf(other.frame));
        if (!best || time > best.time || (time === best.time && apart < best.apart)) best = { one, other, apart, time };
      }
    }
    return best && [best.one, best.other];
  }

  /** How many frames two frames are apart; a clip that is over waits for the longer one. */
  #apart(leftFrame, rightFrame) {
    const [left, right] = this.#tracks;
    const last = Math.min((left.numFrames - 1) / left.fps, (right.numFrames - 1) / right.fps);
    const times = [Math.min(leftFrame / left.fps, last), Math.min(rightFrame / right.fps, last)];
    return Math.abs(times[0] - times[1]) * Math.min(left.fps, right.fps);
  }

  #measure() {
    if (this.frame !== this.#lastFrame) {
      this.#lastFrame = this.frame;
      this.#tell("frame");
    }
    if (this.#tracks.length < 2 || this.#tracks.some((track) => track.canWatch && track.shownFrame < 0)) return;
    this.numDriftSamples++;
    const apart = Math.round(this.#apart(...this.shownFrames) * 100) / 100;
    this.maxDriftFrames = Math.max(this.maxDriftFrames, apart);
  }

  #tell(name) { this.dispatchEvent(new Event(name)); }
}
