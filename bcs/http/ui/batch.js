// One batch: its phases, the graph of a pipeline in the colours of its state, why each phase runs or not, its history,
// and, for who may change something, to resolve with force and to take completions back.

import { ask, facts, h, number, problemBox, state, table, time, words } from "./dom.js";
import { graph, standing } from "./graph.js";
import { pipelines } from "./pipelines.js";
import { get, newId, post, segment } from "./service.js";

export class BatchView {
  constructor(session) {
    this.title = "Batch";
    this.session = session;
  }

  show(parameters, id) {
    this.title = `Batch ${id}`;
    this.id = id;
    this.parts = { standing: h("section", { "aria-label": "Standing" }, "Reading…"), pipeline: h("section", { "aria-label": "Pipeline" }),
      history: h("section", { "aria-label": "History" }) };
    this.wanted = parameters.get("pipeline");
    this.fill();
    return h("div", {}, h("p", {}, h("a", { href: "#/batches" }, "All batches")), h("h1", { tabindex: "-1" }, "Batch ", h("code", {}, id)),
      this.parts.standing, this.parts.pipeline, this.parts.history);
  }

  async fill() {
    const { parts } = this;
    const { standing: box, pipeline } = parts;
    try {
      const [batch, defined] = await Promise.all([get(`batches/${segment(this.id)}`, { limit: "20" }), pipelines()]);
      if (parts !== this.parts) return; // another batch is shown by now
      this.batch = batch;
      this.defined = defined;
      this.showStanding(box);
      this.showPipeline(pipeline);
    } catch (error) {
      box.replaceChildren(problemBox(error));
    }
    this.refreshHistory();
  }

  refreshHistory() {
    const { archive } = this.session;
    const { history } = this.parts;
    this.archive = archive;
    if (archive) this.showHistory(history);
    else if (archive === false) history.replaceChildren(h("h2", {}, "History"), h("p", { class: "quiet" }, "There is no archive (BCS_DATABASE_URL), so there is no history."));
  }

  showStanding(box) {
    const { batch } = this;
    const rows = batch.phases.map((each) => h("tr", {}, h("th", { scope: "row", class: "phase" }, each.phase),
      h("td", {}, state(each.complete ? "good" : each.failed ? "bad" : "", each.complete ? "complete" : "not complete")),
      ["completed", "failed", "left_out", "outstanding", "missing"].map((name) => h("td", { class: "number" }, number(each[name]))),
      h("td", { class: "wrap" }, each.blocking_essays.length ? each.blocking_essays.slice(0, 8).map((essay) => `${essay.essay_id} (${words(essay.reason)})`).join(", ")
        + (each.blocking_essays_total > 8 ? `, and ${number(each.blocking_essays_total - 8)} more` : "") : "–")));
    box.replaceChildren(
      facts([["Registered", batch.registered ? "yes" : "no"],
        ["Essays", `${number(batch.essays_known)} known${batch.expected ? `, ${number(batch.expected.count)} expected` : ""}`],
        ["Answered by", batch.source]]),
      rows.length ? h("div", {}, h("h2", {}, "Phases"), table("What is known of each phase",
        ["Phase", "State", ["Completed", "number"], ["Failed", "number"], ["Left out", "number"], ["Outstanding", "number"], ["Missing", "number"], "Held back by"], rows))
        : h("p", {}, "Nothing is known of any phase."));
  }

  showPipeline(box) {
    const names = this.defined.pipelines;
    const first = names.find((each) => each.kind === "pipeline") ?? names[0];
    const chosen = names.find((each) => each.name === this.wanted) ?? first;
    const answer = h("div", { "aria-live": "polite" });
    const choice = h("select", { onchange: () => this.explain(answer, choice.value) }, names.map((each) => h("option", { value: each.name }, each.name)));
    choice.value = chosen.name;
    this.actions = h("div", { class: "actions" });
    this.choice = choice;
    box.replaceChildren(h("h2", {}, "What is still to run"), h("form", { class: "filters" }, h("label", {}, "Of the pipeline", choice)), answer, this.actions);
    this.answer = answer;
    this.showActions();
    this.explain(answer, chosen.name);
  }

  sessionChanged() {
    if (this.actions) this.showActions();
    if (this.archive !== this.session.archive) this.refreshHistory();
  }

