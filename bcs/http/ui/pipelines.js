// The pipelines of the service's configuration, as graphs.

import { h, problemBox, table } from "./dom.js";
import { graph } from "./graph.js";
import { get } from "./service.js";

let known = null;

// All pipelines, asked for once for each session and again when the page of pipelines is opened.
export async function pipelines(anew = false) {
  if (!known || anew) known = await get("pipelines");
  return known;
}

export class PipelinesView {
  constructor() {
    this.title = "Pipelines";
  }

  show() {
    const content = h("div", { "aria-busy": "true" }, "Reading…");
    this.fill(content);
    return h("div", {}, h("h1", { tabindex: "-1" }, "Pipelines"), content);
  }

  async fill(content) {
    try {
      const found = await pipelines(true);
      const { version, hash } = found.definitions;
      const chosen = found.pipelines.filter((each) => each.kind === "pipeline");
      const parts = (chosen.length ? chosen : found.pipelines).map((each) => h("section", {}, h("h2", {}, each.name),
        each.pipelines.length ? h("p", { class: "quiet" }, `with ${each.pipelines.join(", ")}`) : null, graph(each.name, each.phases)));
      const phases = new Map(found.pipelines.flatMap((each) => each.phases).map((phase) => [phase.name, phase]));
      content.replaceChildren(
        h("p", { class: "quiet" }, `${version ? `Version ${version}, ` : ""}hash ${hash}. A dashed arrow: the phase runs again when the one before it does.`),
        ...parts, h("h2", {}, "Phases"), table("All phases", ["Phase", "Requires", "Complete when", "Options"], [...phases.values()].map((phase) =>
          h("tr", {}, h("th", { scope: "row", class: "phase" }, phase.name), h("td", {}, phase.requires.join(", ") || "–"),
            h("td", {}, phase.complete_when.replaceAll("_", " ")),
            h("td", {}, [phase.needs_prompt && "needs a prompt", phase.rerun_with_dependencies && "runs again with what it requires",
              phase.rerun_when_changed && "runs again when its definition changes", phase.revision && `revision ${phase.revision}`].filter(Boolean).join(", ") || "–")))));
    } catch (error) {
      content.replaceChildren(problemBox(error));
    }
    content.removeAttribute("aria-busy");
  }
}
