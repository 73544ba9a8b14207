// Keeps the experimenter's page fresh, plays two clips together, copies what is to be copied.

const REFRESH_MS = 5000;
const live = document.getElementById("live");

if (live) keepFresh(live);
for (const button of document.querySelectorAll("[data-play]")) playTogether(button);
for (const button of document.querySelectorAll("[data-copy]")) copyFrom(button);
for (const form of document.querySelectorAll("form[data-confirm]")) {
  form.addEventListener("submit", (event) => {
    if (!window.confirm(form.dataset.confirm)) event.preventDefault();
  });
}

function keepFresh(region) {
  const status = document.getElementById("freshness");
  const toggle = document.getElementById("freshness-toggle");
  let isPaused = false;
  let isAsking = false;

  async function refresh() {
    if (isPaused || isAsking || document.hidden || isInUse(region)) return;
    isAsking = true;
    try {
      const response = await fetch(region.dataset.source, { headers: { Accept: "text/html" }, cache: "no-store" });
      if (response.redirected || response.status === 401 || response.status === 403) {
        isPaused = true;
        say("Your session has ended. Load the page again to sign in.");
      } else if (response.ok) {
        replace(region, await response.text());
        say("Updated every 5 seconds");
      } else {
        say("The service does not answer; it is asked again.");
      }
    } catch {
      say("No connection; it is tried again.");
    } finally {
      isAsking = false;
    }
  }

  function say(text) {
    if (status && status.textContent !== text) status.textContent = text;
  }

  toggle?.addEventListener("click", () => {
    isPaused = !isPaused;
    toggle.textContent = isPaused ? "Go on updating" : "Stop updating";
    say(isPaused ? "Not updated" : "Updated every 5 seconds");
    refresh();
  });
  if (toggle) toggle.hidden = false;
  setInterval(refresh, REFRESH_MS);
  document.addEventListener("visibilitychange", refresh);
}

// Somebody is reading with the keyboard or has text selected: what they look at stays.
function isInUse(region) {
  const selection = document.getSelection();
  const isSelecting = selection && !selection.isCollapsed && region.contains(selection.anchorNode);
  return isSelecting || (region !== document.activeElement && region.contains(document.activeElement));
}

function replace(region, html) {
  const before = values(region);
  const scrolled = [...region.querySelectorAll(".scroll-x")].map((box) => box.scrollLeft);
  const next = document.createElement("template");
  next.innerHTML = html;
  region.replaceChildren(next.content);
  region.querySelectorAll(".scroll-x").forEach((box, number) => {
    box.scrollLeft = scrolled[number] ?? 0;
  });
  for (const [name, tile] of tiles(region)) {
    const value = tile.querySelector(".value")?.textContent;
    if (before.has(name) && before.get(name) !== value) tile.classList.add("changed");
  }
}

function tiles(region) {
  return [...region.querySelectorAll("[data-tile]")].map((tile) => [tile.dataset.tile, tile]);
}

function values(region) {
  return new Map(tiles(region).map(([name, tile]) => [name, tile.querySelector(".value")?.textContent]));
}

function playTogether(button) {
  const videos = [...document.querySelectorAll(".pair video")];
  button.hidden = false;
  button.addEventListener("click", () => {
    const isPlaying = videos.some((video) => !video.paused);
    for (const video of videos) {
      if (isPlaying) {
        video.pause();
      } else {
        video.currentTime = 0;
        video.play().catch(() => {});
      }
    }
    button.textContent = isPlaying ? button.dataset.play : button.dataset.pause;
  });
}

function copyFrom(button) {
  if (!navigator.clipboard) return;
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent.trim());
    const text = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = text), 1500);
  });
}
