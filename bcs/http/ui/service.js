// Asks the service. The token is in the memory of this page only: it is in no storage, no cookie and no address.

const ROOT = new URL(".", document.baseURI);
const API = "internal/v1";
const SILENT_MS = 6000;
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10000;

let token = "";

export class ServiceError extends Error {
  constructor(status, document) {
    const fields = (document.errors ?? []).map((each) => `${each.field}: ${each.problem}`);
    const detail = document.detail ?? `the service answered ${status}`;
    super([detail, ...fields].join("; "));
    this.status = status;
    this.kind = String(document.type ?? "").split(":").pop();
  }
}

export const setToken = (text) => { token = text.trim(); };
export const hasToken = () => token !== "";

// An id becomes one segment of a path. Browsers resolve a segment of dots to another path, however it is written.
export function segment(id) {
  if (id === "." || id === "..") throw new Error("a browser can't ask for this id; use `bcs batches show`");
  return encodeURIComponent(id);
}

const address = (path) => new URL(path.startsWith("/") ? path.slice(1) : `${API}/${path}`, ROOT);

const headers = (more = {}) => (token ? { ...more, Authorization: `Bearer ${token}` } : more);

export async function get(path, query = {}, signal = undefined) {
  const url = address(path);
  for (const [name, value] of Object.entries(query)) if (value) url.searchParams.set(name, value);
  return answer(await fetch(url, { headers: headers(), signal, cache: "no-store" }));
}

export async function post(path, document) {
  const sent = { method: "POST", headers: headers({ "Content-Type": "application/json" }), body: JSON.stringify(document) };
  return answer(await fetch(address(path), sent));
}

async function answer(response) {
  let document = {};
  try {
    document = await response.json();
  } catch {
    if (response.ok) throw new Error("the answer can't be read");
  }
  if (!response.ok) throw new ServiceError(response.status, document);
  return document;
}

// A random id, also where the page came over plain HTTP and the browser has no `crypto.randomUUID`.
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

// Follows the stream of snapshots. `EventSource` can send no token, so the events are read from a response by hand, and
// the connection is made again here. While the page is hidden there is no connection.
export class Stream {
  constructor({ hello, snapshot, status }) {
    this.notify = { hello, snapshot, status };
    this.wait = FIRST_WAIT_MS;
    this.connection = null;
    this.timer = 0;
    document.addEventListener("visibilitychange", () => (document.hidden ? this.pause() : this.restart()));
  }

  restart() {
    this.stop();
    this.wait = FIRST_WAIT_MS;
    if (document.hidden) this.notify.status("paused");
    else this.connect();
  }

  pause() {
    this.stop();
    this.notify.status("paused");
  }

  stop() {
    clearTimeout(this.timer);
    this.connection?.abort();
    this.connection = null;
  }

  async connect() {
    const connection = new AbortController();
    this.connection = connection;
    let problem = null;
    try {
      await this.read(connection);
    } catch (error) {
      problem = error;
    }
    if (this.connection !== connection) return;
    this.connection = null;
    if (problem instanceof ServiceError && (problem.status === 401 || problem.status === 403)) {
      this.notify.status("refused", problem);
      return;
    }
    // Many pages must not come back at the same instant.
    const wait = this.wait * (0.75 + Math.random() / 2);
    this.wait = Math.min(LONGEST_WAIT_MS, this.wait * 2);
    this.notify.status("lost", problem);
    this.timer = setTimeout(() => this.connect(), wait);
  }

  async read(connection) {
    let silent = 0;
    const heard = () => {
      clearTimeout(silent);
      silent = setTimeout(() => connection.abort(), SILENT_MS);
    };
    heard();
    try {
      const response = await fetch(address("ui/events"),
        { headers: headers({ Accept: "text/event-stream" }), signal: connection.signal, cache: "no-store" });
      if (!response.ok) await answer(response);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        heard();
        const events = (rest + value).split("\r\n\r\n");
        rest = events.pop();
        for (const event of events) if (this.connection === connection && this.take(event) === "end") return;
      }
    } finally {
      clearTimeout(silent);
      connection.abort();
    }
  }

  take(event) {
    let kind = "";
    let data = "";
    for (const line of event.split("\r\n")) {
      if (line.startsWith("event: ")) kind = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
    }
    if (kind === "hello") this.notify.hello(JSON.parse(data));
    if (kind === "snapshot") {
      this.wait = FIRST_WAIT_MS;
      this.notify.status("live");
      this.notify.snapshot(JSON.parse(data));
    }
    return kind;
  }
}
