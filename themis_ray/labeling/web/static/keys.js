// Which keydown counts: the first of a press, without modifiers, and not one that a field or a dialog wants.

import { isDialogOpen } from "./dialogs.js";

const FIELDS = "input:not([type='range']), textarea, select, [contenteditable]";

/** Calls `act(key)` for each press that counts; it returns whether it knew the key. */
export function onKeys(act) {
  document.addEventListener("keydown", (event) => {
    if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return;
    if (isDialogOpen() || event.isComposing) return;
    const target = event.target instanceof Element ? event.target : document.body;
    if (target.closest(FIELDS)) return;
    // A slider keeps the keys that move it.
    if (target.closest("input[type='range']") && /^(Arrow|Home|End|Page)/.test(event.key)) return;
    // A button or link that was reached by Tab is pressed by these.
    if ((event.key === " " || event.key === "Enter") && target.closest("button, a")) return;
    if (act(event.key.length === 1 ? event.key.toLowerCase() : event.key)) event.preventDefault();
  });
}