  showActions() {
    const { mayChange, scopes } = this.session;
    this.actions.replaceChildren(...(mayChange ? [
      scopes.includes("resolve") ? h("button", { type: "button", onclick: () => this.force() }, "Resolve with force…") : null,
      h("button", { type: "button", onclick: () => this.takeBack() }, "Take completions back…"),
    ].filter(Boolean) : []));
  }

  phasesOf(name) {
    return this.defined.pipelines.find((each) => each.name === name)?.phases ?? [];
  }

  async explain(answer, pipeline) {
    answer.replaceChildren("Reading…");
    try {
      const found = await get(`batches/${segment(this.id)}/explain/${segment(pipeline)}`);
      answer.replaceChildren(...this.resolution(pipeline, found));
    } catch (error) {
      answer.replaceChildren(problemBox(error));
    }
  }

  resolution(pipeline, found) {
    const total = Math.max(found.essays_known, found.essays_expected ?? 0);
    const standings = new Map(found.decisions.map((each) => [each.phase, standing(each, total)]));
    const behind = found.explanation?.as_of;
    const sentences = found.explanation ? found.explanation.phases.map((each) => h("li", {}, each.sentence, this.decided(each)))
      : found.decisions.map((each) => h("li", {}, `${each.phase} ${each.runs ? "runs" : "does not run"}: ${each.reason_text}`));
    return [h("p", {}, found.analysis_summary), graph(pipeline, this.phasesOf(pipeline), standings), h("h2", {}, "Why"), h("ul", { class: "plain" }, sentences),
      behind && behind.events_behind ? h("p", { class: "quiet" }, `${number(behind.events_behind)} events had not been read yet.`) : null].filter(Boolean);
  }

  decided(phase) {
    const fact = phase.decided_by;
    if (!fact) return "";
    const where = fact.archived ? `, ${fact.archived.event_type}, entry ${fact.archived.number}` : "";
    return h("span", { class: "quiet" }, ` Decided by: ${words(fact.fact)}${fact.essay_id ? ` of ${fact.essay_id}` : ""} at `, time(fact.at), where, ".");
  }

  async showHistory(box) {
    const list = h("ol", { class: "history card" });
    const more = h("button", { type: "button" }, "Show older entries");
    const page = async (path) => {
      more.disabled = true;
      const found = await get(path);
      list.append(...found.entries.map(entry));
      more.hidden = !found.next;
      more.disabled = false;
      more.onclick = () => page(found.next).catch((error) => box.append(problemBox(error)));
    };
    if (!box.childElementCount) box.replaceChildren(h("h2", {}, "History"), "Reading…");
    try {
      await page(`batches/${segment(this.id)}/history`);
      box.replaceChildren(h("h2", {}, "History"), list.childElementCount ? list : h("p", {}, "There is no entry."), h("div", { class: "actions" }, more));
    } catch (error) {
      box.replaceChildren(h("h2", {}, "History"), problemBox(error));
    }
  }

  boxes(name, phases) {
    return h("fieldset", {}, h("legend", {}, "Phases"), phases.map((phase) => h("label", {}, h("input", { type: "checkbox", name, value: phase.name }), ` ${phase.name}`)));
  }

  // Two steps: what would happen, from the service's own dry run, and then the deed.
  inTwoSteps({ title, inputs, document, path, describe, danger, agree, after }) {
    const preview = h("div", { "aria-live": "polite" });
    let tried = null;
    const dialog = ask({
      title, danger, agree: "Show what would happen", body: [inputs, preview],
      confirm: async (form) => {
        const given = document(form);
        if (JSON.stringify(given) !== tried) {
          const found = await post(path, { ...given, ...(path.endsWith("define") ? { correlation_id: newId() } : {}), dry_run: true });
          preview.replaceChildren(...describe(found));
          tried = JSON.stringify(given);
          dialog.querySelector("button[type=submit]").textContent = agree;
          return false;
        }
        after(await post(path, { ...given, ...(path.endsWith("define") ? { correlation_id: newId() } : {}) }));
        return true;
      },
    });
    dialog.querySelector("form").addEventListener("input", () => {
      tried = null;
      preview.replaceChildren();
      dialog.querySelector("button[type=submit]").textContent = "Show what would happen";
    });
  }

