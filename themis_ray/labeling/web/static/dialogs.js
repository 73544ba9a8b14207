// Dialogs that answer by a promise, and the short notice at the bottom.

const NOTICE_MS = 6000;

for (const dialog of document.querySelectorAll("dialog")) {
  for (const button of dialog.querySelectorAll("[data-close]")) button.addEventListener("click", () => dialog.close());
  // A click beside the sheet closes it.
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}

export const isDialogOpen = () => document.querySelector("dialog[open]") !== null;

/** Opens a dialog; resolves when it is closed. */
export function open(dialog) {
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
}

const message = document.getElementById("message");

export function say(title, text, button = "Go on") {
  document.getElementById("message-title").textContent = title;
  document.getElementById("message-text").textContent = text;
  message.querySelector("[data-close]").textContent = button;
  return open(message);
}

const toast = document.getElementById("toast");
let timer = 0;

export function notice(text) {
  clearTimeout(timer);
  toast.textContent = text;
  toast.hidden = false;
  timer = setTimeout(() => { toast.hidden = true; }, NOTICE_MS);
}

const announcer = document.getElementById("announcer");

/** Told to people who listen to the page, and to nobody else. */
export function announce(text) {
  announcer.textContent = announcer.textContent === text ? `${text}\u00a0` : text;
}
