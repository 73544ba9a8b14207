// Calls of the service. What goes wrong is one of two things: no answer came, or one that says no.

const root = document.documentElement.dataset.root;
const token = document.querySelector("meta[name='csrf-token']")?.content ?? "";

// How far the server's clock is ahead of this one, for leases.
let clockOffsetMs = 0;

export const serverNow = () => Date.now() + clockOffsetMs;
export const address = (path) => root + path;
export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The service did not answer: no connection, or a proxy in between gave up. */
export class NoAnswer extends Error {}

/** The service said no. `retryAfterS` is set where it said when to ask again. */
export class Refusal extends Error {
  constructor(status, text, retryAfterS) {
    super(text || `status ${status}`);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }

  get isForLater() { return this.status === 429 || this.status === 503; }
}

/** Seconds that a Retry-After header asks for: a number, or a date. */
export function retryAfterS(header) {
  if (!header) return null;
  const seconds = Number(header);
  if (Number.isFinite(seconds)) return Math.max(0, seconds);
  const date = Date.parse(header);
  return Number.isNaN(date) ? null : Math.max(0, (date - serverNow()) / 1000);
}

export async function call(method, path, body, { timeoutMs = 20000 } = {}) {
  let response;
  try {
    response = await fetch(root + "/api/v1" + path, {
      method,
      headers: { "X-CSRF-Token": token, ...(body === undefined ? {} : { "Content-Type": "application/json" }) },
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "same-origin",
      cache: "no-store",
      signal: AbortSignal.timeout(timeoutMs),
    });
  } catch (error) {
    throw new NoAnswer(String(error));
  }
  const date = Date.parse(response.headers.get("Date") ?? "");
  if (!Number.isNaN(date)) clockOffsetMs = date - Date.now();
  if (response.status === 502 || response.status === 504) throw new NoAnswer(`status ${response.status}`);
  let content = {};
  try {
    content = await response.json();
  } catch {
    if (response.ok) throw new NoAnswer("the answer broke off");
  }
  if (response.ok) return content;
  // Serve's own proxy says so until the application is there; the service itself says what is missing.
  if (response.status === 404 && typeof content?.error !== "string") throw new NoAnswer("status 404");
  const wait = retryAfterS(response.headers.get("Retry-After"));
  throw new Refusal(response.status, typeof content.error === "string" ? content.error : "", wait);
}

/** Calls until there is an answer; only a real no is thrown. */
export async function callUntilAnswered(method, path, body, onTrouble = () => {}) {
  for (let attempt = 0; ; attempt++) {
    try {
      return await call(method, path, body);
    } catch (error) {
      if (!(error instanceof NoAnswer) && !error.isForLater && error.status < 500) throw error;
      onTrouble(error);
      await waitToTryAgain(attempt, error.retryAfterS);
    }
  }
}

/** Waits for as long as was asked for, else ever longer; a connection that comes back ends the wait. */
export async function waitToTryAgain(attempt, askedForS) {
  if (askedForS != null) return pause(Math.min(askedForS, 120) * 1000 + Math.random() * 300);
  const ms = Math.min(1000 * 2 ** attempt, 15000) * (0.75 + Math.random() / 2);
  let back;
  const online = new Promise((resolve) => { back = resolve; addEventListener("online", resolve, { once: true }); });
  await Promise.race([pause(ms), online]);
  removeEventListener("online", back);
}
