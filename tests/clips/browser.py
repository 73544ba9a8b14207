"""Plays clips in a real browser, Chromium without a window, and says what it saw."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
# In CI a missing browser is a failure: a skipped test proves nothing.
IS_SKIPPED = CHROMIUM is None and "CI" not in os.environ
WHY_SKIPPED = "needs a browser: no program named chromium on the PATH (Debian: apt-get install chromium)"

# Names that are not this machine are not looked up, so the browser talks to the test and to nobody else.
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)

PAGE = """<!doctype html>
<meta charset="utf-8">
<script>
const happens = (target, name) => new Promise((resolve, reject) => {
  target.addEventListener(name, resolve, {once: true});
  target.addEventListener("error", () => reject(new Error(target.error ? target.error.message : name)), {once: true});
});

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// "seeked" comes before the frame can be drawn; the callback comes with it, where it differs from the one shown before.
async function seek(video, time) {
  const seeked = happens(video, "seeked");
  const shown = new Promise((resolve) => video.requestVideoFrameCallback(resolve));
  video.currentTime = time;
  await seeked;
  await Promise.race([shown, pause(1000)]);
}

async function pixelsOf(video, canvas) {
  const context = canvas.getContext("2d", {willReadFrequently: true});
  for (let attempt = 0; attempt < 100; attempt++) {
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(video, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
    if (pixels[3] === 255) return pixels;
    await pause(20);  // Nothing was drawn yet.
  }
  throw new Error("no frame to draw");
}

async function play(number, numSeeks) {
  const video = document.createElement("video");
  video.muted = true;
  document.body.append(video);
  const response = await fetch("/clip/" + number);
  const loaded = happens(video, "loadeddata");
  video.src = URL.createObjectURL(await response.blob());
  await loaded;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  const pictures = new Set(), colours = [], times = [];
  for (let i = 0; i < numSeeks; i++) {
    await seek(video, video.duration * (i + 0.5) / numSeeks);
    const pixels = await pixelsOf(video, canvas);
    pictures.add(pixels.join());
    colours.push([...pixels.slice(0, 3)]);
    times.push(video.currentTime);
  }
  return {duration: video.duration, width: video.videoWidth, height: video.videoHeight, times, colours,
          num_distinct_frames: pictures.size, error: null};
}

async function main() {
  const results = [];
  for (let number = 0; number < NUM_CLIPS; number++) {
    try { results.push(await play(number, NUM_SEEKS)); }
    catch (error) { results.push({error: String(error)}); }
  }
  await fetch("/results", {method: "POST", body: JSON.stringify(results)});
}
window.addEventListener("load", main);
</script>
<body></body>
"""


def play(paths: Sequence[Path], tmp_path: Path, *, num_seeks: int = 2, timeout_s: float = 90.0) -> list[dict[str, Any]]:
    """Loads each file in a <video>, seeks to some times of it and reads the pixels shown there.

    Args:
        paths: Video files.
        tmp_path: Where the browser keeps its profile and its log.
        num_seeks: How many times of each clip are looked at, evenly spread.
        timeout_s: Longest wait for the browser.

    Returns:
        For each file `duration` in seconds, `width`, `height`, `num_distinct_frames` among those seen, `times` reached,
        `colours` (R, G, B) of the top left pixel at each of them, and `error`: None, or what went wrong, without the
        other keys.

    Raises:
        TimeoutError: The browser did not answer.
    """
    page = PAGE.replace("NUM_CLIPS", str(len(paths))).replace("NUM_SEEKS", str(num_seeks))
    answers: queue.Queue[list[dict[str, Any]]] = queue.Queue()
    log = tmp_path / "chromium.log"
    with _server(page, paths, answers) as address, _browser(address, tmp_path / "chromium", log):
        try:
            return answers.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"no answer from {CHROMIUM} in {timeout_s} s:\n{log.read_text()[-2000:]}") from None


@contextlib.contextmanager
def _server(page: str, paths: Sequence[Path], answers: queue.Queue[list[dict[str, Any]]]) -> Iterator[str]:
    types = {".webm": "video/webm", ".mp4": "video/mp4"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                self._answer(page.encode(), "text/html")
            elif self.path.startswith("/clip/"):
                path = paths[int(self.path.removeprefix("/clip/"))]
                self._answer(path.read_bytes(), types[path.suffix])
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(b"", "text/plain")
            answers.put(json.loads(body))

        def _answer(self, body: bytes, content_type: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def _browser(address: str, profile: Path, log: Path) -> Iterator[None]:
    assert CHROMIUM is not None, WHY_SKIPPED
    with log.open("wb") as output:
        process = subprocess.Popen(
            [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", address],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield
        finally:
            # Its own group, so the helpers that it started end too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
