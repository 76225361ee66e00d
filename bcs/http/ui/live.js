// The service as it runs: health, figures, and the supervision tree. Everything comes with the stream; rows and charts
// stay and change in place, so that the focus and a reader's place do not move.

import { announce, ask, h, number, seconds, setText, state, time, words } from "./dom.js";
import { Chart } from "./charts.js";
import { post, segment } from "./service.js";

const whole = (value) => number(value);
const rate = (value) => number(value, value < 10 ? 1 : 0);

// Each figure: how it is shown, and its value from a snapshot and the one before. Counters become rates.
const FIGURES = [
  [{ title: "Resolutions", unit: "a second", text: rate, second: true },
    (now, per) => [per("resolutions"), per("resolutions_failed"), failures(per("resolutions_failed"), "failed")]],
  [{ title: "Events", unit: "a second", text: rate },
    (now, per) => [per("events"), null, `${number(now.events_in_flight)} being worked on`]],
  [{ title: "Intake lag", unit: "events", text: whole },
    (now) => [now.lag_events, null, now.lag_seconds ? `the oldest has waited ${seconds(now.lag_seconds)}` : ""]],
  [{ title: "Outbox", unit: "messages", text: whole },
    (now) => [now.outbox, null, now.outbox_oldest_seconds ? `the oldest has waited ${seconds(now.outbox_oldest_seconds)}` : ""]],
  [{ title: "Dead-letter topics", unit: "messages, with markers", text: whole },
    (now, per) => [now.dead_letter_messages, null, failures(per("dead_letters_written"), "written")]],
  [{ title: "HTTP requests", unit: "a second", text: rate },
    (now, per) => [per("requests"), null, `${number(now.requests_in_flight)} in flight`]],
  [{ title: "Event loop lag", unit: "ms", text: (value) => number(value, 1) },
    (now) => [now.loop_lag_seconds === null ? null : now.loop_lag_seconds * 1000, null, ""]],
  [{ title: "Queue before the archive", unit: "entries", text: whole }, (now) => [now.archive_queue, null, ""]],
];
const failures = (perSecond, word) => (perSecond ? `${rate(perSecond)} ${word} a second` : "");

const KINDS = { running: "good", idle: "", starting: "warn", stopping: "warn", backing_off: "warn", unresponsive: "bad", ended: "bad" };
const HEALTH = { healthy: "good", degraded: "warn", unhealthy: "bad", not_configured: "" };