  force() {
    const pipeline = this.choice.value;
    this.inTwoSteps({
      title: `Resolve ${pipeline} with force`, agree: "Resolve with force",
      path: "pipelines/define",
      inputs: [h("p", {}, "The chosen phases run although they are complete. The answer is kept in the history, and pruned phases are announced. ",
        "BCS runs no phase itself: the orchestrator has to ask in the same way, or completions have to be taken back."), this.boxes("force", this.phasesOf(pipeline))],
      document: (form) => {
        const force = new FormData(form).getAll("force");
        if (!force.length) throw new Error("choose a phase");
        return { batch_id: this.id, requested_pipeline: pipeline, force };
      },
      describe: (found) => [h("h2", {}, "What would happen"), h("p", {}, found.analysis_summary)],
      after: (found) => {
        this.answer.replaceChildren(h("p", { class: "notice", role: "status" }, `Resolved with force: ${found.final_pipeline.join(", ") || "nothing"} to run.`), ...this.resolution(pipeline, found));
        this.refreshHistory();
        // The archive writes the entry a moment after the answer.
        setTimeout(() => this.refreshHistory(), 2000);
      },
    });
  }

  takeBack() {
    const phases = this.phasesOf(this.choice.value);
    this.inTwoSteps({
      title: "Take completions back", danger: true, agree: "Take the completions back",
      path: `batches/${segment(this.id)}/invalidate`,
      inputs: [h("p", {}, "What is known of the chosen phases until now no longer counts, so that they run again."), this.boxes("phases", phases),
        h("label", {}, "Reason, for the history", h("input", { type: "text", name: "reason", required: true, maxlength: "500" }))],
      document: (form) => {
        const data = new FormData(form);
        const chosen = data.getAll("phases");
        if (!chosen.length) throw new Error("choose a phase");
        return { phases: chosen, reason: data.get("reason") };
      },
      describe: (found) => [h("h2", {}, "What would happen"), h("ul", { class: "plain" }, found.phases.map((each) =>
        h("li", {}, `${each.phase}: ${number(each.completed)} completions and ${number(each.failed)} failures would no longer count${each.report ? ", nor would the phase report" : ""}.`))),
      h("p", {}, found.no_longer_complete.length ? `No longer complete: ${found.no_longer_complete.join(", ")}.` : "No phase would change from complete to not complete.")],
      after: () => {
        this.fill();
        setTimeout(() => this.refreshHistory(), 2000);
      },
    });
  }
}

function entry(each) {
  const head = (text) => h("p", {}, h("strong", {}, text), " ", h("span", { class: "quiet" }, time(each.recorded_at), `, entry ${each.number}`));
  if (each.kind === "resolution") {
    return h("li", {}, head(`${each.pipeline} was asked for`), h("p", {}, `To run: ${each.final_pipeline.join(", ") || "nothing"}. Pruned: ${each.pruned_phases.join(", ") || "nothing"}.`),
      each.options ? h("p", {}, `With ${Object.entries(each.options).map(([name, value]) => `${name} ${[value].flat().join(", ")}`).join("; ")}.`) : null,
      h("p", { class: "quiet" }, `By ${each.requested_by}; correlation id ${each.correlation_id}`));
  }
  if (each.kind === "erasure") return h("li", {}, head("The batch was erased"), h("p", {}, `By ${each.erased_by}: ${each.reason}`));
  return h("li", {}, head(each.event_type), each.facts.slice(0, 5).map((fact) => h("p", {}, told(fact))),
    each.facts.length > 5 ? h("p", { class: "quiet" }, `and ${number(each.facts.length - 5)} more facts`) : null,
    each.reason ? h("p", {}, `Reason: ${each.reason}`) : null,
    h("p", { class: "quiet" }, [each.source ? `${each.source.topic}/${each.source.partition}/${each.source.offset}` : `by ${each.reported_by ?? "HTTP"}`,
      each.correlation_id ? `correlation id ${each.correlation_id}` : ""].filter(Boolean).join("; ")));
}

function told(fact) {
  if (fact.fact === "essay_phase_ended") return `${fact.phase} ${fact.outcome} for ${fact.essay_id}`;
  if (fact.fact === "phase_outcome") return `${fact.phase}: ${fact.status}, ${number(fact.completed.length)} completed, ${number(fact.failed.length)} failed`;
  if (fact.fact === "phase_reported") return `${fact.phase} was reported as ${fact.outcome}`;
  if (fact.fact === "recorded_under") return `${fact.phase} under its definition ${fact.definition}`;
  if (fact.fact === "phase_invalidated") return `${fact.phase} no longer counts${fact.essay_id ? ` for ${fact.essay_id}` : ""}`;
  return `${number(fact.expected_count)} essays registered`;
}
