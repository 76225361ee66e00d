// Messages and requests that could not be processed: why, and to replay them.

import { announce, ask, h, number, problemBox, setText, state, table, time, words } from "./dom.js";
import { batchLink } from "./batches.js";
import { get, post } from "./service.js";

const MOST_REPLAYED = 100;
const FILTERS = ["state", "reason", "batch", "topic"];

export class DeadLettersView {
  constructor(session) {
    this.title = "Dead letters";
    this.session = session;
  }

  show(parameters) {
    this.parameters = parameters;
    this.found = [];
    this.list = h("div");
    this.results = h("div", { "aria-live": "polite" });
    const filter = (name, label) => h("label", {}, label, h("input", { type: "text", name, value: parameters.get(name) ?? "", spellcheck: "false", autocomplete: "off" }));
    const which = h("select", { name: "state" }, h("option", { value: "" }, "waiting"), h("option", { value: "all" }, "waiting and replayed"));
    which.value = parameters.get("state") ?? "";
    const form = h("form", { class: "filters", role: "search", "aria-label": "Filters", onsubmit: (event) => {
      event.preventDefault();
      const query = new URLSearchParams();
      for (const [name, value] of new FormData(form)) if (value) query.set(name, value);
      const hash = `#/dead-letters${query.size ? `?${query}` : ""}`;
      if (location.hash === hash) this.read();
      else location.hash = hash;
    } }, h("label", {}, "Which", which), filter("reason", "Reason"), filter("batch", "Id of the batch"), filter("topic", "Topic"), h("button", { type: "submit" }, "Find"));
    this.read();
    return h("div", {}, h("h1", { tabindex: "-1" }, "Dead letters"), form, this.results, this.list);
  }

  async read() {
    const { list } = this;
    list.replaceChildren("Reading from Kafka…");
    try {
      const query = Object.fromEntries(FILTERS.map((name) => [name, this.parameters.get(name) ?? ""]));
      this.answer = await get("dead-letters", { ...query, limit: String(MOST_REPLAYED) });
      this.draw();
    } catch (error) {
      list.replaceChildren(problemBox(error));
    }
  }

  sessionChanged() {
    if (this.answer) this.draw();
  }

  draw() {
    const { dead_letters: letters, unreadable, stalled, older } = this.answer;
    const chooses = this.session.mayChange;
    const boxes = new Map();
    const replay = h("button", { type: "button", disabled: true, onclick: () => this.replay(chosen()) }, "Replay the chosen ones…");
    const chosen = () => letters.filter((each) => boxes.get(each.position)?.checked);
    const count = () => {
      replay.disabled = chosen().length === 0;
      setText(replay, chosen().length ? `Replay ${chosen().length}…` : "Replay the chosen ones…");
    };
    const all = h("input", { type: "checkbox", "aria-label": "Choose all", onchange: () => {
      for (const box of boxes.values()) box.checked = all.checked;
      count();
    } });
    const rows = letters.map((each) => {
      if (chooses) boxes.set(each.position, h("input", { type: "checkbox", "aria-label": `Choose ${each.position}`, onchange: count }));
      return h("tr", {}, chooses ? h("td", {}, boxes.get(each.position)) : null,
        h("th", { scope: "row" }, words(each.reason)), h("td", {}, each.batch_id === null ? "–" : batchLink(each.batch_id)),
        h("td", {}, time(each.time)), h("td", { class: "wrap" }, each.error),
        h("td", { class: "wrap" }, each.source, h("div", { class: "quiet" }, `dead letter ${each.position}${each.service === "batch_conductor_service" ? "" : `, written by ${each.service}`}`)),
        h("td", { class: "number" }, number(each.failures)), h("td", {}, each.replayed ? state("good", "replayed") : state("warn", "waits")));
    });
    const columns = ["Reason", "Batch", "Written", "Error", "Original", ["Failures", "number"], "State"];
    this.list.replaceChildren(...[
      letters.length ? table(`${number(letters.length)} dead letters, the newest first${older ? "; there are older ones, see bcs dlq list" : ""}`, chooses ? ["", ...columns] : columns, rows)
        : h("p", {}, older ? "None among the newest ones; `bcs dlq list` looks at all." : FILTERS.some((name) => this.parameters.get(name)) ? "There is no such dead letter." : "No dead letter waits."),
      chooses && letters.length ? h("div", { class: "actions" }, replay) : null,
      ...unreadable.map((each) => h("p", { class: "notice" }, `${each.position} is not a dead letter of BCS: ${each.problem}`)),
      ...stalled.map((each) => h("p", { class: "notice bad" }, each)),
    ].filter(Boolean));
    if (chooses && letters.length) this.list.querySelector("thead th").replaceChildren(all);
  }

  replay(letters) {
    ask({
      title: `Replay ${number(letters.length)} dead ${letters.length === 1 ? "letter" : "letters"}?`, agree: "Replay",
      body: [h("p", {}, "Messages go to their topics again, and requests are answered again. What fails again becomes a new dead letter."),
        h("ul", { class: "plain" }, letters.slice(0, 10).map((each) => h("li", {}, `${words(each.reason)}, ${each.batch_id === null ? "no batch" : `batch ${each.batch_id}`}, ${each.position}`)),
          letters.length > 10 ? h("li", {}, `and ${number(letters.length - 10)} more`) : null)],
      confirm: async () => {
        const found = await post("dead-letters/replay", { dead_letters: letters.map((each) => each.position), again: letters.some((each) => each.replayed) });
        const failed = found.results.filter((each) => each.problem !== null);
        const text = `${number(found.replayed)} replayed, ${number(found.failed)} failed.`;
        this.results.replaceChildren(h("p", { class: failed.length ? "notice bad" : "notice" }, text, failed.length ? h("ul", { class: "plain" }, failed.map((each) => h("li", {}, `${each.position}: ${each.problem}`))) : null));
        announce(text);
        this.read();
      },
    });
  }
}