export class LiveView {
  constructor(session) {
    this.title = "Live";
    this.session = session;
    this.charts = FIGURES.map(([settings]) => new Chart(settings));
    this.before = null;
    this.rows = new Map();
    this.health = h("div", { class: "card" }, "Waiting for the first snapshot…");
    this.body = h("tbody");
    this.columns = h("tr");
    this.element = h("div", {},
      h("h1", { tabindex: "-1" }, "Live"),
      h("section", { "aria-label": "Health" }, this.health),
      h("section", {}, h("h2", {}, "Flow"), h("ul", { class: "figures" }, this.charts.map((chart) => chart.element))),
      h("section", {}, h("h2", {}, "Actors"),
        h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Actors" }, h("table", {},
          h("caption", {}, "Each supervisor with what it supervises. Of the batches' actors only those in trouble are listed."),
          h("thead", {}, this.columns), this.body))));
    this.drawn = "";
  }

  show() {
    this.kills = null;
    return this.element;
  }

  forget() {
    this.before = null;
    this.charts.forEach((chart) => chart.clear());
  }

  snapshot(document) {
    const before = this.before;
    const elapsed = before ? document.uptime_seconds - before.uptime_seconds : 0;
    const per = (name) => (elapsed > 0 ? Math.max(0, (document.figures[name] - before.figures[name]) / elapsed) : null);
    FIGURES.forEach(([, value], index) => this.charts[index].add(...value(document.figures, per)));
    this.before = document;
    this.showHealth(document.health);
    this.showTree(document.actors);
  }

  showHealth(health) {
    // The rest of the page lives; this part is written anew only when it says something else.
    const text = JSON.stringify(health);
    if (text === this.drawn) return;
    this.drawn = text;
    const dependencies = Object.entries(health.dependencies).map(([name, each]) =>
      h("li", {}, state(HEALTH[each.status], `${name}: ${words(each.status)}`), each.status === "healthy" ? "" : ` – ${each.message}`));
    const waits = Object.entries(health.waits).flatMap(([actor, found]) => found.map((each) =>
      h("li", {}, `${actor} waits to ${each.operation}, since `, time(each.since), `: ${each.cause}`)));
    const credentials = Object.entries(health.credentials).map(([name, problem]) => h("li", {}, state("warn", `${name}: ${problem}`)));
    const { version, hash, problem } = health.definitions;
    this.health.replaceChildren(
      h("p", {}, state(HEALTH[health.status], words(health.status)), `: ${health.message}`),
      h("ul", { class: "row" }, dependencies,
        h("li", {}, `pipelines: ${version ? `version ${version}, ` : ""}hash ${hash}, loaded `, time(health.definitions.loaded_at),
          problem ? state("warn", ` ${problem}`) : "")),
      ...(waits.length + credentials.length ? [h("ul", { class: "plain" }, waits, credentials)] : []));
  }

  showTree(root) {
    const kills = this.session.kills && this.session.mayChange;
    if (kills !== this.kills) {
      this.kills = kills;
      this.rows.clear();
      this.body.replaceChildren();
      this.columns.replaceChildren(...["Actor", "State", "Attempts", "Restarts", "Mailbox", "Oldest message", "Last error", ...(kills ? ["Action"] : [])]
        .map((text, index) => h("th", { scope: "col", class: index > 1 && index < 6 ? "number" : "" }, text)));
    }
    const seen = new Set();
    let previous = null;
    const visit = (node, depth) => {
      seen.add(node.path);
      const row = this.row(node, depth);
      if (row.element.parentNode === null) previous ? previous.after(row.element) : this.body.prepend(row.element);
      previous = row.element;
      node.children.forEach((child) => visit(child, depth + 1));
    };
    visit(root, 0);
    for (const [path, row] of this.rows) {
      if (!seen.has(path)) {
        row.element.remove();
        this.rows.delete(path);
      }
    }
  }

  row(node, depth) {
    let row = this.rows.get(node.path);
    if (!row) {
      const cells = { name: h("th", { scope: "row", "data-depth": Math.min(depth, 3) }), state: state("", ""),
        incarnation: h("td", { class: "number" }), restarts: h("td", { class: "number" }), mailbox: h("td", { class: "number" }),
        oldest: h("td", { class: "number" }), error: h("td", { class: "wrap" }) };
      const kill = this.kills && h("td", {}, node.path && h("button", { type: "button", class: "small", "aria-label": `Kill ${node.path}`,
        onclick: () => this.kill(node.path) }, "Kill…"));
      row = { cells, restarts: node.restarts, state: node.state, element: h("tr", { "data-path": node.path || "root" }, cells.name,
        h("td", {}, cells.state), cells.incarnation, cells.restarts, cells.mailbox, cells.oldest, cells.error, kill || []) };
      this.rows.set(node.path, row);
    }
    const { cells } = row;
    const many = node.kind === "dynamic" ? ` (${number(node.total_children)} at work)` : "";
    setText(cells.name, `${node.name}${many}`);
    setText(cells.state, words(node.state));
    if (cells.state.dataset.state !== KINDS[node.state]) cells.state.dataset.state = KINDS[node.state];
    setText(cells.incarnation, number(node.incarnation));
    setText(cells.restarts, number(node.restarts));
    const { mailbox } = node;
    setText(cells.mailbox, mailbox ? `${number(mailbox.depth)}${mailbox.capacity ? ` of ${number(mailbox.capacity)}` : ""}` : "–");
    setText(cells.oldest, mailbox && mailbox.depth ? seconds(mailbox.oldest_message_seconds) : "–");
    setText(cells.error, node.last_error ?? "–");
    if (row.restarts !== node.restarts || (row.state !== node.state && node.state !== "idle")) {
      row.element.classList.remove("changed");
      void row.element.getBoundingClientRect();
      row.element.classList.add("changed");
      if (row.restarts !== node.restarts) announce(`${node.path} was started again; its last error: ${node.last_error ?? "none"}`);
    }
    row.restarts = node.restarts;
    row.state = node.state;
    return row;
  }

  kill(path) {
    ask({ title: `Kill ${path}?`, danger: true, agree: "Kill the actor",
      body: h("p", {}, "Its supervisor starts it again. Too many restarts end the process. This is for tests of resilience."),
      confirm: () => post(`actors/${path.split("/").map(segment).join("%2F")}/kill`, {}) });
  }
}
