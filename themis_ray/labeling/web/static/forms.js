// What pages with forms need: a form is sent once, a code is copied, a panel is gone back to.

const REDIRECT_AFTER_MS = 6000;

for (const form of document.forms) {
  form.addEventListener("submit", (event) => {
    if (form.dataset.isSent) event.preventDefault();
    form.dataset.isSent = "yes";
  });
}
// Coming back with the browser's arrow shows the page as it was left.
window.addEventListener("pageshow", () => {
  for (const form of document.forms) delete form.dataset.isSent;
});

for (const button of document.querySelectorAll("[data-copy]")) {
  const label = button.querySelector("span");
  const source = document.getElementById(button.dataset.copy);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(source.textContent.trim());
      label.textContent = "Copied";
    } catch {
      // Without https there is no clipboard: the code is marked, and the person copies it.
      getSelection().selectAllChildren(source);
      label.textContent = "Marked: copy it";
    }
    setTimeout(() => { label.textContent = "Copy"; }, 3000);
  });
}

const leaving = document.querySelector("[data-redirect]");
if (leaving) {
  const stop = document.querySelector("[data-redirect-stop]");
  const timer = setTimeout(() => location.assign(leaving.dataset.redirect), REDIRECT_AFTER_MS);
  stop.hidden = false;
  stop.addEventListener("click", () => {
    clearTimeout(timer);
    stop.hidden = true;
    document.querySelector("[data-redirect-note]").textContent = "The code is saved. Go back whenever you like.";
  });
}
