// Clips are fetched before they are shown and kept in memory, so a pair that is preloaded plays without a connection.

import { pause, retryAfterS } from "./api.js";

const NUM_KEPT = 32;
const kept = new Map();

// Addresses are signed anew; what stands before the question mark names the content.
const nameOf = (url) => url.split("?")[0];

/** Resolves to an address that a <video> plays: of the bytes in memory, or the clip's own where they may not be read. */
export function fetchClip(url) {
  const name = nameOf(url);
  let clip = kept.get(name);
  if (clip) kept.delete(name);
  else {
    clip = load(url);
    clip.catch(() => kept.delete(name));
  }
  kept.set(name, clip);  // The youngest is last.
  for (const [oldName, old] of kept) {
    if (kept.size <= NUM_KEPT) break;
    kept.delete(oldName);
    old.then((address) => { if (address.startsWith("blob:")) URL.revokeObjectURL(address); }, () => {});
  }
  return clip;
}

async function load(url) {
  for (let attempt = 0; ; attempt++) {
    let response;
    try {
      response = await fetch(url, { signal: AbortSignal.timeout(60000) });
      if (response.ok) return URL.createObjectURL(await response.blob());
    } catch (error) {
      // Another origin that does not allow reading still lets a <video> play.
      if (attempt >= 2 && navigator.onLine && new URL(url, location.href).origin !== location.origin) return url;
      if (attempt >= 8) throw error;
    }
    if (response && !response.ok && response.status < 500 && response.status !== 429) {
      throw new Error(`clip: status ${response.status}`);
    }
    if (attempt >= 8) throw new Error("clip: no answer");
    const wait = response && retryAfterS(response.headers.get("Retry-After"));
    await pause(wait == null ? Math.min(500 * 2 ** attempt, 8000) : wait * 1000);
  }
}
