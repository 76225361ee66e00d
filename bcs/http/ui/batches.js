// Finds batches.

import { h, number, problemBox, state, table, time } from "./dom.js";
import { pipelines } from "./pipelines.js";
import { get } from "./service.js";

const STATES = ["blocked", "incomplete", "stale", "complete", "unregistered"];
const KINDS = { blocked: "bad", stale: "warn", incomplete: "", complete: "good", unregistered: "warn" };
const FILTERS = ["state", "pipeline", "phase", "since", "until"];

export const batchLink = (id, text = id) => h("a", { href: `#/batches/${encodeURIComponent(id)}` }, text);

export class BatchesView {
  constructor() {
    this.title = "Batches";
  }

  show(parameters) {
    const list = h("div", { "aria-live": "polite" });
    const box = h("input", { type: "text", name: "id", required: true, spellcheck: "false", autocomplete: "off" });
    const look = h("form", { class: "filters", role: "search", "aria-label": "Look a batch up", onsubmit: (event) => {
      event.preventDefault();
      location.hash = `#/batches/${encodeURIComponent(box.value.trim())}`;
    } }, h("label", {}, "Id of a batch", box), h("button", { type: "submit", class: "main" }, "Show the batch"));
    const field = (name, label, control) => h("label", {}, label, control);
    const states = h("select", { name: "state" }, h("option", { value: "" }, "any"), STATES.map((each) => h("option", { value: each }, each)));
    const names = { pipeline: h("select", { name: "pipeline" }, h("option", { value: "" }, "any")),
      phase: h("select", { name: "phase" }, h("option", { value: "" }, "any")) };
    const times = { since: h("input", { type: "datetime-local", name: "since" }), until: h("input", { type: "datetime-local", name: "until" }) };
    const form = h("form", { class: "filters", "aria-label": "Filters", onsubmit: (event) => {
      event.preventDefault();
      const query = new URLSearchParams();
      for (const [name, value] of new FormData(form)) if (value) query.set(name, value);
      location.hash = `#/batches${query.size ? `?${query}` : ""}`;
    } }, field("state", "State", states), field("pipeline", "Pipeline", names.pipeline), field("phase", "Phase", names.phase),
    field("since", "Changed since", times.since), field("until", "Changed until", times.until), h("button", { type: "submit" }, "Find"));
    this.choices(names, parameters).then(() => {
      for (const name of FILTERS) if (form.elements[name]) form.elements[name].value = parameters.get(name) ?? "";
    });
    this.find(list, parameters);
    return h("div", {}, h("h1", { tabindex: "-1" }, "Batches"), look, form, list);
  }

  async choices(names) {
    try {
      const found = await pipelines();
      for (const each of found.pipelines) names[each.kind].append(h("option", { value: each.name }, each.name));
    } catch {
      // The list below shows the problem.
    }
  }

  async find(list, parameters) {
    list.replaceChildren("Searching…");
    const query = Object.fromEntries(FILTERS.map((name) => [name, parameters.get(name) ?? ""]));
    for (const name of ["since", "until"]) if (query[name]) query[name] = new Date(query[name]).toISOString();
    const body = h("tbody");
    const more = h("button", { type: "button" }, "Show more");
    const said = h("p", { class: "quiet" });
    let shown = 0;
    const page = async (path, given) => {
      more.disabled = true;
      const found = await get(path, given);
      shown += found.batches.length;
      body.append(...found.batches.map((each) => this.row(each)));
      said.textContent = `${number(shown)} found, from ${found.source}, the last changed first.${found.unreadable.length ? ` Not readable: ${found.unreadable.join(", ")}.` : ""}`;
      more.hidden = !found.next;
      more.disabled = false;
      more.onclick = () => page(found.next).catch((error) => list.append(problemBox(error)));
    };
    try {
      await page("batches", query);
      const found = table("Batches", ["Batch", "States", "Last change", ["Essays", "number"], "Phases"], []);
      found.querySelector("tbody").replaceWith(body);
      list.replaceChildren(said, shown || !more.hidden ? found : h("p", {}, "No batch matches."), h("div", { class: "actions" }, more));
    } catch (error) {
      list.replaceChildren(problemBox(error));
    }
  }

  row(batch) {
    const phases = batch.phases.map((each) => {
      const kind = each.blocked_by_failures ? "bad" : each.complete ? "good" : "";
      return h("div", {}, state(kind, `${each.phase}: ${each.complete ? "complete, " : ""}${each.completed} completed${each.failed ? `, ${each.failed} failed` : ""}`));
    });
    return h("tr", {}, h("th", { scope: "row" }, batchLink(batch.batch_id)),
      h("td", {}, batch.states.map((each) => h("div", {}, state(KINDS[each] ?? "", each)))), h("td", {}, time(batch.changed_at)),
      h("td", { class: "number" }, `${number(batch.essays_known)}${batch.essays_expected === null ? "" : ` of ${number(batch.essays_expected)}`}`),
      h("td", {}, phases.length ? phases : "–"));
  }
}
